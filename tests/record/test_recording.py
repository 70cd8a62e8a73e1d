"""Whole recordings: what was asked for is in them, and their replay says what is known of such workloads."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from asikit.record import RecordError, Recording
from asikit.replay import ReplayResult, load_policy, replay
from asikit.trace import TOUCH_KINDS, EventKind, Stacks, Trace
from tests.record.conftest import Run, run

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc]

SAMPLES = Path(__file__).parents[2] / "samples"


def replayed(trace: Path, policy: str) -> ReplayResult:
    """Replay under one policy."""
    return replay(Trace.open(trace), [load_policy(policy)])[0]


def reads(result: ReplayResult) -> tuple[int, int]:
    """Give the round trips and exits of pread64()."""
    (row,) = [row for row in result.by_entry if row.entry == "syscall pread64"]
    return row.round_trips, row.exits


@pytest.mark.needs_fio
def test_fio_under_the_denylist(fio: Run) -> None:
    """Each read that fio counts is a round trip with one exit, in the copy to the user, as a real ASI kernel has it."""
    issued = json.loads(fio.out)["jobs"][0]["read"]["total_ios"]
    assert issued == 2048
    result = replayed(fio.trace, "denylist-2025")
    round_trips, exits = reads(result)
    assert issued <= round_trips <= issued + 5  # the loader reads program headers by the same call
    assert 0.98 <= exits / round_trips <= 1.02
    copies = [
        cause for cause in result.causes if (cause.function, cause.caller) == ("_copy_to_iter", "copy_page_to_iter")
    ]
    assert copies[0].kind == "shmem"
    assert copies[0].exits >= 0.98 * issued


@pytest.mark.needs_fio
def test_fio_with_an_ephemeral_mapping(fio: Run) -> None:
    """With the page cache reached through an ephemeral mapping, reads run without an exit."""
    round_trips, exits = reads(replayed(fio.trace, "ephmap"))
    assert exits / round_trips < 0.02


@pytest.mark.needs_fio
def test_replay_is_repeatable(fio: Run) -> None:
    """One recording gives one replay, byte for byte."""
    one, other = (json.dumps(replayed(fio.trace, "denylist-2025").to_dict()) for _ in range(2))
    assert one == other


def test_kvm(tmp_path: Path, compiled: Callable[[Path], str]) -> None:
    """VM exits are those that the guest's program makes, and its own accesses are not taken for the kernel's."""
    made = run(
        Recording((compiled(SAMPLES / "kvm_guest.c"), "4"), modules=("kvm_amd",), bare=True), tmp_path / "kvm.asitrace"
    )
    assert made.out == "128 port writes handled here, 4 CPUID instructions by the kernel\n"
    events = pl.concat(list(Trace.open(made.trace).events()))
    kind = events["kind"].to_numpy()
    exits, entries = (np.flatnonzero(kind == wanted) for wanted in (EventKind.VM_EXIT, EventKind.VM_ENTRY))
    assert np.array_equal(entries + 1, exits)  # on one CPU nothing at all happens between the two
    # Ports, CPUID and HLT; nested page faults for 16 data pages and the code.
    own = 128 + 4 + 1 + 17
    interrupts = np.count_nonzero(np.isin(kind, [EventKind.NESTED_INTERRUPT, EventKind.ENTRY_INTERRUPT]))
    assert own <= len(exits) <= own + interrupts
    assert not np.isin(kind[entries + 1], list(TOUCH_KINDS)).any()
    names = {row.entry for row in replayed(made.trace, "denylist-2025").by_entry}
    assert {"vm exit 123 ioio", "vm exit 114 cpuid", "vm exit 120 hlt"} <= names
    assert Trace.open(made.trace).meta["vm_exits"]["120"] == "hlt"


def test_module_text(tmp_path: Path) -> None:
    """Of a file system that is a module, fetches of its text lead the causes where that text is not mapped."""
    script = (
        "mkdir -p /tmp/l /tmp/u /tmp/w /tmp/m; echo hello > /tmp/l/f; "
        "mount -t overlay overlay -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w /tmp/m || exit 1; "
        "i=0; while [ $i -lt 100 ]; do i=$((i+1)); read x < /tmp/m/f; done; echo $x"
    )
    made = run(Recording(("sh", "-c", script), modules=("overlay",), bare=True), tmp_path / "overlay.asitrace")
    assert made.out == "hello\n"
    first = replayed(made.trace, "no-module-text").causes[0]
    assert (first.access, first.region, first.function) == ("fetch", "modules", "ovl_read_iter")
    causes = replayed(made.trace, "denylist-2025").causes
    assert not any(cause.region == "modules" and cause.access == "fetch" for cause in causes)
    assert "ovl_read_iter" in Trace.open(made.trace).table("symbols").filter(module="overlay")["name"].to_list()


def test_root(tmp_path: Path) -> None:
    """A folder becomes the guest's root: its programs and files are there, on ext4, and the folder stays as it is."""
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    for folder in ("proc", "sys", "dev", "tmp"):
        (root / folder).mkdir()
    (root / "bin").symlink_to("usr/bin")
    shutil.copy(str(shutil.which("busybox")), root / "usr/bin/busybox")
    for applet in ("sh", "cat", "grep"):
        (root / "usr/bin" / applet).symlink_to("/bin/busybox")
    (root / "message").write_text("from the root\n")
    script = "cat /message; grep ' / ' /proc/mounts; echo x > /new; cat /new"
    made = run(Recording(("sh", "-c", script), root=root), tmp_path / "root.asitrace")
    message, mount, new = made.out.splitlines()
    assert (message, mount.split()[1:3], new) == ("from the root", ["/", "ext4"], "x")
    assert not (root / "new").exists()
    pages = Trace.open(made.trace).table("pages")
    assert pages.filter(kind="page_cache", cache="ext4").height > 0


