"""Causes: which frame names an exit, what is grouped together, and that the output is the same every time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from asikit.replay import ReplayError, load_policy, replay
from asikit.report.replay import cause_line
from asikit.trace import EventKind
from tests.builders import TraceBuilder, small_trace
from tests.replay.running import GFP_USER, policy, run, written

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("stack", "function", "caller"),
    [
        (("copy_user_generic_unrolled", "_copy_to_iter", "copy_page_to_iter"), "_copy_to_iter", "copy_page_to_iter"),
        (("rep_movs_alternative", "copyout", "_copy_to_iter", "x"), "_copy_to_iter", "x"),
        (("memcpy_erms", "copy_page_from_iter_atomic", "y"), "copy_page_from_iter_atomic", "y"),
        (("clear_page_erms", "get_page_from_freelist"), "clear_page_erms", "get_page_from_freelist"),
        (("copy_page", "wp_page_copy"), "copy_page", "wp_page_copy"),
        (("copy_user_generic_string.cold", "z"), "z", "?"),
        (("memcpy",), "memcpy", "?"),
        ((), "?", "?"),
    ],
)
def test_function(stack: tuple[str, ...], function: str, caller: str, tmp_path: Path) -> None:
    """The innermost frame that is no bare copy primitive names the exit; if all are, the leaf does."""
    b = TraceBuilder().entry_syscall().touch_read(kind="anon", gfp=GFP_USER, stack=stack).return_user()
    (cause,) = run(b, tmp_path).causes
    assert (cause.function, cause.caller) == (function, caller)


@pytest.mark.parametrize(
    ("stack", "function"),
    [
        (("__alloc_pages", "alloc_pages_vma", "shmem_alloc_folio", "x"), "shmem_alloc_folio"),
        (("__traceiter_mm_page_alloc", "__alloc_pages", "vma_alloc_folio", "do_anonymous_page"), "do_anonymous_page"),
        (("__alloc_pages", "allocate_slab", "___slab_alloc", "kmem_cache_alloc", "alloc_inode"), "alloc_inode"),
        (("__alloc_pages",), "__alloc_pages"),
        ((), "?"),
    ],
)
def test_allocated_by(stack: tuple[str, ...], function: str, tmp_path: Path) -> None:
    """The innermost frame outside the allocators names the allocation."""
    b = TraceBuilder().entry_syscall().touch_read(kind="anon", gfp=GFP_USER, allocated_by=stack).return_user()
    (cause,) = run(b, tmp_path).causes
    assert cause.allocated_by == function


def bpf_program(b: TraceBuilder) -> str:
    """Put a BPF program into a trace that the kernel has no name for any more; give an address in it."""
    place = b.place(region="bpf", kind="vmalloc")
    return f"{b.table('places')['vaddr'][place] + 0x40:#x}"


def test_bpf_program(tmp_path: Path) -> None:
    """A frame in a BPF program without a name is called so, whether it is fetched, touches or calls."""
    b = TraceBuilder()
    program = bpf_program(b)
    b.entry_syscall().touch_fetch(region="bpf", kind="vmalloc", stack=(program, "__seccomp_filter")).return_user()
    b.entry_syscall().touch_read(kind="anon", gfp=GFP_USER, stack=(program, "__seccomp_filter")).return_user()
    b.entry_syscall().touch_read(kind="anon", gfp=GFP_USER, stack=("bpf_get_prandom_u32", program)).return_user()
    b.entry_syscall().touch_read(kind="anon", gfp=GFP_USER, stack=("0xffffffffa0000040", "caller")).return_user()
    causes = run(b, tmp_path, "no-module-text").causes
    assert {cause_line(cause) for cause in causes} == {
        "bpf_prog <- __seccomp_filter: fetch vmalloc in a BPF program",
        "bpf_prog <- __seccomp_filter: read anon",
        "bpf_get_prandom_u32 <- bpf_prog: read anon",
        "? <- caller: read anon",
    }


def test_ephmap_of_a_bpf_program(tmp_path: Path) -> None:
    """A policy can name those frames too."""
    b = TraceBuilder()
    b.entry_syscall().touch_read(kind="anon", gfp=GFP_USER, stack=(bpf_program(b), "__seccomp_filter")).return_user()
    text = 'inherits = "denylist-2025"\n[ephmap]\nkinds = ["anon"]\nfunctions = ["bpf_prog*"]\n'
    result = run(b, tmp_path, load_policy(written(text, tmp_path)))
    assert (result.exits, result.ephmap_operations) == (0, 1)


def test_grouped(tmp_path: Path) -> None:
    """Exits of the same names are one cause whatever their page and stack's tail; most first; shares add up to 1."""
    b = TraceBuilder()
    for number in range(3):
        stack = ("_copy_to_iter", "copy_page_to_iter", f"caller_{number}")
        b.entry_syscall().touch_read(kind="shmem", cache="shmem", gfp=GFP_USER, label=str(number), stack=stack)
        b.return_user()
    b.entry_exception().touch_write(kind="anon", gfp=GFP_USER, stack=("clear_page_erms", "f")).return_user()
    causes = run(b, tmp_path).causes
    assert [(cause.function, cause.kind, cause.access, cause.exits, cause.share) for cause in causes] == [
        ("_copy_to_iter", "shmem", "read", 3, 0.75),
        ("clear_page_erms", "anon", "write", 1, 0.25),
    ]


