"""Attack programs by position: from where the attacker attacks whom, as programs on the machine."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from asikit.errors import nearest
from asikit.kernel import Act, Action, Observer, RoundRobin
from asikit.leaks.errors import LeakError
from asikit.leaks.lab import CHECKS, GUEST_SECRET
from asikit.leaks.vulnerability import Branch, Mechanism, Party
from asikit.mm import GFP_KERNEL, GFP_USER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from asikit.kernel import Guest, Interleaver, Machine, User
    from asikit.leaks.lab import Lab
    from asikit.leaks.vulnerability import Way
    from asikit.mm import Gfp
    from asikit.protocol import Effect
    from asikit.x86 import CpuModel

__all__ = ["Play", "Vector", "play", "vector_named"]

ROUNDS: Final = 3
"""How often an attacker tries: in the first round it learns which branches there are."""
DEPTH: Final = 40
"""Calls inside of one another that any return stack is too small for."""
_KEYCTL: Final = 250
_PAGE: Final = 4096
_WORD: Final = 8
_FOREVER: Final = 1 << 62
_COOKIE: Final = 1
_ORDER: Final = 9
_STRIDES: Final = (1, 13, 67, 150, 190, 230, 270, 310)
"""Points that a victim passes between two looks of the attacker's beside it, by round."""
_SLOWNESS: Final = 7
"""Looks of an attacker beside its victim for each instruction after which an interrupt can reach it."""
_BETWEEN: Final = 30
"""Instructions between a victim's rounds, in which an attacker beside it gets going again."""
_MOST_STEPS: Final = 80
"""More than a system call has micro-operations."""


class Vector(StrEnum):
    """From where to where; the first five are those of Linux's attack vector controls."""

    USER_KERNEL = "user_kernel"
    USER_USER = "user_user"
    GUEST_HOST = "guest_host"
    GUEST_GUEST = "guest_guest"
    CROSS_THREAD = "cross_thread"
    """The victim runs on the sibling hyperthread: the kernel if it can be a victim, else another process."""
    CROSS_CORE = "cross_core"
    """The victim runs on another core."""
    NMI = "nmi"
    """User to kernel, and NMIs whose handler touches the secret come between any two steps of a transition."""
    FLIP = "flip"
    """User to kernel; memory turns sensitive while the attacker's TLB has its translation."""
    NONSENSITIVE = "nonsensitive"
    """User to kernel; the secret is in memory that was declared nonsensitive."""

    def suits(self, way: "Way", cpu: "CpuModel") -> bool:
        """Tell whether there is such an attack. Raises LeakError if the way names a vector that there is not."""
        if way.vectors and self not in map(vector_named, way.vectors):
            return False
        kernel, user = Party.KERNEL in way.victims, Party.USER in way.attackers
        guest = Party.GUEST in way.attackers
        by_argument = way.branch in {Branch.CONDITIONAL, Branch.ENTRY, Branch.STRAIGHT_LINE}
        own_tables = way.mechanism in {Mechanism.DEFERRED, Mechanism.BYPASS}
        return {
            Vector.USER_KERNEL: user and kernel,
            Vector.USER_USER: user and Party.USER in way.victims,
            Vector.GUEST_HOST: guest and kernel,
            Vector.GUEST_GUEST: guest and Party.GUEST in way.victims,
            Vector.CROSS_THREAD: user and not by_argument and not own_tables,
            Vector.CROSS_CORE: user and way.crosses_cores(cpu),
            Vector.NMI: user and kernel and way.mechanism in {Mechanism.SAMPLE, Mechanism.TERMINAL},
            Vector.NONSENSITIVE: user and kernel,
            Vector.FLIP: user and kernel and way.mechanism in {Mechanism.STEER, Mechanism.DEFERRED},
        }[self]

    @property
    def cpus(self) -> int:
        """Logical processors that it needs."""
        return 2 if self in {Vector.CROSS_THREAD, Vector.CROSS_CORE, Vector.FLIP} else 1

    @property
    def wants_siblings(self) -> bool:
        """Whether two of them are to be threads of one core."""
        return self is Vector.CROSS_THREAD

    def interleaver(self) -> "Interleaver":
        """Return who runs when: on two CPUs one step each."""
        return Alternating() if self.cpus > 1 else RoundRobin()


