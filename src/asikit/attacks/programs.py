"""Attack programs by position: how an attacker gets at whom, as programs on the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.attacks.beside import Alternating, cross_thread, sibling_guest, sibling_user
from asikit.attacks.places import GUEST_SECRET
from asikit.attacks.vectors import Vector
from asikit.attacks.victims import PAGE, WORD, Play, VictimWork
from asikit.attacks.vulnerability import Mechanism
from asikit.machine.kernel import Observer, RoundRobin
from asikit.machine.mm import GFP_KERNEL, GFP_USER
from asikit.threat import Code

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel import Guest, Interleaver, Machine, User
    from asikit.machine.mm import Gfp
    from asikit.protocol import Effect

__all__ = ["Play", "interleaver", "play"]

ROUNDS: Final = 3
"""How often an attacker tries that calls no kernel code."""
_WORKS: Final = (VictimWork.IDLE, VictimWork.FAULTS, VictimWork.SECRET)
"""What the kernel does in an attacker's rounds: in the first the attacker learns which branches there are."""
_GUEST_MEMORY: Final = 1 << 16
_HYPERCALL: Final = 9
"""KVM_HC_CLOCK_PAIRING (include/uapi/linux/kvm_para.h): one for which KVM reaches the guest's memory."""
_PORT: Final = 0x70
"""Of the device that a VMM emulates."""
_ORDER: Final = 9
"""Of a pageblock."""
_MOST_STEPS: Final = 80
"""More than a system call has micro-operations."""


def play(vector: Vector, on: Play) -> None:
    """Put an attack's programs onto a machine. One that cannot attack says why in the lab's evidence."""
    _PROGRAMS[vector](on)


def interleaver(vector: Vector) -> Interleaver:
    """Return who runs when: on two CPUs some steps each."""
    return Alternating() if vector.cpus > 1 else RoundRobin()


def _user_kernel(on: Play, gfp: Gfp = GFP_USER) -> None:
    """From a process to the kernel; memory that is allocated as user data is sensitive, other is not."""
    key = on.kernel_secret(gfp)

    @on.machine.process(name="attacker")
    def attacker(user: User) -> None:
        pointer = user.mmap(PAGE)
        for number, work in enumerate(_WORKS, 1):
            pages = user.mmap(2 * PAGE)  # before anything is left that the return from it flushes
            user.store(pointer, key.to_bytes(WORD, "little"))
            on.attacker.leave_pointer(key)
            on.attacker.before()
            on.call_for_work(key, work, pages)
            on.attacker.after(f"after system call {number}", key)


def _nonsensitive(on: Play) -> None:
    _user_kernel(on, GFP_KERNEL)


def _user_user(on: Play) -> None:
    lab = on.lab
    if lab.way.mechanism is Mechanism.BYPASS:
        _sandbox(on)
        return
    done: list[bool] = []

    @on.machine.process(name="attacker", cpu=0, pinned=True)
    def attacker(user: User) -> None:
        for number in range(ROUNDS):
            on.attacker.before()
            user.sched_yield()
            on.attacker.after(f"after the other process ran, {number + 1}")
        done.append(True)

    @on.machine.process(name="victim", cpu=0, pinned=True)
    def victim(user: User) -> None:
        address = user.mmap(PAGE)
        user.store(address, on.secret)
        lab.register = address
        while not done:
            on.use_own_secret(user, address)
            user.sched_yield()


def _sandbox(on: Play) -> None:
    """Code that a process keeps in a sandbox, in its own address space, after the process wiped a secret."""
    lab = on.lab

    @on.machine.process(name="sandbox")
    def process(user: User) -> None:
        address = user.mmap(PAGE)
        user.store(address, on.secret)
        on.handle(user.load(address, WORD))
        for number in range(ROUNDS):
            if lab.secret_paddr is not None:
                on.overwrite(lab.secret_paddr, on.secret)
            user.store(address, bytes(WORD))
            on.attacker.after(f"in the sandbox, {number + 1}")


def _guest_host(on: Play) -> None:
    """From a guest to the host's kernel: an interrupt's handler, and a hypercall's, in which loads may fault.

    What cannot have the kernel as victim has the other part of the host, the VMM in user mode.
    """
    if Code.KERNEL not in on.lab.way.victims:
        _guest_user(on)
        return
    machine, key = on.machine, on.kernel_secret()
    works: list[VictimWork] = []
    missing: list[int] = []
    machine.on_interrupt(lambda _cpu, _vector: on.use_key(key, works[-1]))

    def handler() -> int:
        on.use_key(key, works[-1], missing[0])
        return 0

    def attacker(guest: Guest) -> None:
        for number, work in enumerate(_WORKS, 1):
            works.append(work)
            guest.store(0, key.to_bytes(WORD, "little"))
            on.attacker.leave_pointer(key)
            on.attacker.before()
            if work is VictimWork.FAULTS:
                guest.hypercall(_HYPERCALL, handler=handler)
            else:
                machine.inject_interrupt(0)
                guest.compute(2)
            on.attacker.after(f"after VM exit {number}")

    @machine.process(name="vmm")
    def vmm(user: User) -> None:
        vm = user.create_vm(_GUEST_MEMORY)
        missing.append(vm.address + PAGE)  # memory of the guest's that nobody has touched yet
        vcpu = vm.vcpu(attacker)
        while not vcpu.run().halted:
            pass


