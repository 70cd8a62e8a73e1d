"""The cross product of kvm-unit-tests' x86/access.c, against a second statement of the rules (`oracle`).

Like access.c it permutes the flags of PTE and PDE (present, writable, user, accessed, dirty, no-execute, page size,
address bits 51 and 36 beyond MAXPHYADDR, bit 13 of a large page), the access (read, write or fetch, by user or
supervisor, once or twice) and the processor (EFER.NXE, CR0.WP, CR4.SMEP), and beyond it CR4.SMAP with AC, and entries
of the upper levels. Protection keys, which access.c has too, are not modelled.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from struct import Struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from asikit.machine.x86 import Access, PageFault, PagingMode, PhysicalMemory, walk
from tests.machine.x86.oracle import FETCH, NO_FAULT, READ, WRITE, Machine, Words, judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VADDR = 0xFFFF_8123_4567_8000
WORD = Struct("<Q")
P, RW, US, A, D, PS, G = (1 << number for number in (0, 1, 2, 5, 6, 7, 8))
B12, B13, B36, B51, NX = (1 << number for number in (12, 13, 36, 51, 63))
TABLES = (0x10000, 0x11000, 0x12000, 0x13000)
OPEN = P | RW | US | A
TOP, PDPTE = TABLES[1] | OPEN, TABLES[2] | OPEN

ACCESSES = tuple(product((False, True), (READ, WRITE, FETCH)))


def subsets(base: int, flags: Sequence[int]) -> list[int]:
    """The address with every combination of flags."""
    return [base | sum(chosen) for chosen in product(*((0, flag) for flag in flags))]


def machines(*settings: str) -> Iterator[Machine]:
    """Every access with every combination of settings, the other settings off (but NXE on)."""
    for user, access in ACCESSES:
        for values in product((False, True), repeat=len(settings)):
            yield replace(Machine(user, access, nxe=True), **dict(zip(settings, values, strict=True)))


ALL = ("nxe", "wp", "smep", "smap", "ac")
AS_ACCESS_C = ("nxe", "wp", "smep")

# Name: entries of each level from the top down, the settings permuted, and how many times the access is made.
FAMILIES = {
    "pte and pde": (
        ([TOP], [PDPTE], subsets(TABLES[3] | A, (P, RW, US, NX, B51)), subsets(0x20000, (P, RW, US, A, D, NX, B51))),
        ALL,
        1,
    ),
    "pde flags that are rare": (
        ([TOP], [PDPTE], subsets(TABLES[3], (P, RW, US, A, B36)), subsets(0x20000, (P, RW, US, A, D, NX, B36))),
        AS_ACCESS_C,
        1,
    ),
    "large page": (
        ([TOP], [PDPTE], subsets(0x20_0000 | PS, (P, RW, US, A, D, NX, B51, B13)), [0]),
        ALL,
        1,
    ),
    "twice": (
        ([TOP], [PDPTE], subsets(0x20_0000 | PS, (P, RW, US, A, D, NX, B36, B12)), [0]),
        ALL,
        2,
    ),
    "huge page": (
        ([TOP], subsets(0x4000_0000 | PS, (P, RW, US, A, D, NX, B51, B13, B12)), [0], [0]),
        AS_ACCESS_C,
        1,
    ),
    "huge page that this CPU lacks": (
        ([TOP], subsets(TABLES[2], (P, RW, US, A, PS, NX)), [TABLES[3] | OPEN], [0x20000 | OPEN]),
        ("nxe", "wp", "smep", "gib_pages"),
        1,
    ),
    "upper levels": (
        (
            subsets(TABLES[1], (P, RW, US, A, PS, NX, B51)),
            subsets(TABLES[2], (P, RW, US, A, NX)),
            [TABLES[3] | OPEN],
            [0x20000 | P | RW | US | D, 0x20000 | P | G],
        ),
        ("nxe", "wp"),
        1,
    ),
}


def combinations(name: str) -> int:
    """How many cases a family has."""
    entries, settings, times = FAMILIES[name]
    return len(ACCESSES) * (1 << len(settings)) * times * prod(len(column) for column in entries)


def run(paths: Sequence[tuple[int, ...]], machine: Machine, times: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """Do every access on tables of its own; return error codes, and the entries afterwards."""
    memory = PhysicalMemory(0x40000)
    frames = [memory.frame(table >> 12) for table in TABLES]
    slots = [((VADDR >> shift) & 511) * 8 for shift in (39, 30, 21, 12)]
    places = list(zip(frames, slots, strict=True))
    mode = PagingMode(
        maxphyaddr=machine.maxphyaddr,
        wp=machine.wp,
        smep=machine.smep,
        smap=machine.smap,
        nxe=machine.nxe,
        user=machine.user,
        ac=machine.ac,
        gib_pages=machine.gib_pages,
    )
    access = Access(machine.access)
    codes: list[int] = []
    after: list[tuple[int, ...]] = []
    for path in paths:
        for (frame, slot), entry in zip(places, path, strict=True):
            WORD.pack_into(frame, slot, entry)
        for _ in range(times):
            try:
                walk(memory, TABLES[0], VADDR, access, mode)
            except PageFault as fault:
                codes.append(fault.error_code)
            else:
                codes.append(NO_FAULT)
            after.append(tuple([WORD.unpack_from(frame, slot)[0] for frame, slot in places]))
    return codes, after


@pytest.mark.parametrize("name", FAMILIES)
def test_as_the_manual_says(name: str) -> None:
    """Fault or none, the error code, and accessed and dirty flags afterwards are right in every combination."""
    columns, settings, times = FAMILIES[name]
    paths = list(product(*columns))
    seen = 0
    for machine in machines(*settings):
        codes, after = run(paths, machine, times)
        verdict = judge(np.array(paths, dtype=np.uint64), machine)
        expected_code = np.repeat(verdict.code, times)
        expected_after: Words = np.repeat(verdict.after, times, axis=0)
        wrong = (np.array(codes) != expected_code) | (np.array(after, dtype=np.uint64) != expected_after).any(axis=1)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            path = [hex(entry) for entry in paths[first // times]]
            pytest.fail(
                f"{machine}, entries {path}: error code {codes[first]}, not {expected_code[first]};"
                f" entries {[hex(entry) for entry in after[first]]},"
                f" not {[hex(entry) for entry in expected_after[first]]}"
            )
        seen += len(codes)
    assert seen == combinations(name)


def test_a_million_combinations() -> None:
    """There are as many as promised, and no two of a family are the same."""
    assert sum(combinations(name) for name in FAMILIES) == 1_357_824
    for columns, _, _ in FAMILIES.values():
        assert all(len(set(column)) == len(column) for column in columns)
