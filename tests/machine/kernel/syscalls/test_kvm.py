"""Guests: memory of their own, VM exits in the numbers that arithmetic gives, and what their VMM sees of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from asikit.machine.kernel import Machine, Observer
from asikit.machine.kernel.kvm.vcpu import SvmExit
from asikit.machine.mm import Gfp, MapFlags, Prot
from asikit.machine.uapi.abi import KvmExit, KvmIoctl, OpenFlag
from asikit.trace import PageKind
from tests.machine.kernel.syscalls.running import run

if TYPE_CHECKING:
    from asikit.machine.user.guest import Guest, GuestProgram
    from asikit.machine.user.user import User
    from asikit.machine.user.virtual_machine import VmExit

PAGE = 4096
both = pytest.mark.parametrize("asi", [True, False], ids=["asi", "no-asi"])


def exits(machine: Machine) -> Counter[str]:
    """Return how many VM exits there were, by name."""
    counts = Counter[str]()
    for (kind, number), (round_trips, _, _) in machine.report().by_entry.items():
        if kind == "vm_exit":
            counts[SvmExit(number).name] += round_trips
    return counts


@both
def test_exits_are_counted_by_arithmetic(*, asi: bool) -> None:
    """One violation for each new page, one exit for each CPUID, VMMCALL, port access and HLT; computing has none."""
    pages, cpuids, calls, ports = 7, 11, 5, 3

    def guest(guest: Guest) -> None:
        for page in range(pages):
            guest.store(page * PAGE + 100, b"new")
            guest.store(page * PAGE + 200, b"mapped")
            guest.load(page * PAGE, 10)
        for _ in range(cpuids):
            guest.cpuid()
        for _ in range(calls):
            guest.hypercall(1)
        for _ in range(ports):
            guest.outb(0x3F8, 65)
        guest.compute(40)
        guest.halt()

    seen: list[VmExit] = []

    def vmm(user: User) -> None:
        vcpu = user.create_vm(64 * PAGE).vcpu(guest)
        while not seen or not seen[-1].halted:
            seen.append(vcpu.run())

    machine, _ = run(vmm, asi=asi, timer_period=1 << 40)
    assert exits(machine) == {"NPF": pages, "CPUID": cpuids, "VMMCALL": calls, "IOIO": ports, "HLT": 1}
    assert [stop.reason for stop in seen] == [KvmExit.IO] * ports + [KvmExit.HLT]
    assert {stop.data for stop in seen[:-1]} == {b"A"}


@both
def test_guest_memory_is_the_vmms_and_nobody_elses(*, asi: bool) -> None:
    """What the VMM writes the guest reads and the other way round; two guests with the same addresses share nothing."""
    seen: dict[str, bytes] = {}

    def guest(name: str) -> GuestProgram:
        def program(guest: Guest) -> None:
            seen[f"{name} finds"] = guest.load(PAGE - 4, 8)
            guest.store(2 * PAGE, name.encode())
            guest.halt()
            seen[f"{name} finds later"] = guest.load(2 * PAGE, 8)

        return program

    def vmm(user: User) -> None:
        for name in ("first", "other"):
            machine = user.create_vm(4 * PAGE)
            user.store(machine.address + PAGE - 4, f"for{name}".encode())
            vcpu = machine.vcpu(guest(name))
            vcpu.run()
            seen[f"vmm finds in {name}"] = user.load(machine.address + 2 * PAGE, 8)
            user.store(machine.address + 2 * PAGE, b"answer")
            vcpu.run()

    run(vmm, asi=asi)
    assert seen == {
        "first finds": b"forfirst",
        "vmm finds in first": b"first\0\0\0",
        "first finds later": b"answer\0\0",
        "other finds": b"forother",
        "vmm finds in other": b"other\0\0\0",
        "other finds later": b"answer\0\0",
    }


def test_devices_answer() -> None:
    """Port and memory-mapped reads give what the VMM replies; unknown hypercalls give -KVM_ENOSYS."""
    seen: list[object] = []

    def guest(guest: Guest) -> None:
        guest.store(1 << 30, b"\x01\x02")
        seen.extend([guest.load(1 << 30, 4), guest.inb(0x60), guest.hypercall(1), guest.hypercall(77)])

    stops: list[VmExit] = []

    def vmm(user: User) -> None:
        vcpu = user.create_vm(PAGE).vcpu(guest)
        reply = b""
        while not (stop := vcpu.run(reply)).halted:
            stops.append(stop)
            reply = bytes([len(stops)]) * stop.size

    run(vmm)
    assert seen == [b"\x02\x02\x02\x02", 3, 0, -1000]
    assert [(stop.reason, stop.address, stop.port, stop.size, stop.data) for stop in stops] == [
        (KvmExit.MMIO, 1 << 30, 0, 2, b"\x01\x02"),
        (KvmExit.MMIO, 1 << 30, 0, 4, b""),
        (KvmExit.IO, 0, 0x60, 1, b""),
    ]


@both
def test_a_hypercall_of_a_scenarios_own(*, asi: bool) -> None:
    """Its handler runs in the VMM's thread, in process context: it may reach what the VMM has not touched yet."""
    seen: list[object] = []
    where: list[int] = []

    def vmm(user: User) -> None:
        def handler() -> int:
            assert user._kernel.current.comm == "vmm"
            seen.append(user._kernel.uaccess.from_user(where[0], 8))
            return -22

        def guest(guest: Guest) -> None:
            guest.store(PAGE, b"written")
            seen.append(guest.hypercall(9, handler=handler))
            seen.append(guest.load(PAGE, 7))

        vm = user.create_vm(3 * PAGE)
        where.append(vm.address + 2 * PAGE)
        vcpu = vm.vcpu(guest)
        while not vcpu.run().halted:
            pass

    run(vmm, asi=asi)
    assert seen == [bytes(8), -22, b"written"]


