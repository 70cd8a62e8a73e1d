"""Counts on small traces, worked out by hand from the mechanism."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from asikit.protocol import AsiClass
from asikit.replay import EntryRow, PolicyError, load_policy
from asikit.trace import TlbFlush
from tests.builders import TraceBuilder
from tests.replay.running import GFP_KERNEL, GFP_USER, policy, run, written

if TYPE_CHECKING:
    from pathlib import Path

USERSPACE = frozenset({AsiClass.USERSPACE})
KVM = frozenset({AsiClass.KVM})
COPY = ("copy_user_generic_unrolled", "_copy_to_iter", "copy_page_to_iter", "filemap_read")


def reads(count: int, *, gfp: int = GFP_USER) -> TraceBuilder:
    """System calls that each read one page cache page."""
    b = TraceBuilder()
    for number in range(count):
        b.entry_syscall(0).touch_read(kind="page_cache", gfp=gfp, label=str(number), stack=COPY)
        b.touch_read(kind="slab", gfp=GFP_KERNEL).touch_write(region="user", kind="anon").return_user()
    return b


def test_denylist(tmp_path: Path) -> None:
    """Each read of user data exits once, and the return enters: two CR3 writes, one flush of each kind."""
    result = run(reads(5), tmp_path)
    assert (result.round_trips, result.round_trips_without_exit, result.exits) == (5, 0, 5)
    assert result.exits_by_reason == {
        "page_fault": 5,
        "user_ret": 0,
        "context_switch": 0,
        "switch_mm": 0,
        "tlb_flush": 0,
        "misc": 0,
    }
    assert result.flushes == {"ibpb": 5, "rsb_fill": 5, "l1d_flush": 5, "verw": 5}
    assert (result.cr3_writes, result.cr3_writes_noflush, result.tlb_flushes, result.stuns) == (10, 0, 10, 0)


def test_one_exit_a_round_trip(tmp_path: Path) -> None:
    """After the exit everything is mapped: later touches of the same round trip are free."""
    b = TraceBuilder().entry_syscall()
    for label in "abc":
        b.touch_read(kind="anon", gfp=GFP_USER, label=label)
    result = run(b.return_user(), tmp_path)
    assert (result.round_trips, result.exits) == (1, 1)


def test_kernel_memory_is_free(tmp_path: Path) -> None:
    """Memory that the kernel allocated for itself is mapped: no exit, no flush, no CR3 write."""
    result = run(reads(5, gfp=GFP_KERNEL), tmp_path)
    assert (result.round_trips, result.round_trips_without_exit, result.exits, result.cr3_writes) == (5, 5, 0, 0)


def test_unrecorded(tmp_path: Path) -> None:
    """Of pages older than the recording, those of user data's kinds are sensitive and others are not."""
    b = TraceBuilder()
    for kind in ("anon", "page_cache", "shmem", "slab", "kernel", "page_table", "reserved"):
        b.entry_syscall().touch_read(kind=kind).return_user()
    assert [cause.kind for cause in run(b, tmp_path).causes] == ["anon", "page_cache", "shmem"]


def test_slab_of_gfp_user(tmp_path: Path) -> None:
    """Slab pages are nonsensitive even where the call that made them had GFP_USER."""
    b = TraceBuilder().entry_syscall().touch_read(kind="slab", cache="kmalloc-64", gfp=GFP_USER).return_user()
    assert run(b, tmp_path).exits == 0


def test_allowlist(tmp_path: Path) -> None:
    """All is sensitive but what has an annotation: of slab, only the annotated caches are mapped."""
    b = TraceBuilder()
    for cache in ("task_struct", "kmalloc-64", "dentry"):
        b.entry_syscall().touch_read(kind="slab", cache=cache, gfp=GFP_KERNEL, stack=("f",)).return_user()
    b.entry_syscall().touch_read(region="kernel_image", kind="reserved").return_user()
    result = run(b, tmp_path, "allowlist-2022")
    assert (result.round_trips, result.round_trips_without_exit) == (4, 2)
    assert [cause.cache for cause in result.causes] == ["dentry", "kmalloc-64"]