@pytest.mark.slow
def test_twice_and_at_once(tmp_path: Path) -> None:
    """Two recordings of the same at the same time do not disturb each other, and are nearly equal."""
    made: dict[int, Run] = {}

    def recording(number: int) -> None:
        made[number] = run(
            Recording(("sh", "-c", "ls /proc/self > /dev/null; echo done"), bare=True), tmp_path / f"{number}.asitrace"
        )

    threads = [threading.Thread(target=recording, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [made[number].out for number in range(2)] == ["done\n"] * 2
    one, other = (made[number].done.events for number in range(2))
    assert abs(one - other) <= 0.02 * one
    counts = [pl.concat(list(Trace.open(made[number].trace).events()))["kind"].value_counts() for number in range(2)]
    calls = [dict(count.iter_rows())[EventKind.ENTRY_SYSCALL] for count in counts]
    assert calls[0] == calls[1]


def test_exit_status_output_and_environment(tmp_path: Path) -> None:
    """The workload's two outputs come apart and byte for byte, and its exit status is told."""
    include = tmp_path / "include"
    include.mkdir()
    (include / "me").write_text("x")
    script = rf"printf 'a\000\r\n'; echo oops >&2; [ -e {include}/me ] || exit 9; kill -15 $$"
    made = run(Recording(("sh", "-c", script), include=(include,), bare=True), tmp_path / "t.asitrace")
    assert (made.out, made.err, made.done.exit_status) == ("a\0\r\n", "oops\n", 128 + 15)


def test_program_that_cannot_run(tmp_path: Path) -> None:
    """A program that the guest's kernel would refuse is named, and no trace is left."""
    odd = tmp_path / "odd"
    odd.write_text("#!/no/such/interpreter\n")
    odd.chmod(0o755)
    with pytest.raises(RecordError, match=f"^{odd}: its first line names '/no/such/interpreter'"):
        run(Recording((str(odd),), bare=True), tmp_path / "t.asitrace")
    assert not (tmp_path / "t.asitrace").exists()


def test_cpusets_mark_no_allocation(tmp_path: Path) -> None:
    """Page tables are no user data, also if the workload does what a container engine does to have a cpuset."""
    script = """
        cd /sys/fs/cgroup; mkdir outer; echo +pids > cgroup.subtree_control
        echo +cpuset > cgroup.subtree_control; mkdir inner; echo $$ > inner/cgroup.procs
        exec cat /etc/passwd
    """
    made = run(Recording(("sh", "-c", script), bare=True), tmp_path / "cpuset.asitrace")
    assert "root:" in made.out
    trace = Trace.open(made.trace)
    hardwall = trace.meta["gfp_flags"]["__GFP_HARDWALL"]
    stacks = Stacks(trace)
    tables = [
        gfp
        for gfp, stack in trace.table("allocations").select("gfp", "stack").iter_rows()
        if "pgd_alloc" in stacks.names(stack)
    ]
    assert tables
    assert not any(gfp & hardwall for gfp in tables)
