"""The same page tables handed to Unicorn: it must agree on translation and fault (exceptions: see `unicorn_mmu`)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from asikit.machine.x86 import Access, GeneralProtection, PageFault, PagingMode, PhysicalMemory, walk
from tests.machine.x86.unicorn_mmu import FIRST_FREE, MAXPHYADDR, MEMORY_BYTES, Seen, UnicornMmu

CASES_4, CASES_5 = 85_000, 25_000
P, RW, US, PWT, PCD, A, D, PS, G, NX = (1 << number for number in (0, 1, 2, 3, 4, 5, 6, 7, 8, 63))
SOFTWARE = (1 << 9, 1 << 10, 1 << 11, 1 << 52, 1 << 58)
SHIFTS = {4: (39, 30, 21, 12), 5: (48, 39, 30, 21, 12)}
FRAMES = range(FIRST_FREE >> 12, MEMORY_BYTES >> 12)


@dataclass(frozen=True)
class Case:
    """An address, the entries of its path (physical address, value), and how it is accessed."""

    vaddr: int
    path: tuple[tuple[int, int], ...]
    access: Access
    mode: PagingMode


def flags(random: Random) -> int:
    """Flags of an entry that mostly lets an access through, so that all kinds of ends are met."""
    value = P if random.random() < 0.96 else 0
    for flag, likely in ((RW, 0.8), (US, 0.7), (A, 0.5), (D, 0.5), (NX, 0.08), (PWT, 0.2), (PCD, 0.2), (G, 0.2)):
        if random.random() < likely:
            value |= flag
    if random.random() < 0.3:
        value |= random.choice(SOFTWARE)
    if random.random() < 0.04:
        value |= 1 << random.randrange(MAXPHYADDR, 52)
    return value


def case(random: Random, levels: int, top: int) -> Case:
    """A random address with random tables and a random access.

    Frames are all different, but that is no rule of paging.
    """
    shifts = SHIFTS[levels]
    vaddr = random.getrandbits(shifts[0] + 9) & ~7
    vaddr |= 1 << shifts[0]  # the topmost table's first slot is Unicorn's own
    if vaddr >> (shifts[0] + 8):
        vaddr |= (1 << 64) - (1 << (shifts[0] + 9))
    frames = iter(random.sample(FRAMES, len(shifts)))
    table, path = top, []
    for shift in shifts:
        place = table | ((vaddr >> shift) & 511) * 8
        entry = flags(random)
        frame = next(frames)
        if shift == 30 and random.random() < 0.1:
            # The only page of 1 GiB with memory behind it; the address must stay within that.
            entry |= PS
            vaddr = vaddr & ~((1 << 30) - 1) | random.choice(FRAMES) << 12 | vaddr & 0xFF8
        elif shift == 21 and random.random() < 0.25:
            entry |= PS | random.randrange(1, MEMORY_BYTES >> 21) << 21
        elif shift in {39, 48} and random.random() < 0.02:
            entry |= PS | frame << 12
        else:
            entry |= frame << 12
        if entry & PS and shift in {21, 30}:
            if random.random() < 0.1:
                entry |= 1 << random.randrange(12, shift)
            path.append((place, entry))
            break
        path.append((place, entry))
        table = entry & ((1 << MAXPHYADDR) - 1) & ~0xFFF
    settings = {name: random.random() < 0.5 for name in ("wp", "smep", "smap", "nxe", "user", "ac")}
    mode = PagingMode(la57=levels == 5, maxphyaddr=MAXPHYADDR, **settings)
    return Case(vaddr, tuple(path), random.choice(tuple(Access)), mode)


def ours(memory: PhysicalMemory, root: int, what: Case) -> Seen:
    """What this room makes of a case."""
    try:
        return Seen(walk(memory, root, what.vaddr, what.access, what.mode).paddr)
    except PageFault as fault:
        return Seen(None, fault.vaddr)


def compare(unicorn: UnicornMmu, memory: PhysicalMemory, what: Case) -> Seen:
    """Let both do a case, on tables that are gone afterwards."""
    for place, entry in what.path:
        memory.write_u64(place, entry)
        unicorn.write(place, entry)
    mine = ours(memory, unicorn.top(), what)
    theirs = unicorn.access(what.vaddr, what.access, what.mode, hint=mine.paddr or 0)
    assert mine == theirs, what
    for place, entry in what.path:
        after = unicorn.read(place)
        # Unicorn sets A above an entry that is at fault; ours sets none.
        ignored = A if mine.paddr is None else 0
        assert memory.read_u64(place) | ignored == after | ignored, (what, hex(entry), hex(after))
        memory.write_u64(place, 0)
        unicorn.restore(place)
    if mine.paddr is not None:
        unicorn.restore(mine.paddr)
    return mine


@pytest.mark.parametrize(("levels", "cases"), [(4, CASES_4), (5, CASES_5)])
def test_agrees(levels: int, cases: int) -> None:
    """Physical address, fault, faulting address, accessed and dirty flags agree on random tables and accesses."""
    random = Random(levels)
    unicorn = UnicornMmu(la57=levels == 5)
    memory = PhysicalMemory(MEMORY_BYTES)
    reached = faults = 0
    for _ in range(cases):
        seen = compare(unicorn, memory, case(random, levels, unicorn.top()))
        reached += seen.paddr is not None
        faults += seen.paddr is None
    assert reached + faults == cases
    assert min(reached, faults) > cases / 5, "random cases that nearly all end alike prove little"


def test_at_least_a_hundred_thousand() -> None:
    """As many as promised."""
    assert CASES_4 + CASES_5 >= 100_000


def test_accessed_flags_of_a_fault() -> None:
    """The one known difference: on a fault Unicorn sets A in the entries above, this room in none (SDM 3A 4.8)."""
    unicorn, memory = UnicornMmu(), PhysicalMemory(MEMORY_BYTES)
    places = (unicorn.top() | 8, FIRST_FREE, FIRST_FREE + 0x1000, FIRST_FREE + 0x2000)
    entries = (FIRST_FREE | P, FIRST_FREE + 0x1000 | P, FIRST_FREE + 0x2000 | P, 0)
    what = Case(1 << 39, tuple(zip(places, entries, strict=True)), Access.READ, PagingMode(maxphyaddr=MAXPHYADDR))
    for place, entry in what.path:
        memory.write_u64(place, entry)
        unicorn.write(place, entry)
    assert (
        ours(memory, unicorn.top(), what) == unicorn.access(what.vaddr, what.access, what.mode) == Seen(None, 1 << 39)
    )
    assert [memory.read_u64(place) & A for place in places] == [0, 0, 0, 0]
    assert [unicorn.read(place) & A for place in places] == [A, A, A, 0]


@pytest.mark.parametrize(("levels", "vaddr"), [(4, 1 << 47), (4, 1 << 63), (4, 1 << 48 | 1 << 39), (5, 1 << 56)])
@pytest.mark.parametrize("access", Access)
def test_non_canonical_addresses(levels: int, vaddr: int, access: Access) -> None:
    """An exception that leaves CR2 alone: #GP."""
    mode = PagingMode(la57=levels == 5, maxphyaddr=MAXPHYADDR)
    assert UnicornMmu(la57=levels == 5).access(vaddr, access, mode) == Seen(None, 0)
    with pytest.raises(GeneralProtection, match=f"^address {vaddr:#x} is not canonical$"):
        walk(PhysicalMemory(4096), 0, vaddr, access, mode)
