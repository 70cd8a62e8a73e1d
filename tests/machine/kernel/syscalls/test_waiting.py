"""Wait queues: no wakeup is lost, and the one who is to end does not sleep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from asikit.machine.kernel.core.waiting import Killable, WaitQueue
from asikit.machine.uapi.errno import Errno, SyscallError


class FakeScheduler:
    """Notes who sleeps and who is woken; sleeping ends at once."""

    def __init__(self) -> None:
        self.slept: list[str] = []
        self.woken: list[object] = []

    def block(self, waits_for: str) -> None:
        """Sleep."""
        self.slept.append(waits_for)

    def wake(self, task: object) -> bool:
        """Wake."""
        self.woken.append(task)
        return True


def make(owner: object = None) -> tuple[WaitQueue, FakeScheduler]:
    """Return a queue whose waiter is one task, of an owner."""
    scheduler = FakeScheduler()
    kernel: Any = SimpleNamespace(current=SimpleNamespace(owner=owner), sched=scheduler)
    return WaitQueue(kernel, "something"), scheduler


def test_a_wakeup_while_the_condition_is_looked_at_is_not_lost() -> None:
    """Whoever is woken between looking and sleeping looks again instead."""
    queue, scheduler = make()
    answers = iter([False, True])

    def condition() -> bool:
        queue.wake_up()
        return next(answers)

    queue.wait_event(condition)
    assert (scheduler.slept, len(queue)) == ([], 0)


def test_a_condition_that_holds_needs_no_sleep() -> None:
    """Nobody sleeps for what is there."""
    queue, scheduler = make()
    queue.wait_event(lambda: True)
    assert scheduler.slept == []


def test_sleeping_names_what_for_and_looks_again() -> None:
    """A task that wakes without its condition sleeps on."""
    queue, scheduler = make()
    answers = iter([False, False, True])
    queue.wait_event(lambda: next(answers))
    assert scheduler.slept == ["something", "something"]


def test_one_who_is_to_end_does_not_sleep() -> None:
    """It gets EINTR and leaves the queue."""
    owner = Killable()
    owner.killed = True
    queue, scheduler = make(owner)
    with pytest.raises(SyscallError) as caught:
        queue.wait_event(lambda: False)
    assert (caught.value.errno, scheduler.slept, len(queue)) == (Errno.EINTR, [], 0)


def test_waking_some() -> None:
    """`wake_up(1)` wakes the first; who is awake already does not count."""
    queue, scheduler = make()
    counts: list[int] = []

    def condition() -> bool:
        counts.extend([queue.wake_up(1), queue.wake_up(1)])
        return True

    queue.wait_event(condition)
    assert (counts, len(scheduler.woken)) == ([1, 0], 1)