def test_ephmap(tmp_path: Path) -> None:
    """File reads use the ephemeral mapping; writes, and reads by other code, exit as before."""
    b = reads(3)
    b.entry_syscall().touch_write(
        kind="page_cache", gfp=GFP_USER, label="w", stack=("copy_page_from_iter",)
    ).return_user()
    b.entry_exception().touch_read(kind="page_cache", gfp=GFP_USER, label="c", stack=("copy_page",)).return_user()
    result = run(b, tmp_path, "ephmap")
    assert (result.ephmap_operations, result.exits, result.round_trips_without_exit) == (3, 2, 3)


def test_ephmap_for_writes(tmp_path: Path) -> None:
    """A policy may let writes through as well."""
    text = 'inherits = "ephmap"\n[ephmap]\naccess = ["read", "write"]\nfunctions = ["...", "copy_page_from_*"]\n'
    b = TraceBuilder().entry_syscall()
    b.touch_write(kind="page_cache", gfp=GFP_USER, stack=("copy_page_from_iter_atomic",)).return_user()
    result = run(b, tmp_path, load_policy(written(text, tmp_path)))
    assert (result.ephmap_operations, result.exits) == (1, 0)


def test_ephmap_when_unrestricted(tmp_path: Path) -> None:
    """After an exit the direct map is there, and no ephemeral mapping is needed."""
    b = TraceBuilder().entry_syscall().touch_write(kind="anon", gfp=GFP_USER)
    b.touch_read(kind="page_cache", gfp=GFP_USER, stack=COPY).return_user()
    result = run(b, tmp_path, "ephmap")
    assert (result.ephmap_operations, result.exits) == (0, 1)


def test_no_module_text(tmp_path: Path) -> None:
    """Fetches of module text exit; reads of module data do not."""
    b = TraceBuilder().entry_syscall().touch_read(region="modules", kind="vmalloc")
    b.touch_fetch(region="modules", kind="vmalloc", stack=("ext4:ext4_file_read_iter", "vfs_read")).return_user()
    (cause,) = run(b, tmp_path, "no-module-text").causes
    assert (cause.function, cause.caller, cause.access, cause.region) == (
        "ext4_file_read_iter",
        "vfs_read",
        "fetch",
        "modules",
    )


@pytest.mark.parametrize(
    ("under", "memblock"), [("denylist-2025", 0), ("ephmap", 0), ("allowlist-2022", 0), ("no-boot-memory", 1)]
)
def test_memory_from_boot(under: str, memblock: int, tmp_path: Path) -> None:
    """What boot handed out is mapped or not, by policy; a pool of huge pages that it filled is user memory."""
    places: dict[str, tuple[dict[str, Any], int]] = {
        "dentry hash": ({"kind": "reserved"}, memblock),
        "per-CPU": ({"region": "percpu", "kind": "reserved"}, 0),
        "struct pages": ({"region": "vmemmap", "kind": "reserved"}, 0),
        "kernel image": ({"region": "kernel_image", "kind": "reserved"}, 0),
        "pool": ({"kind": "hugetlb"}, 1),
        "huge page": ({"kind": "hugetlb", "gfp": GFP_USER}, 1),
    }
    for name, (place, exits) in places.items():
        b = TraceBuilder().return_user().entry_syscall().touch_write(**place).return_user()
        assert run(b, tmp_path / name, under).exits == exits, name


def test_blanket(tmp_path: Path) -> None:
    """Predictors are flushed on each entry, data on each return; PTI writes CR3 on both; nothing exits."""
    result = run(reads(5), tmp_path, "blanket")
    assert result.flushes == {"ibpb": 5, "rsb_fill": 5, "l1d_flush": 5, "verw": 5}
    assert (result.round_trips, result.exits, result.cr3_writes) == (5, 0, 10)


def test_blanket_without_pti(tmp_path: Path) -> None:
    """Without PTI the blanket mitigation writes no CR3."""
    assert run(reads(5), tmp_path, policy("blanket", pti=False)).cr3_writes == 0


def test_off(tmp_path: Path) -> None:
    """Without a mechanism there is nothing but round trips."""
    result = run(reads(5), tmp_path, "off")
    assert (result.round_trips, result.exits, result.cr3_writes, result.tlb_flushes, result.stuns) == (5, 0, 0, 0, 0)
    assert result.flushes == {}
    assert result.causes == ()