def _guest_guest(on: Play) -> None:
    lab, machine = on.lab, on.machine
    lab.register = GUEST_SECRET
    done: list[bool] = []

    def attacker(guest: Guest) -> None:
        for number in range(ROUNDS):
            on.attacker.before()
            guest.halt()
            on.attacker.after(f"after the other guest ran, {number + 1}")
        done.append(True)

    def victim(guest: Guest) -> None:
        guest.store(GUEST_SECRET, on.secret)
        while not done:
            on.use(GUEST_SECRET, guest.load, guest.store)
            lab.pointer = GUEST_SECRET
            on.processor.user_function(Code.GUEST)
            lab.pointer = None
            guest.halt()

    for name, program in (("attacker", attacker), ("victim", victim)):

        @machine.process(name=f"vmm of {name}", cpu=0, pinned=True)
        def vmm(user: User, program: Callable[[Guest], None] = program) -> None:
            vcpu = user.create_vm(_GUEST_MEMORY).vcpu(program)
            while not done:
                vcpu.run()
                user.sched_yield()


def _guest_user(on: Play) -> None:
    """From a guest to its own VMM, which emulates a device for it, and has a secret that is not the guest's."""
    lab = on.lab

    def attacker(guest: Guest) -> None:
        for number in range(ROUNDS):
            on.attacker.before()
            guest.outb(_PORT, number)
            on.attacker.after(f"after its VMM ran, {number + 1}")

    @on.machine.process(name="vmm")
    def vmm(user: User) -> None:
        address = user.mmap(PAGE)
        user.store(address, on.secret)
        lab.register = address
        vcpu = user.create_vm(_GUEST_MEMORY).vcpu(attacker)
        while not vcpu.run().halted:
            on.use_own_secret(user, address)


class _NmiAfter(Observer):
    """Raises an NMI after one micro-operation that it has not chosen before, each time that it is armed."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._seen: set[str] = set()
        self.armed = False

    def micro_op(self, cpu: int, path: str, effect: Effect | None) -> None:
        """Take note of the place, and come in between there."""
        if self.armed and path not in self._seen:
            self._seen.add(path)
            self.armed = False
            self._machine.inject_nmi(cpu)


def _nmi(on: Play) -> None:
    lab, machine, key = on.lab, on.machine, on.kernel_secret()
    nmi = _NmiAfter(machine)
    machine.kernel.observers.append(nmi)
    if lab.way.mechanism is Mechanism.STEER:
        machine.on_nmi(lambda _cpu: on.branches())
    else:
        machine.on_nmi(lambda _cpu: on.use(key, machine.kernel.access.load, machine.kernel.access.store))
        lab.register = None  # nothing but the NMI's handler brings the secret anywhere

    @machine.process(name="attacker")
    def attacker(user: User) -> None:
        for number in range(_MOST_STEPS):
            on.attacker.before()
            nmi.armed = True
            on.system_call(lambda: machine.kernel.access.load(key, WORD))
            user.compute(1)
            on.attacker.after(f"after system call {number + 1}")
            if nmi.armed:
                return  # an NMI has come after every step
        lab.evidence.unfinished = f"{_MOST_STEPS} system calls are too few for an NMI after every step"


def _flip(on: Play) -> None:
    lab, kernel = on.lab, on.machine.kernel
    with lab.setting_up():
        pfn = kernel.allocator.alloc_pages(GFP_KERNEL, _ORDER)
    key = lab.register = kernel.layout.virt(pfn * PAGE)
    stage: list[str] = []

    def turn_sensitive() -> None:
        if kernel.protocol.config.asi:
            kernel.direct_map.set_direct_map_sensitive(pfn, 1 << _ORDER, sensitive=True)
            kernel.direct_map.pageblocks.set_sensitive(pfn, 1 << _ORDER, sensitive=True)
        kernel.access.store(key, on.secret)

    @on.machine.process(name="attacker", cpu=0, pinned=True)
    def attacker(user: User) -> None:
        user.compute(1)  # its text is mapped before it counts
        for number in range(2 * ROUNDS):
            if number == ROUNDS:
                stage.append("used")
                while len(stage) == 1:
                    user.compute(1)
            on.attacker.before()
            if lab.way.mechanism is Mechanism.STEER:
                on.system_call(on.branches)
            on.attacker.after(f"{'after' if number >= ROUNDS else 'before'} the change, {number + 1}", key)

    @on.machine.process(name="victim", cpu=1, pinned=True)
    def victim(user: User) -> None:
        while not stage:
            user.compute(1)
        on.system_call(turn_sensitive)
        stage.append("turned")


_PROGRAMS: Final[dict[Vector, Callable[[Play], None]]] = {
    Vector.USER_KERNEL: _user_kernel,
    Vector.USER_USER: _user_user,
    Vector.GUEST_HOST: _guest_host,
    Vector.GUEST_GUEST: _guest_guest,
    Vector.CROSS_THREAD: cross_thread,
    Vector.GUEST_USER: _guest_user,
    Vector.SIBLING_USER: sibling_user,
    Vector.SIBLING_GUEST: sibling_guest,
    Vector.CROSS_CORE: cross_thread,
    Vector.NMI: _nmi,
    Vector.FLIP: _flip,
    Vector.NONSENSITIVE: _nonsensitive,
}