def test_stacks_of_a_cause(tmp_path: Path) -> None:
    """The JSON form has a cause's stacks from its function outwards, six functions of each, most exits first."""
    b = TraceBuilder()
    copy, allocator = (
        ("copyout", "_copy_to_iter", "copy_page_to_iter"),
        ("__alloc_pages", "shmem_alloc_folio", "b", "c"),
    )
    for number, tail in enumerate((("read", "vfs", "sys", "do", "entry"), ("splice", "sys"), ("splice", "sys"))):
        b.entry_syscall().touch_read(
            kind="shmem", gfp=GFP_USER, label=str(number), stack=(*copy, *tail), allocated_by=(*allocator, "d", "e")
        )
        b.return_user()
    (cause,) = run(b, tmp_path).to_dict()["causes"]
    by = ("shmem_alloc_folio", "b", "c", "d")
    assert cause["stacks"] == [
        {"functions": ("_copy_to_iter", "copy_page_to_iter", "splice", "sys"), "allocation": by, "exits": 2},
        {"functions": ("_copy_to_iter", "copy_page_to_iter", "read", "vfs", "sys", "do"), "allocation": by, "exits": 1},
    ]


def test_stacks_without_names_and_beyond_the_eighth(tmp_path: Path) -> None:
    """An exit without a stack has none of its own; of many stacks the eight with the most exits are kept."""
    b = TraceBuilder().entry_syscall().touch_read(kind="anon", gfp=GFP_USER).return_user()
    for number in range(9):
        for _ in range(2 if number else 1):
            b.entry_syscall().touch_write(kind="anon", gfp=GFP_USER, stack=("clear", "alloc", f"by_{number}"))
            b.return_user()
    many, none = run(b, tmp_path).to_dict()["causes"]
    assert none["stacks"] == [{"functions": (), "allocation": (), "exits": 1}]
    assert [stack["functions"][2] for stack in many["stacks"]] == [f"by_{number}" for number in range(1, 9)]
    assert many["exits"] - sum(stack["exits"] for stack in many["stacks"]) == 1


def test_same_name_in_two_modules(tmp_path: Path) -> None:
    """Functions of the same name are one cause, as names are all that the output says."""
    b = TraceBuilder()
    for module in ("one", "two"):
        b.entry_syscall().touch_read(kind="anon", gfp=GFP_USER, stack=(f"{module}:f", "g")).return_user()
    result = run(b, tmp_path)
    (cause,) = result.causes
    assert (cause.function, cause.exits) == ("f", 2)
    assert [stack["exits"] for stack in result.to_dict()["causes"][0]["stacks"]] == [2]


def test_sums(tmp_path: Path) -> None:
    """Exits by cause, by reason and by entry all add up to the exits."""
    result = run(small_trace(), tmp_path, "allowlist-2022")
    assert result.exits > 0
    assert sum(cause.exits for cause in result.causes) == result.exits
    assert sum(row.exits for row in result.by_entry) == result.exits
    assert sum(result.exits_by_reason.values()) == result.exits
    assert sum(row.without_exit for row in result.by_entry) == result.round_trips_without_exit


def test_same_every_time(tmp_path: Path) -> None:
    """One trace gives the same JSON, byte for byte, also when other policies run beside."""
    trace = small_trace().write(tmp_path / "t.asitrace", rows_per_part=5)
    one, two = load_policy("allowlist-2022"), load_policy("ephmap")
    texts = {json.dumps(replay(trace, [one])[0].to_dict()) for _ in range(3)}
    texts.add(json.dumps(replay(trace, [two, one])[1].to_dict()))
    assert len(texts) == 1


def test_json_keys(tmp_path: Path) -> None:
    """The JSON form has the keys that are promised."""
    document = run(small_trace(), tmp_path).to_dict()
    assert document["schema"] == "asikit.replay/1"
    wanted = {"policy", "round_trips", "round_trips_without_exit", "exits", "exits_by_reason", "flushes", "cr3_writes"}
    wanted |= {"tlb_flushes", "stuns", "causes", "by_entry"}
    assert wanted <= document.keys()
    assert {"function", "caller", "region", "kind", "allocated_by", "exits", "share"} <= document["causes"][0].keys()
    assert set(document["by_entry"][0]) == {"entry", "round_trips", "exits", "without_exit"}


@pytest.mark.parametrize(
    ("kind", "arg", "message"),
    [
        (EventKind.TOUCH_READ, 9, "row 1 touches a place that table places does not have"),
        (EventKind.TASK_SWITCH, 9, "row 1 switches to a task that table tasks does not have"),
    ],
)
def test_beyond_a_table(kind: EventKind, arg: int, message: str, tmp_path: Path) -> None:
    """An event that refers to a row that is not there is refused, not looked up somewhere in memory."""
    b = TraceBuilder().entry_syscall().event(kind, arg)
    with pytest.raises(ReplayError) as refusal:
        run(b, tmp_path)
    assert str(refusal.value) == (
        f"table events: {message}; check the trace with `asi info --verify`, or record it again"
    )


def test_empty_trace(tmp_path: Path) -> None:
    """A trace without events has no round trips, no exits and no causes."""
    result = run(TraceBuilder(), tmp_path, policy())
    assert (result.events, result.round_trips, result.exits, result.causes, result.by_entry) == (0, 0, 0, (), ())