def test_smt(tmp_path: Path) -> None:
    """With a sibling thread each exit stuns it."""
    assert run(reads(5), tmp_path, policy(smt=True)).stuns == 5


def test_noflush(tmp_path: Path) -> None:
    """With NOFLUSH the CR3 writes keep what is up to date in the TLB; without, each discards."""
    keeping, discarding = run(reads(5), tmp_path / "a", policy(noflush=True)), run(reads(5), tmp_path / "b")
    assert keeping.cr3_writes == discarding.cr3_writes == 10
    assert keeping.cr3_writes_noflush > discarding.cr3_writes_noflush == 0
    assert keeping.tlb_flushes < discarding.tlb_flushes


def test_nested_page_fault(tmp_path: Path) -> None:
    """Every page fault in kernel mode exits, also one that is not ASI's; other nested entries do not."""
    b = TraceBuilder().entry_syscall().nested_interrupt().nested_return().nested_nmi().nested_return()
    b.nested_exception(14).nested_return().return_user()
    result = run(b, tmp_path)
    (cause,) = result.causes
    assert (result.exits, cause.reason, cause.region, cause.kind, cause.allocated_by) == (1, "page_fault", "", "", "")


def test_interrupt_that_exits(tmp_path: Path) -> None:
    """A sensitive touch in an interrupt from user mode exits, and the interrupt's end enters again."""
    b = TraceBuilder().entry_interrupt(236).nested_nmi().touch_read(kind="anon", gfp=GFP_USER).nested_return()
    b.return_user(iret=True).entry_interrupt(236).return_user(iret=True)
    result = run(b, tmp_path)
    assert (result.exits, result.cr3_writes) == (1, 2)
    assert result.by_entry == (EntryRow("interrupt 236", round_trips=2, exits=1, without_exit=1),)


def switching(*events: str) -> TraceBuilder:
    """A system call during which the CPU goes to another task, and back, by the ``task`` and ``mm`` events given."""
    b = TraceBuilder().task_switch("a", pid=1).return_user().entry_syscall(24)
    for number, comm in ((2, "b"), (1, "a")):
        for event in events:
            stack = ("schedule", f"{event}_{number}")
            if event == "mm":
                b.mm_switch(number, stack=stack)
            else:
                b.task_switch(comm, pid=number, stack=stack)
    return b.return_user()


@pytest.mark.parametrize(
    ("events", "exit_on", "reasons"),
    [
        (("task",), "context_switch", {"context_switch": 1}),
        (("task",), "mm_switch", {}),
        (("task", "mm"), "context_switch", {"context_switch": 1}),
        (("task", "mm"), "mm_switch", {"switch_mm": 1}),
        # Version 1 of the format: as many exits, where the events say that they are.
        (("mm", "task"), "context_switch", {"switch_mm": 1}),
        (("mm", "task"), "mm_switch", {"switch_mm": 1}),
    ],
)
def test_context_switch(events: tuple[str, ...], exit_on: str, reasons: dict[str, int], tmp_path: Path) -> None:
    """Every switch exits, or only one that changes the mm, as the policy says; the first event of a switch does."""
    text = f'inherits = "denylist-2025"\n[mechanism]\nexit_on = "{exit_on}"\n'
    result = run(switching(*events), tmp_path, load_policy(written(text, tmp_path)))
    assert {reason: exits for reason, exits in result.exits_by_reason.items() if exits} == reasons
    assert result.exits == sum(reasons.values())
    by_mm = exit_on == "mm_switch" or events[0] == "mm"
    assert {cause.caller for cause in result.causes} <= {"mm_2" if by_mm else "task_2"}


@pytest.mark.parametrize("stack", [("switch_mm_irqs_off", "exec_mmap"), ("switch_mm_irqs_off", "flush_tlb_func")])
def test_switch_of_mm_alone(stack: tuple[str, str], tmp_path: Path) -> None:
    """What loads other page tables without a switch of tasks exits for a reason of its own: exec, the end of an mm."""
    b = TraceBuilder().return_user().entry_syscall(59).mm_switch(2, stack=stack).return_user()
    result = run(b, tmp_path)
    assert result.exits_by_reason["switch_mm"] == result.exits == 1
    assert [(cause.reason, cause.function, cause.caller) for cause in result.causes] == [("switch_mm", *stack)]