@both
def test_guest_follows_changes_of_the_vmms_memory(*, asi: bool) -> None:
    """After munmap KVM_RUN fails with EFAULT; after a new mapping and after fork the guest sees what its VMM sees."""
    seen: list[object] = []

    def guest(guest: Guest) -> None:
        guest.store(0, b"before")
        guest.halt()
        seen.append(guest.load(0, 6))
        guest.store(0, b"guest!")

    def vmm(user: User) -> None:
        machine = user.create_vm(2 * PAGE)
        vcpu = machine.vcpu(guest)
        vcpu.run()
        user.munmap(machine.address, PAGE)
        try:
            vcpu.run()
        except OSError as error:
            seen.append(error.errno)
        user.mmap(PAGE, flags=MapFlags.PRIVATE | MapFlags.ANONYMOUS | MapFlags.FIXED, address=machine.address)
        user.store(machine.address, b"after!")

        def child(user: User) -> int:
            user.store(machine.address, b"child!")
            return 0

        user.fork(child)
        user.wait()
        vcpu.run()
        seen.append(user.load(machine.address, 6))

    run(vmm, asi=asi)
    assert seen == [14, b"after!", b"guest!"]


def test_read_only_memory_of_the_vmm_is_read_only_for_the_guest() -> None:
    """A guest's store into memory that its VMM may only read is EFAULT for KVM_RUN; a load is fine."""
    seen: list[object] = []

    def guest(guest: Guest) -> None:
        seen.append(guest.load(0, 3))
        guest.store(0, b"x")

    def vmm(user: User) -> None:
        machine = user.create_vm(PAGE)
        user.store(machine.address, b"rom")
        user.mprotect(machine.address, PAGE, Prot.READ)
        try:
            machine.vcpu(guest).run()
        except OSError as error:
            seen.append(error.errno)

    run(vmm)
    assert seen == [b"rom", 14]


class _Kinds(Observer):
    """Kinds and gfp flags of frames that are allocated below a kernel function."""

    def __init__(self) -> None:
        self.machine: Machine | None = None
        self.sensitive: Counter[tuple[str, bool]] = Counter()

    def attached(self, machine: object) -> None:
        assert isinstance(machine, Machine)
        self.machine = machine

    def page_alloc(self, cpu: int, pfn: int, order: int, gfp: Gfp, migratetype: int) -> None:
        assert self.machine is not None
        page = self.machine.kernel.allocator.page(pfn)
        if "kvm_tdp_page_fault" in self.machine.kernel.running_function():
            self.sensitive[page.kind, bool(gfp & Gfp.SENSITIVE)] += 1


def test_nested_page_tables_are_nonsensitive_and_guest_memory_is_not() -> None:
    """A violation allocates tables for KVM and a page for the guest: only the page is sensitive."""

    def guest(guest: Guest) -> None:
        guest.store(0, b"one")
        guest.store(PAGE, b"two")

    machine = Machine(debug=True)
    kinds = _Kinds()
    machine.observe(kinds)
    machine.process(lambda user: user.create_vm(2 * PAGE).vcpu(guest).run())
    machine.run()
    tables = kinds.sensitive[PageKind.PAGE_TABLE, False]
    assert kinds.sensitive == {(PageKind.PAGE_TABLE, False): tables, (PageKind.ANON, True): 2}
    assert tables >= 3


