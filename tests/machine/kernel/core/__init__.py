"""Tests of the kernel's core: the driver, entries and faults, scheduling, interrupts, TLB shootdowns."""
