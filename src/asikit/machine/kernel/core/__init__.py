"""What every kernel has: CPUs, tasks, entry and return, faults, interrupts, scheduling, address spaces, ASI."""

from __future__ import annotations
