"""What programs hold: processes, files, pipes, futexes, as structures in slab memory."""

from __future__ import annotations