@pytest.mark.parametrize(
    ("asked", "exits"),
    [
        (None, {TlbFlush.USER}),
        ("true", {TlbFlush.USER}),
        ("false", set()),
        ("[]", set()),
        ('["user", "user_range"]', {TlbFlush.USER, TlbFlush.USER_RANGE}),
        ('["...", "kernel", "kernel_range"]', {TlbFlush.USER, TlbFlush.KERNEL, TlbFlush.KERNEL_RANGE}),
    ],
)
def test_tlb_flushes(asked: str | None, exits: set[TlbFlush], tmp_path: Path) -> None:
    """A full flush of user addresses exits, as in the published code, and others as the policy says."""
    text = 'inherits = "denylist-2025"\n'
    if asked is not None:
        text += f"[mechanism]\nexit_on_tlb_flush = {asked}\n"
    loaded = load_policy(written(text, tmp_path))
    for flush in TlbFlush:
        b = TraceBuilder().return_user().entry_syscall(10).tlb_flush(flush).return_user()
        result = run(b, tmp_path / flush.name, loaded)
        assert result.exits == result.exits_by_reason["tlb_flush"] == (flush in exits), flush


def test_task_state_travels(tmp_path: Path) -> None:
    """A task preempted in an interrupt from user mode comes back, on another CPU, still to be re-entered."""
    b = TraceBuilder()
    b.task_switch("a", pid=1, cpu=0).return_user(cpu=0)
    b.task_switch("b", pid=2, cpu=1).return_user(cpu=1)
    b.entry_interrupt(cpu=0).nested_interrupt(cpu=0).task_switch("idle", pid=0, mm=0, cpu=0)
    b.entry_syscall(cpu=1).task_switch("a", pid=1, cpu=1).nested_return(cpu=1)
    b.touch_read(kind="anon", gfp=GFP_USER, cpu=1).return_user(iret=True, cpu=1)
    b.entry_syscall(cpu=1).touch_read(kind="anon", gfp=GFP_USER, cpu=1).return_user(cpu=1)
    result = run(b, tmp_path, policy(name="denylist-2025"))
    assert result.amended_events == 0
    assert result.exits_by_reason["page_fault"] == 1
    assert result.exits_by_reason["context_switch"] == 2


def test_kvm(tmp_path: Path) -> None:
    """KVM_RUN: system call, VM entry, exits handled restricted; user memory is missing from KVM's address space."""
    b = TraceBuilder().entry_syscall(16).vm_entry()
    b.vm_exit(0x400).touch_read(kind="slab", gfp=GFP_KERNEL).vm_entry()
    b.vm_exit(0x7B).touch_write(region="user", kind="anon").vm_entry()
    b.vm_exit(0x78).return_user()
    result = run(b, tmp_path)
    assert (result.round_trips, result.exits) == (4, 1)
    assert [(row.entry, row.exits) for row in result.by_entry] == [
        ("vm exit 123", 1),
        ("syscall ioctl", 0),
        ("vm exit 1024", 0),
        ("vm exit 120", 0),
    ]
    assert result.causes[0].region == "user"


@pytest.mark.parametrize(
    ("said", "emulator", "named"),
    [
        ({"120": "halt", "44": "mmio"}, "any", "vm exit 120 halt"),
        ({}, "QEMU emulator version 7.2", "vm exit 120"),
        (None, "QEMU emulator version 7.2", "vm exit 120 hlt"),
        (None, "any", "vm exit 120"),
        (None, None, "vm exit 120"),
    ],
)
def test_exit_names_are_the_traces(
    said: dict[str, str] | None, emulator: str | None, named: str, tmp_path: Path
) -> None:
    """A trace names its VM exits itself; one from before it did has SVM's names if QEMU's emulation wrote it."""
    b = TraceBuilder().entry_syscall(16).vm_entry().vm_exit(0x78).return_user()
    b.meta["machine"] = {key: value for key, value in b.meta["machine"].items() if key != "emulator"}
    b.meta["machine"] |= {"emulator": emulator} if emulator is not None else {}
    b.meta |= {"vm_exits": said} if said is not None else {}
    assert {row.entry for row in run(b, tmp_path).by_entry} == {named, "syscall ioctl"}


