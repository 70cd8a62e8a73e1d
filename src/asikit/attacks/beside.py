"""Attack programs whose attacker runs beside its victim: on the sibling hyperthread, or on another core."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from asikit.attacks.victims import PAGE, VictimWork
from asikit.machine.kernel import Act, Action
from asikit.threat import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from asikit.attacks.victims import Play
    from asikit.machine.kernel import Guest, Machine, Task, User

__all__ = ["Alternating", "cross_thread", "sibling_guest", "sibling_user"]

_FOREVER: Final = 1 << 62
_COOKIE: Final = 1
"""Attacker and victim are one group to core scheduling, so it keeps nobody apart."""
_SLOWNESS: Final = 7
"""Looks of an attacker for each instruction after which an interrupt can reach it."""
_BETWEEN: Final = 30
"""Instructions between a victim's rounds, in which an attacker beside it gets going again."""
_PATIENCE: Final = 500
"""Looks after which an attacker gives up a victim that has not taken a step meanwhile: a mutant may starve it."""
_NAP: Final = 4
"""Looks of the attacker's for which a victim that sleeps does so."""
_GUEST_MEMORY: Final = 1 << 16


class Pace(NamedTuple):
    """How many points each of the two passes before the other goes on.

    :ivar victim: 1 lets the attacker see every state of the victim; more is an interrupt that is long in coming to it.
    :ivar attacker: 1, or enough to come back from a stun and look before the victim's next step.
    """

    victim: int
    attacker: int = 1


_ROUNDS: Final = (
    *((Pace(points), VictimWork.FAULTS) for points in (1, 13, 67, 190, 310)),
    *((Pace(points), VictimWork.SECRET) for points in (1, 67)),
    (Pace(1, attacker=8), VictimWork.SECRET),
    (Pace(1, attacker=8), VictimWork.FAULTS),
)
"""A victim's rounds."""


class _Bed:
    """Lets what runs on a CPU sleep in a system call, until an interrupt wakes it that the other side has raised.

    :ivar sleeper: Who sleeps, None if nobody does.
    """

    def __init__(self, machine: Machine, cpu: int) -> None:
        self._machine, self._cpu = machine, cpu
        self.sleeper: Task | None = None

    def sleep(self) -> None:
        """Sleep, in kernel code."""
        kernel = self._machine.kernel
        self.sleeper = kernel.current
        while self.sleeper is not None:
            kernel.sched.block("somebody who wakes it")

    def wake(self) -> None:
        """Raise the interrupt that wakes who sleeps."""
        if self.sleeper is not None:
            self._machine.inject_interrupt(self._cpu)

    def interrupted(self) -> None:
        """Wake who sleeps: the interrupt's handler."""
        if self.sleeper is not None:
            sleeper, self.sleeper = self.sleeper, None
            self._machine.kernel.sched.wake(sleeper)


class Alternating:
    """Two CPUs, the attacker's and the victim's, which hand over after some points each.

    :ivar pace: After how many.
    :ivar passed: Points that each has passed.
    """

    every_point = True

    def __init__(self) -> None:
        self.pace = Pace(1)
        self.passed = [0, 0]

    def slice(self, cpu: int) -> int:  # every CPU alike
        """A CPU is never at the end of a slice."""
        return _FOREVER

    def choose(self, cpu: int, others: Sequence[int]) -> int:  # there is one other
        """Return the other CPU."""
        return others[0]

    def at(self, point: str, cpu: int) -> Iterable[Action]:  # at any point
        """Hand over, if it is time to."""
        self.passed[cpu] += 1
        points = self.pace.victim if cpu else self.pace.attacker
        return () if self.passed[cpu] % points else (Action(Act.SWITCH, 1 - cpu),)


class _Watch:
    """An attacker's loop beside its victim, as a process or as a guest.

    :ivar key: Where the secret is that the attacker steers to, None if it steers to a process' own.
    :ivar beds: The attacker's, and the victim's.
    :ivar may_sleep: The attacker is to sleep between preparing and looking.
    :ivar done: Not empty once the victim is done.
    """

    def __init__(self, on: Play, pair: Alternating, key: int | None) -> None:
        self._on, self._pair, self.key = on, pair, key
        self.beds = _Bed(on.machine, 0), _Bed(on.machine, 1)
        self.may_sleep = False
        self.done: list[bool] = []
        on.machine.on_interrupt(lambda cpu, _vector: self.beds[cpu].interrupted())

    def look_on(self, compute: Callable[[int], object], sleep: Callable[[], object]) -> None:
        """Look on until the victim is done, or gets nowhere.

        :param compute: Executes instructions, of a process or of a guest.
        :param sleep: Sleeps until the victim wakes the attacker.
        """
        attacker, number, moved, victim_at = self._on.attacker, 0, 0, 0
        while not self.done:
            number += 1
            attacker.before()
            if self.key is not None:
                attacker.leave_pointer(self.key)
            if self.may_sleep:
                self.may_sleep = False
                sleep()
            self._on.machine.kernel.stall()
            # Interrupts, and with them a stun, come before the look: after it, `before` would flush what tells.
            if number % _SLOWNESS == 0:
                compute(1)
            attacker.after(f"beside the victim, {number}")
            if self._pair.passed[1] != victim_at:
                moved, victim_at = number, self._pair.passed[1]
            elif number - moved == _NAP:
                self.beds[1].wake()
            elif number - moved > _PATIENCE:
                self._on.lab.evidence.unfinished = "the victim gets nowhere beside the attacker"
                return