def vector_named(name: str) -> Vector:
    """Return a vector. Raises LeakError with the nearest name if there is none."""
    if name not in set(Vector):
        raise LeakError(f'no vector "{name}"{nearest(name, list(Vector))} (there are {", ".join(Vector)})')
    return Vector(name)


class Alternating:
    """Two CPUs: the first hands over at each point, the second after `stride` of them.

    :ivar stride: 1 lets the attacker see every state of the victim; more is an interrupt that is long in coming to it.
    """

    every_point = True

    def __init__(self) -> None:
        self.stride = 1
        self._passed = 0

    def slice(self, cpu: int) -> int:  # noqa: ARG002 - every CPU alike
        """A CPU is never at the end of a slice."""
        return _FOREVER

    def choose(self, cpu: int, others: "Sequence[int]") -> int:  # noqa: ARG002 - there is one other
        """Return the other CPU."""
        return others[0]

    def at(self, point: str, cpu: int) -> "Iterable[Action]":  # noqa: ARG002 - at any point
        """Hand over."""
        self._passed += cpu
        return (Action(Act.SWITCH, 1 - cpu),) if not cpu or not self._passed % self.stride else ()


@dataclass
class Play:
    """One attack on one machine.

    :ivar secret: Eight bytes that the attacker must not learn.
    """

    machine: "Machine"
    lab: "Lab"
    secret: bytes

    def system_call(self, body: "Callable[[], object]") -> None:
        """Execute a system call of the running process', with kernel code of the victim's as its body."""

        def handler() -> int:
            body()
            return 0

        self.machine.kernel.entry.syscall(_KEYCTL, "keyctl", handler)

    def use_key(self, address: int, pages: int | None = None) -> None:
        """Kernel code that works with a secret: branches, loads that fault, and in the middle the load of the secret.

        :param pages: Two pages of the caller's that are not there yet.
        """
        kernel, lab = self.machine.kernel, self.lab
        with kernel.function("keyctl_read_key"):
            lab.check_index(CHECKS[0])
            self.descend(DEPTH)
            if pages is not None:
                kernel.uaccess.from_user(pages, _WORD)
            value = kernel.access.load(address, _WORD)
            lab.handle(value)
            if pages is not None:
                kernel.uaccess.from_user(pages + _PAGE, _WORD)
            lab.check_index(CHECKS[1])
            self.descend(DEPTH)

    def descend(self, depth: int) -> None:
        """Call functions inside of one another, deeper than a return stack is."""
        with self.machine.kernel.function("crypto_shash_update"):
            if depth:
                self.descend(depth - 1)

    def stride(self, points: int) -> None:
        """Let the second CPU pass so many points before the first one goes on."""
        interleaver = self.machine.kernel.interleaver
        if isinstance(interleaver, Alternating):
            interleaver.stride = points

    def use_own_secret(self, user: "User", address: int) -> None:
        """User code that works with its own secret."""
        self.lab.handle(user.load(address, _WORD))
        self.lab.user_function(Party.USER)


def play(vector: Vector, on: Play) -> None:
    """Put an attack's programs onto a machine."""
    _PROGRAMS[vector](on)


def _user_kernel(on: Play, gfp: "Gfp" = GFP_USER) -> None:
    """From a process to the kernel; memory that is allocated as user data is sensitive, other is not."""
    lab, key = on.lab, _kernel_secret(on, gfp)

    @on.machine.process(name="attacker")
    def attacker(user: "User") -> None:
        pointer = user.mmap(_PAGE)
        for number in range(ROUNDS):
            # Faults of system calls leave the restricted address space, whatever they were about.
            pages = user.mmap(2 * _PAGE) if gfp == GFP_USER else None
            user.store(pointer, key.to_bytes(_WORD, "little"))
            lab.leave_pointer(key)
            lab.before()
            on.system_call(lambda pages=pages: on.use_key(key, pages))  # type: ignore[misc]
            lab.after(f"after system call {number + 1}", key)


