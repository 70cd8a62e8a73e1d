"""What may be counted on the other side of a mark: the bounds that the tests against the kernel's counts go by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np

from asikit.trace import EventKind as Kind
from tests.record.counts import ALLOCATION, BULK, FREE, under_way

if TYPE_CHECKING:
    from tests.record.asked import Asked

FREED = "exit_mmap folios_put_refs free_unref_folios"
ALLOCATED = "do_anonymous_page alloc_pages"


def events(*rows: tuple[Kind, str], task: int = 1) -> Asked:
    """Make events of one task: kinds, and stacks from the outermost function on."""
    stacks = ["", *dict.fromkeys(stack for _, stack in rows if stack)]
    return cast(
        "Asked",
        SimpleNamespace(
            events=SimpleNamespace(
                kind=np.array([kind for kind, _ in rows]),
                stack=np.array([stacks.index(stack) for _, stack in rows]),
                task=np.full(len(rows), task),
                before=np.full(len(rows), task),
                stack_names=lambda stack: stacks[stack].split()[::-1],
            )
        ),
    )


def test_frees_of_one_call_are_counted_at_its_end() -> None:
    """The pages of a call that goes on may be counted after the mark, those of a call that has ended may not."""
    batch = [(Kind.PAGE_FREE, FREED)] * 2
    entry = (Kind.ENTRY_EXCEPTION, "")
    goes_on, has_ended = (Kind.TOUCH_READ, f"{FREED} free_one_page"), (Kind.TOUCH_READ, "exit_mmap folios_put_refs")
    assert under_way(events(entry, *batch), 3, FREE) == [2, 1]
    assert under_way(events(entry, *batch, goes_on), 4, FREE) == [2, 1]
    assert under_way(events(entry, *batch, has_ended), 4, FREE) == []
    assert under_way(events(entry, *batch, has_ended, *batch), 6, FREE) == [5, 4]
    assert under_way(events(entry, *batch, (Kind.RETURN_USER, "")), 4, FREE) == []


def test_who_calls_a_helper_counts() -> None:
    """The event of a free may come from a function that only prepares it."""
    free, touch = (Kind.PAGE_FREE, f"{FREED} __free_pages_prepare"), (Kind.TOUCH_READ, FREED)
    assert under_way(events(free, touch), 2, FREE) == [0]


def test_an_interrupt_says_nothing_of_the_call() -> None:
    """What a task is interrupted for lies elsewhere, but the task does not; and what was freed in it is counted."""
    interrupt, returns = (Kind.NESTED_INTERRUPT, ""), (Kind.NESTED_RETURN, "")
    free, inside = (Kind.PAGE_FREE, FREED), (Kind.PAGE_FREE, "exit_mmap asm_sysvec_apic_timer_interrupt rcu_core")
    assert under_way(events(free, interrupt, inside, returns), 4, FREE) == [0]
    assert under_way(events(free, interrupt, inside, returns), 3, FREE) == [2, 0]
    allocation = (Kind.PAGE_ALLOC, ALLOCATED)
    assert under_way(events(interrupt, (Kind.PAGE_ALLOC, "rcu_core"), returns, allocation), 0, ALLOCATION) == [3]


def test_an_allocation_is_counted_before_its_event() -> None:
    """The one that a task is in the middle of may be counted before the mark; the next one, in another call, is not."""
    clearing, allocation = (Kind.TOUCH_WRITE, f"{ALLOCATED} clear_page"), (Kind.PAGE_ALLOC, ALLOCATED)
    elsewhere = (Kind.TOUCH_READ, "do_anonymous_page")
    assert under_way(events(clearing, allocation, elsewhere, allocation), 0, ALLOCATION) == [1]
    assert under_way(events(elsewhere, clearing, allocation), 0, ALLOCATION) == []


def test_pages_allocated_in_bulk_are_counted_at_the_end_of_the_call() -> None:
    """They are like frees in that, and no business of other allocations."""
    allocation, inside = (Kind.PAGE_ALLOC, "vmalloc alloc_pages_bulk_noprof"), (Kind.TOUCH_READ, "vmalloc")
    assert under_way(events(allocation), 1, BULK) == [0]
    assert under_way(events(allocation, inside), 2, BULK) == []
    assert under_way(events(allocation), 0, ALLOCATION) == []
    assert under_way(events((Kind.PAGE_ALLOC, ALLOCATED)), 1, BULK) == []