def cross_thread(on: Play) -> None:
    """To the kernel, or if that cannot be a victim, another process; from a process, or if none can attack, a guest."""
    way = on.lab.way
    _beside(on, of_kernel=Code.KERNEL in way.victims, by_guest=Code.USER not in way.attackers)


def sibling_user(on: Play) -> None:
    """From a process to another one."""
    _beside(on, of_kernel=False)


def sibling_guest(on: Play) -> None:
    """From a guest to the kernel, which a process on the other CPU calls, or to that process: a VMM in user mode."""
    _beside(on, of_kernel=Code.KERNEL in on.lab.way.victims, by_guest=True)


def _beside(on: Play, *, of_kernel: bool, by_guest: bool = False) -> None:
    pair = on.machine.kernel.interleaver
    if not isinstance(pair, Alternating):
        raise TypeError("attacker and victim beside one another need an interleaver that alternates")
    on.lab.victim_cpu = 1
    key = on.kernel_secret() if of_kernel else None
    watch = _Watch(on, pair, key)

    on.machine.process(name="attacker", cpu=0, pinned=True, cookie=_COOKIE)(
        partial(_guest_attacker if by_guest else _attacker, on, watch)
    )
    on.machine.process(name="victim", cpu=1, pinned=True, cookie=_COOKIE)(partial(_victim, on, watch, pair))


def _attacker(on: Play, watch: _Watch, user: User) -> None:
    user.compute(1)  # its text is mapped before it counts
    watch.look_on(user.compute, lambda: on.system_call(watch.beds[0].sleep))


def _guest_attacker(on: Play, watch: _Watch, user: User) -> None:
    user.compute(1)
    ended: list[bool] = []

    def inside(guest: Guest) -> None:
        watch.look_on(guest.compute, guest.halt)
        ended.append(True)

    vcpu = user.create_vm(_GUEST_MEMORY).vcpu(inside)
    while not ended:
        if vcpu.run().halted and not ended:
            on.system_call(watch.beds[0].sleep)


def _victim(on: Play, watch: _Watch, pair: Alternating, user: User) -> None:
    address = user.mmap(PAGE)
    if watch.key is None:
        user.store(address, on.secret)
        on.lab.register = address
    for pace, work in _ROUNDS:
        pages = user.mmap(2 * PAGE)
        pair.pace = pace
        if watch.key is None:
            on.lab.evict()  # the attacker may be on another core, whose cache is another
            on.use_own_secret(user, address)
        else:
            on.call_for_work(watch.key, work, pages)
        pair.pace = Pace(1)
        user.compute(_BETWEEN)
    if on.lab.shares_out and not on.lab.evidence.unfinished:
        _take_turns_in_sleeping(on, watch, user, address)
    watch.done.append(True)


def _take_turns_in_sleeping(on: Play, watch: _Watch, user: User, address: int) -> None:
    """Let the victim sleep, and then the attacker, so that what threads have parts of changes hands.

    :param address: Of the victim's own secret, which it works with if the kernel's is not the one.
    """
    sleeper, victim = watch.beds
    stall = on.machine.kernel.stall

    def attacker_sleeps() -> None:
        watch.may_sleep = True
        for _ in range(_PATIENCE):  # under ASI it may be stunned, and does not get to sleep
            if sleeper.sleeper is not None:
                return
            stall()

    def work(body: Callable[[], None], *, first: bool) -> None:
        if first and watch.key is not None:
            on.use_key(watch.key, VictimWork.SECRET)
        on.deep_in_calls(body)
        if watch.key is not None:
            on.use_key(watch.key, VictimWork.SECRET)
        sleeper.wake()
        on.branches()

    for body, first in ((victim.sleep, True), (attacker_sleeps, False), (attacker_sleeps, True)):
        if watch.key is None:
            on.use_own_secret(user, address)
        on.system_call(partial(work, body, first=first))
        if watch.key is None:
            on.use_own_secret(user, address)
        watch.may_sleep = False
        sleeper.wake()  # if what woke it came before it slept
        user.compute(_BETWEEN)