@both
@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_interrupts_take_the_cpu_from_a_guest(cpus: int, seed: int, *, asi: bool) -> None:
    """A guest that never exits of itself is interrupted by the timer, and other processes run beside it."""
    order: list[str] = []

    def vmm(user: User) -> None:
        def guest(guest: Guest) -> None:
            guest.compute(3000)
            order.append("guest")

        user.create_vm(PAGE).vcpu(guest).run()

    machine = Machine(debug=True, asi=asi, cpus=cpus, seed=seed, timer_period=300)
    machine.process(vmm, cpu=0, pinned=True)

    def other(user: User) -> None:
        user.compute(400)
        order.append("process")

    machine.process(other, cpu=0, pinned=True)
    machine.run()
    assert order == ["process", "guest"]
    assert exits(machine)["INTR"] >= 9


def test_nmi_in_a_guest_is_an_exit_and_then_the_hosts() -> None:
    """An NMI leaves the guest, and the host's handler takes it."""
    taken: list[int] = []
    machine = Machine(debug=True)
    machine.on_nmi(taken.append)

    def vmm(user: User) -> None:
        def guest(guest: Guest) -> None:
            guest.compute(10)
            machine.inject_nmi(0)
            guest.compute(10)

        user.create_vm(PAGE).vcpu(guest).run()

    machine.process(vmm)
    machine.run()
    assert (taken, exits(machine)["NMI"]) == ([0], 1)


@both
@pytest.mark.parametrize(("cpus", "smt"), [(2, False), (2, True)])
@pytest.mark.parametrize("seed", range(3))
def test_two_virtual_cpus_of_one_machine(cpus: int, seed: int, *, smt: bool, asi: bool) -> None:
    """Two threads run a virtual CPU each on the same memory; what one writes the other waits for."""

    def first(guest: Guest) -> None:
        guest.store_u64(0, 41)
        while guest.load_u64(8) == 0:
            guest.compute(1)

    def second(guest: Guest) -> None:
        while guest.load_u64(0) == 0:
            guest.compute(1)
        guest.store_u64(8, guest.load_u64(0) + 1)

    def vmm(user: User) -> int:
        vm = user.create_vm(PAGE)

        def runs_second(thread: User) -> None:
            vm.vcpu(second, user=thread).run()

        tid = user.thread(runs_second)
        vm.vcpu(first).run()
        user.join(tid)
        return user.load_u64(vm.address + 8)

    _, process = run(vmm, cpus=cpus, smt=smt, seed=seed, asi=asi, timer_period=500)
    assert process.exit_code == 42


def test_killing_a_vmm_ends_its_guest() -> None:
    """exit() in another thread ends a guest that runs for ever."""

    def vmm(user: User) -> None:
        def guest(guest: Guest) -> None:
            while True:
                guest.compute(1)

        user.thread(lambda thread: thread.create_vm(PAGE).vcpu(guest).run())
        user.compute(1000)
        user.exit(6)

    _, process = run(vmm, timer_period=200)
    assert process.exit_code == 6


def test_errors_of_the_api() -> None:
    """What is not KVM's, not aligned, overlaps, or comes from another process, is refused as Linux does."""
    seen: list[int] = []

    def attempt(user: User, fd: int, request: int, argument: int = 0) -> None:
        seen.append(user.syscall(16, fd, request, argument))

    def vmm(user: User) -> None:
        device = user.open("/dev/kvm", OpenFlag.RDWR)
        attempt(user, device, KvmIoctl.GET_API_VERSION)
        attempt(user, device, KvmIoctl.RUN)
        vm = user.ioctl(device, KvmIoctl.CREATE_VM)
        attempt(user, vm, KvmIoctl.RUN)
        attempt(user, vm, KvmIoctl.SET_USER_MEMORY_REGION, 16)
        area = user.mmap(4 * PAGE)
        user.set_guest_memory(vm, area, 2 * PAGE)
        for address, size, base in ((area + 8, PAGE, 1 << 20), (area, PAGE, PAGE)):
            try:
                user.set_guest_memory(vm, address, size, base=base, slot=1)
            except OSError as error:
                seen.append(error.errno or 0)

        def child(user: User) -> int:
            return -user.syscall(16, vm, KvmIoctl.SET_USER_MEMORY_REGION, area)

        user.fork(child)
        seen.append(user.wait()[1])

    run(vmm)
    assert seen == [12, -22, -25, -14, 22, 17, 5]


def test_a_guests_mistake_ends_the_run_and_says_where() -> None:
    """An exception in a guest's program comes out of run(), with the guest's name."""

    def guest(guest: Guest) -> None:
        raise LookupError(f"nothing at {guest.load(0, 1)!r}")

    with pytest.raises(LookupError, match="nothing at") as caught:
        run(lambda user: user.create_vm(PAGE).vcpu(guest).run())
    assert "in lambda vm 1 vcpu 1" in caught.value.__notes__[0]
