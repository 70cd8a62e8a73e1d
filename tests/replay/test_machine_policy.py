"""A policy on the machine decides as it does over a trace's pages, for any request and any rules."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asikit.machine.kernel import MachineConfig
from asikit.machine.mm import AllocationRequest, Gfp
from asikit.replay import Policy, PolicyError, PolicyMemory, Rules, Sensitivity, load_policy, shipped_policies
from asikit.replay._tables import SideTables
from asikit.replay.machine import decide, machine_config
from asikit.replay.sensitivity import apply_policy
from asikit.trace import PageKind
from tests.builders import TraceBuilder

FUNCTIONS = ("shmem_alloc_folio", "mmu_topup_memory_caches", "pipe_write", "do_anonymous_page")
CACHES = ("kmalloc-64", "task_struct", "filp")
GLOBS = ("kmalloc-*", "*_struct", "filp", "shmem*", "pipe_write", "*")

rules = st.builds(
    Rules,
    gfp=st.lists(st.sampled_from(["__GFP_HARDWALL", "__GFP_ZERO", "__GFP_MOVABLE"]), max_size=2).map(tuple),
    kinds=st.lists(st.sampled_from([kind.value for kind in PageKind]), max_size=3).map(tuple),
    allocated_by=st.lists(st.sampled_from(GLOBS), max_size=2).map(tuple),
    caches=st.lists(st.sampled_from(GLOBS), max_size=2).map(tuple),
)
memories = st.builds(PolicyMemory, default=st.sampled_from(Sensitivity), sensitive=rules, nonsensitive=rules)
requests = st.builds(
    AllocationRequest,
    gfp=st.sampled_from([Gfp.HARDWALL, Gfp.ZERO, Gfp.MOVABLE | Gfp.HARDWALL, Gfp.IO]),
    kind=st.sampled_from([kind for kind in PageKind if kind is not PageKind.SLAB]),
    cache=st.none(),
    allocated_by=st.sampled_from(FUNCTIONS),
) | st.builds(
    AllocationRequest,
    gfp=st.just(Gfp.IO),
    kind=st.just(PageKind.SLAB),
    cache=st.sampled_from(CACHES),
    allocated_by=st.sampled_from(FUNCTIONS),
)


@settings(max_examples=60)
@given(memory=memories, asked=st.lists(requests, min_size=1, max_size=8))
def test_one_request_and_a_trace_s_pages_agree(memory: PolicyMemory, asked: list[AllocationRequest]) -> None:
    """Two statements of the strengths of the rules: one request at a time, and arrays of pages."""
    policy = Policy("random", memory=memory)
    builder = TraceBuilder()
    builder.meta["gfp_flags"] = {f"__GFP_{flag.name}": int(flag) for flag in Gfp}
    rows = []
    for number, request in enumerate(asked):
        place = builder.place(
            kind=request.kind.value,
            cache=request.cache,
            gfp=int(request.gfp),
            allocated_by=(request.allocated_by,),
            label=str(number),
        )
        rows.append(builder.table("places")["page"][place])
    with tempfile.TemporaryDirectory() as folder:
        tables = SideTables.of(builder.write(Path(folder) / "t.asitrace"))
    pages = apply_policy(policy, tables).pages
    decision = decide(policy)
    assert [decision(request) for request in asked] == [bool(pages[row]) for row in rows]


@pytest.mark.parametrize("name", shipped_policies())
def test_with_asi_off_it_is_off_under_any_policy(name: str) -> None:
    """`asi run --asi off --policy NAME` has no mechanism at all."""
    config = machine_config(load_policy(name), MachineConfig(asi=False))
    assert not config.asi
    assert config.protocol is not None
    assert not config.protocol_config().asi
    assert not config.protocol_config().blanket


def test_a_gfp_flag_that_the_machine_lacks_is_named() -> None:
    """As for a recorded kernel."""
    policy = Policy("mine", memory=PolicyMemory(sensitive=Rules(gfp=("__GFP_HARDWAL",))))
    with pytest.raises(PolicyError) as error:
        decide(policy)
    assert str(error.value) == (
        'policy mine: the machine\'s kernel has no gfp flag "__GFP_HARDWAL"; the nearest is "__GFP_HARDWALL"'
    )