def _nonsensitive(on: Play) -> None:
    _user_kernel(on, GFP_KERNEL)


def _kernel_secret(on: Play, gfp: "Gfp" = GFP_USER) -> int:
    """Put the secret where the kernel has it; returns its address, which the attacker knows and aims at."""
    with on.lab.setting_up():
        key = on.machine.allocate(on.secret * (_PAGE // len(on.secret)), gfp)
    on.lab.register = key
    on.lab.secret_paddr = on.machine.kernel.layout.phys(key)
    return key


def _user_user(on: Play) -> None:
    lab = on.lab
    if lab.way.mechanism is Mechanism.BYPASS:
        _sandbox(on)
        return
    done: list[bool] = []

    @on.machine.process(name="attacker", cpu=0, pinned=True)
    def attacker(user: "User") -> None:
        for number in range(ROUNDS):
            lab.before()
            user.sched_yield()
            lab.after(f"after the other process ran, {number + 1}")
        done.append(True)

    @on.machine.process(name="victim", cpu=0, pinned=True)
    def victim(user: "User") -> None:
        address = user.mmap(_PAGE)
        user.store(address, on.secret)
        lab.register = address
        while not done:
            on.use_own_secret(user, address)
            user.sched_yield()


def _sandbox(on: Play) -> None:
    """Code that a process keeps in a sandbox, in its own address space, after the process wiped a secret."""
    lab = on.lab

    @on.machine.process(name="sandbox")
    def process(user: "User") -> None:
        address = user.mmap(_PAGE)
        user.store(address, on.secret)
        lab.handle(user.load(address, _WORD))
        for number in range(ROUNDS):
            if lab.secret_paddr is not None:
                lab.overwrite(lab.secret_paddr, on.secret)
            user.store(address, bytes(_WORD))
            lab.after(f"in the sandbox, {number + 1}")


def _guest_host(on: Play) -> None:
    lab, machine, key = on.lab, on.machine, _kernel_secret(on)
    machine.on_interrupt(lambda _cpu, _vector: on.use_key(key))

    def attacker(guest: "Guest") -> None:
        for number in range(ROUNDS):
            guest.store(0, key.to_bytes(_WORD, "little"))
            lab.leave_pointer(key)
            lab.before()
            machine.inject_interrupt(0)
            guest.compute(2)
            lab.after(f"after VM exit {number + 1}")

    @machine.process(name="vmm")
    def vmm(user: "User") -> None:
        vcpu = user.create_vm(1 << 16).vcpu(attacker)
        while not vcpu.run().halted:
            pass


def _guest_guest(on: Play) -> None:
    lab, machine = on.lab, on.machine
    lab.register = GUEST_SECRET
    done: list[bool] = []

    def attacker(guest: "Guest") -> None:
        for number in range(ROUNDS):
            lab.before()
            guest.halt()
            lab.after(f"after the other guest ran, {number + 1}")
        done.append(True)

    def victim(guest: "Guest") -> None:
        guest.store(GUEST_SECRET, on.secret)
        while not done:
            lab.handle(guest.load(GUEST_SECRET, _WORD))
            lab.user_function(Party.GUEST)
            guest.halt()

    for name, program in (("attacker", attacker), ("victim", victim)):

        @machine.process(name=f"vmm of {name}", cpu=0, pinned=True)
        def vmm(user: "User", program: "Callable[[Guest], None]" = program) -> None:
            vcpu = user.create_vm(1 << 16).vcpu(program)
            while not done:
                vcpu.run()
                user.sched_yield()


def _beside(on: Play) -> None:
    """Attacker and victim on two CPUs: siblings, or cores of their own."""
    lab = on.lab
    lab.victim_cpu = 1
    of_kernel = Party.KERNEL in lab.way.victims
    key = _kernel_secret(on) if of_kernel else None
    done: list[bool] = []

    @on.machine.process(name="attacker", cpu=0, pinned=True, cookie=_COOKIE)
    def attacker(user: "User") -> None:
        user.compute(1)  # its text is mapped before it counts
        pointer = user.mmap(_PAGE)
        number = 0
        while not done:
            number += 1
            if key is not None:
                user.store(pointer, key.to_bytes(_WORD, "little"))
                lab.leave_pointer(key)
            lab.before()
            on.machine.kernel.stall()
            lab.after(f"beside the victim, {number}")
            if number % _SLOWNESS == 0:
                user.compute(1)

    @on.machine.process(name="victim", cpu=1, pinned=True, cookie=_COOKIE)
    def victim(user: "User") -> None:
        address = user.mmap(_PAGE)
        if key is None:
            user.store(address, on.secret)
            lab.register = address
        for stride in _STRIDES:
            on.stride(stride)
            if key is None:
                on.use_own_secret(user, address)
            else:
                pages = user.mmap(2 * _PAGE)
                on.system_call(lambda pages=pages: on.use_key(key, pages))  # type: ignore[misc]
            on.stride(1)
            user.compute(_BETWEEN)
        done.append(True)


class _NmiAfter(Observer):
    """Raises an NMI after one micro-operation that it has not chosen before, each time that it is armed."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self._seen: set[str] = set()
        self.armed = False

    def micro_op(self, cpu: int, path: str, effect: "Effect | None") -> None:  # noqa: ARG002
        """Take note of the place, and come in between there."""
        if self.armed and path not in self._seen:
            self._seen.add(path)
            self.armed = False
            self._machine.inject_nmi(cpu)


def _nmi(on: Play) -> None:
    lab, machine, key = on.lab, on.machine, _kernel_secret(on)
    nmi = _NmiAfter(machine)
    machine.kernel.observers.append(nmi)
    machine.on_nmi(lambda _cpu: lab.handle(machine.kernel.access.load(key, _WORD)))
    lab.register = None

    @machine.process(name="attacker")
    def attacker(user: "User") -> None:
        for number in range(_MOST_STEPS):
            lab.before()
            nmi.armed = True
            on.system_call(lambda: machine.kernel.access.load(key, _WORD))
            user.compute(1)
            lab.after(f"after system call {number + 1}")
            if nmi.armed:
                return  # an NMI has come after every step


def _flip(on: Play) -> None:  # noqa: C901 - two programs and what they call
    lab, kernel = on.lab, on.machine.kernel
    with lab.setting_up():
        pfn = kernel.allocator.alloc_pages(GFP_KERNEL, _ORDER)
    key = lab.register = kernel.layout.virt(pfn * _PAGE)
    stage: list[str] = []

    def turn_sensitive() -> None:
        if kernel.protocol.config.asi:
            kernel.direct_map.set_direct_map_sensitive(pfn, 1 << _ORDER, sensitive=True)
            kernel.direct_map.pageblocks.set_sensitive(pfn, 1 << _ORDER, sensitive=True)
        kernel.access.store(key, on.secret)

    def branches() -> None:
        with kernel.function("keyctl_describe_key"):
            lab.check_index()
            on.descend(DEPTH)

    @on.machine.process(name="attacker", cpu=0, pinned=True)
    def attacker(user: "User") -> None:
        user.compute(1)  # its text is mapped before it counts
        for number in range(2 * ROUNDS):
            if number == ROUNDS:
                stage.append("used")
                while len(stage) == 1:
                    user.compute(1)
            lab.before()
            if lab.way.mechanism is Mechanism.STEER:
                on.system_call(branches)
            lab.after(f"{'after' if number >= ROUNDS else 'before'} the change, {number + 1}", key)

    @on.machine.process(name="victim", cpu=1, pinned=True)
    def victim(user: "User") -> None:
        while not stage:
            user.compute(1)
        on.system_call(turn_sensitive)
        stage.append("turned")


_PROGRAMS: "dict[Vector, Callable[[Play], None]]" = {
    Vector.USER_KERNEL: _user_kernel,
    Vector.USER_USER: _user_user,
    Vector.GUEST_HOST: _guest_host,
    Vector.GUEST_GUEST: _guest_guest,
    Vector.CROSS_THREAD: _beside,
    Vector.CROSS_CORE: _beside,
    Vector.NMI: _nmi,
    Vector.FLIP: _flip,
    Vector.NONSENSITIVE: _nonsensitive,
}
