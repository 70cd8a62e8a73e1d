"""Areas against a model that knows one page at a time."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from asikit.machine.mm.layout import PAGE_SIZE
from asikit.machine.mm.vma import STACK_GUARD_GAP, Vma, VmaList, VmFlags, page_align

PAGES = 24
READ, WRITE = VmFlags.READ, VmFlags.READ | VmFlags.WRITE


class File:
    """Counts its references."""

    name = "file"

    def __init__(self) -> None:
        self.references = 0

    def get(self) -> None:
        """One more."""
        self.references += 1

    def put(self) -> None:
        """One less."""
        self.references -= 1
        assert self.references >= 0


steps = st.lists(
    st.tuples(
        st.sampled_from(["map", "map file", "unmap", "protect"]),
        st.integers(0, PAGES - 1),
        st.integers(1, 8),
        st.sampled_from([READ, WRITE]),
    ),
    max_size=30,
)


@given(steps)
def test_against_pages(history: list[tuple[str, int, int, VmFlags]]) -> None:  # noqa: C901 - one step each
    """Any history of mapping, unmapping and protecting leaves what a dictionary of pages holds; merges lose nothing."""
    areas, model = VmaList(), dict[int, tuple[VmFlags, File | None, int]]()
    file = File()
    for step, first, count, flags in history:
        start, end = first * PAGE_SIZE, (first + count) * PAGE_SIZE
        pages = range(first, first + count)
        if step == "protect":
            areas.split(start)
            areas.split(end)
            for area in areas.intersecting(start, end):
                area.flags = flags
            areas.merge(start, end)
            for page in pages:
                if page in model:
                    model[page] = (flags, *model[page][1:])
        else:
            for area in areas.remove(start, end):
                if area.file is not None:
                    area.file.put()
            for page in pages:
                model.pop(page, None)
            if step != "unmap":
                mapped = file if step == "map file" else None
                if mapped is not None:
                    mapped.get()
                areas.insert(Vma(start, end, flags, mapped, pgoff=0 if mapped else first))  # type: ignore[arg-type]
                model.update({page: (flags, mapped, page - first if mapped else page) for page in pages})
        areas.check()
    found = {
        page: (there.flags, there.file, there.linear_page_index(page * PAGE_SIZE))
        for page in range(2 * PAGES)
        if (there := areas.lookup(page * PAGE_SIZE)) is not None
    }
    assert found == model
    assert file.references == sum(area.file is not None for area in areas)
    listed = list(areas)
    assert not any(lower.can_merge_before(upper) for lower, upper in itertools.pairwise(listed))


@given(st.sets(st.integers(0, PAGES - 1)), st.integers(1, 6), st.sets(st.integers(0, PAGES - 1)))
def test_gaps(taken: set[int], length: int, growing: set[int]) -> None:
    """The highest and the lowest gap are those that trying every page finds."""
    areas = VmaList()
    guard = STACK_GUARD_GAP // PAGE_SIZE
    base = 2 * guard
    for page in taken:
        grows = VmFlags.GROWSDOWN if page in growing and page - 1 not in taken else VmFlags.NONE
        # Distinct offsets keep neighbours from merging, which would hide what grows.
        areas.insert(Vma((base + page) * PAGE_SIZE, (base + page + 1) * PAGE_SIZE, READ | grows, pgoff=2 * page))
    blocked = {base + page for page in taken}
    for area in areas:
        if area.flags & VmFlags.GROWSDOWN:
            floor = max(areas.neighbours(area.start, area.end)[0] // PAGE_SIZE, area.start // PAGE_SIZE - guard)
            blocked |= set(range(floor, area.start // PAGE_SIZE))
    low, high = base - guard // 2, base + PAGES
    free = [page for page in range(low, high - length + 1) if not blocked & set(range(page, page + length))]
    limits = (length * PAGE_SIZE, low * PAGE_SIZE, high * PAGE_SIZE)
    assert areas.unmapped_area_topdown(*limits) == (free[-1] * PAGE_SIZE if free else None)
    assert areas.unmapped_area(*limits) == (free[0] * PAGE_SIZE if free else None)


def test_find_and_neighbours() -> None:
    """`find` looks upwards, `lookup` only at the address; neighbours are what limits the freeing of page tables."""
    areas = VmaList()
    lower = areas.insert(Vma(0x1000, 0x3000, READ, pgoff=1))
    upper = areas.insert(Vma(0x5000, 0x6000, WRITE, pgoff=5))
    assert areas.find(0x0) is lower
    assert areas.find(0x3000) is upper
    assert areas.lookup(0x3000) is None
    assert areas.find(0x6000) is None
    assert areas.neighbours(0x3000, 0x5000) == (0x3000, 0x5000)
    assert areas.neighbours(0x5000, 0x6000) == (0x3000, None)
    assert areas.neighbours(0x1000, 0x3000) == (0, 0x5000)


def test_text() -> None:
    """As in /proc/PID/maps; and what rounds to pages."""
    assert str(Vma(0x1000, 0x2000, WRITE | VmFlags.SHARED, pgoff=3)) == "1000-2000 rw-s 00003000"
    assert (page_align(0), page_align(1), page_align(4096)) == (0, 4096, 4096)