def test_classes(tmp_path: Path) -> None:
    """Entries from domains of a class that is not chosen are counted apart and have no transitions."""
    b = TraceBuilder().entry_syscall(16).touch_read(kind="anon", gfp=GFP_USER, label="a").vm_entry()
    b.vm_exit(0x400).touch_read(kind="anon", gfp=GFP_USER, label="b").vm_entry().vm_exit(0x78).return_user()
    b.entry_syscall(0).touch_read(kind="anon", gfp=GFP_USER, label="c").return_user()
    kvm, userspace = run(b, tmp_path / "k", classes=KVM), run(b, tmp_path / "u", classes=USERSPACE)
    assert (kvm.round_trips, kvm.unprotected_round_trips, kvm.exits_by_reason["page_fault"]) == (2, 2, 1)
    assert (userspace.round_trips, userspace.unprotected_round_trips) == (2, 2)
    assert {row.entry for row in userspace.by_entry} == {"syscall read", "syscall ioctl"}
    blanket = run(b, tmp_path / "b", "blanket", KVM)
    assert (blanket.flushes["ibpb"], blanket.flushes["verw"]) == (2, 2)


def test_begins_in_the_middle(tmp_path: Path) -> None:
    """Returns without entry, and the tail of nested entries, are no error and no round trip."""
    b = TraceBuilder().touch_read(kind="anon").nested_return().nested_return().return_user().return_user().vm_entry()
    b.entry_syscall().touch_read(kind="anon")
    result = run(b, tmp_path)
    assert (result.round_trips, result.exits) == (0, 1)
    assert result.by_entry == (EntryRow("syscall read", round_trips=0, exits=1, without_exit=0),)


def test_first_entry_is_restricted(tmp_path: Path) -> None:
    """A CPU whose first event is an entry came from untrusted code, so it was restricted."""
    b = TraceBuilder().entry_syscall().touch_read(kind="anon").return_user()
    result = run(b, tmp_path)
    assert (result.exits, result.amended_events) == (1, 1)


def test_overrides(tmp_path: Path) -> None:
    """What-if: a slab cache, or what one function allocates, made sensitive on top of the denylist."""
    b = TraceBuilder()
    b.entry_syscall().touch_read(kind="slab", cache="kmalloc-4k", gfp=GFP_KERNEL).return_user()
    b.entry_syscall().touch_read(kind="slab", cache="kmalloc-64", gfp=GFP_KERNEL).return_user()
    pipe = ("__alloc_pages", "alloc_pages", "pipe_write", "vfs_write")
    b.entry_syscall().touch_read(kind="kernel", gfp=GFP_KERNEL, allocated_by=pipe).return_user()
    text = 'inherits = "denylist-2025"\n[memory.sensitive]\ncaches = ["kmalloc-4*"]\nallocated_by = ["pipe_*"]\n'
    result = run(b, tmp_path, load_policy(written(text, tmp_path)))
    assert [(cause.cache, cause.allocated_by) for cause in result.causes] == [("", "pipe_write"), ("kmalloc-4k", "?")]


def test_unknown_flag(tmp_path: Path) -> None:
    """A gfp flag that the recorded kernel does not have is refused by file and key, with the nearest that it has."""
    text = '[memory.sensitive]\ngfp = ["__GFP_HARDWAL"]\n'
    path = written(text, tmp_path)
    with pytest.raises(PolicyError) as refusal:
        run(reads(1), tmp_path, load_policy(path))
    assert str(refusal.value) == (
        f'{path}: memory.sensitive.gfp: the recorded kernel has no flag "__GFP_HARDWAL"; '
        'the nearest is "__GFP_HARDWALL" (1 flags in the trace\'s meta.json)'
    )


def test_contradiction(tmp_path: Path) -> None:
    """A mechanism that cannot be is refused before the trace is read."""
    with pytest.raises(PolicyError) as refusal:
        run(reads(1), tmp_path, policy("blanket", smt=True))
    assert str(refusal.value) == "policy blanket: mechanism: the blanket mitigation disables SMT; set smt=False"
