"""What a scenario's program and a guest are given to act with."""

from __future__ import annotations
