"""/dev/kvm: virtual machines, their CPUs, nested paging."""

from __future__ import annotations
