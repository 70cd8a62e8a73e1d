"""What a recording's stretches need says how often any policy of memory exits: as often as a replay under it does."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asikit.protocol import AsiClass
from asikit.replay import (
    ExitOn,
    MemorySite,
    MemorySites,
    Policy,
    PolicyEphmap,
    SideTables,
    Stretches,
    TouchKind,
    load_policy,
    replay,
)
from asikit.replay.declaring import NO_SITE
from asikit.replay.sensitivity import apply_policy
from asikit.trace import EventKind, PageKind, TlbFlush, Trace
from tests.builders import TraceBuilder
from tests.replay.running import policy

SAMPLES = Path(__file__).parents[2] / "src/asikit/data/samples"
BASES = ("denylist-2025", "ephmap", "allowlist-2022")
PLACES = (
    {"kind": "anon", "label": "a"},
    {"kind": "slab", "cache": "filp", "label": "b"},
    {"kind": "slab", "cache": "dentry", "label": "c"},
    {"kind": "page_cache", "cache": "ext4", "label": "d"},
    {"region": "vmalloc", "kind": "vmalloc", "label": "e"},
    {"region": "user", "kind": "anon", "label": "f"},
)
_ENTRIES = (EventKind.ENTRY_SYSCALL, EventKind.ENTRY_EXCEPTION, EventKind.ENTRY_INTERRUPT, EventKind.ENTRY_NMI)
_NESTED = (EventKind.NESTED_EXCEPTION, EventKind.NESTED_INTERRUPT, EventKind.NESTED_NMI)


def some(sites: MemorySites, numbers: Random, share: float) -> list[MemorySite]:
    """Choose about such a share of the sites."""
    return [site for site in sites.sites if numbers.random() < share]


def agree(trace: Trace, base: Policy, classes: frozenset[AsiClass], numbers: Random) -> None:
    """Compare some choices with replays under them."""
    stretches = Stretches.of(trace, base, classes)
    choices = [[], list(stretches.sites.sites), *(some(stretches.sites, numbers, share) for share in (0.5, 0.8, 0.95))]
    policies = [stretches.sites.policy(base, choice, name=f"choice {number}") for number, choice in enumerate(choices)]
    replayed = [result.exits for result in replay(trace, policies, classes)]
    assert [stretches.exits(choice) for choice in choices] == replayed


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "sample", ["kvm-guest", "phases", "page-cache", pytest.param("processes", marks=pytest.mark.slow)]
)
def test_samples(sample: str, base: str) -> None:
    """On recordings of a real kernel, whatever is declared, under each mechanism that was published."""
    trace = Trace.open(SAMPLES / f"{sample}.asitrace")
    agree(trace, load_policy(base), frozenset(AsiClass) & {AsiClass.KVM, AsiClass.USERSPACE}, Random(sample + base))


@pytest.mark.parametrize("asi_class", [AsiClass.KVM, AsiClass.USERSPACE])
def test_one_class(asi_class: AsiClass) -> None:
    """Also where guests alone, or processes alone, are protected from."""
    agree(Trace.open(SAMPLES / "kvm-guest.asitrace"), policy(), frozenset({asi_class}), Random(1))


@st.composite
def recordings(draw: st.DrawFn) -> TraceBuilder:
    """Make what two CPUs may do: round trips with touches, nested entries, switches and flushes in them."""
    b = TraceBuilder()
    inside: dict[int, list[EventKind]] = {0: [], 1: []}
    for cpu in (0, 1):
        b.event(EventKind.RETURN_USER, cpu=cpu)
    for _ in range(draw(st.integers(5, 60))):
        cpu = draw(st.integers(0, 1))
        nesting = inside[cpu]
        if not nesting:
            guest = draw(st.booleans())
            nesting.append(EventKind.VM_EXIT if guest else draw(st.sampled_from(_ENTRIES)))
            b.event(nesting[-1], draw(st.sampled_from([0, 14])), cpu=cpu)
            continue
        what = draw(st.sampled_from(["touch", "touch", "touch", "leave", "leave", "nest", "switch", "flush"]))
        if what == "touch":
            place = PLACES[draw(st.integers(0, len(PLACES) - 1))]
            name = draw(st.sampled_from(["touch_read", "touch_write"]))
            getattr(b, name)(**place, stack=(draw(st.sampled_from(["_copy_to_iter", "other"])),), cpu=cpu)
        elif what == "nest" and len(nesting) < 3:
            nesting.append(draw(st.sampled_from(_NESTED)))
            b.event(nesting[-1], draw(st.sampled_from([0, 14])), cpu=cpu)
        elif what == "switch" and len(nesting) == 1:
            b.task_switch(draw(st.sampled_from("abc")), pid=draw(st.integers(1, 3)), cpu=cpu)
        elif what == "flush":
            b.event(EventKind.TLB_FLUSH, draw(st.integers(0, len(TlbFlush) - 1)), cpu=cpu)
        elif what == "leave":
            nesting.pop()
            end = draw(st.sampled_from([EventKind.RETURN_USER, EventKind.VM_ENTRY]))
            b.event(EventKind.NESTED_RETURN if nesting else end, cpu=cpu)
    return b


@settings(max_examples=30, deadline=None)
@given(
    recordings(),
    st.sampled_from(["denylist-2025", "ephmap"]),
    st.sampled_from(ExitOn),
    st.sets(st.sampled_from(TlbFlush)),
    st.booleans(),
    st.integers(0, 9),
)
def test_made_up(built: TraceBuilder, base: str, exit_on: ExitOn, flushes: set[TlbFlush], kvm: bool, seed: int) -> None:
    """On any recording that a machine could make."""
    with TemporaryDirectory() as folder:
        trace = built.write(Path(folder) / "t.asitrace")
        under = policy(base, exit_on=exit_on, exit_on_tlb_flush=tuple(flushes), kvm_exit_on_user_return=kvm)
        agree(trace, under, frozenset({AsiClass.KVM, AsiClass.USERSPACE}), Random(seed))


@pytest.mark.parametrize("sample", ["kvm-guest", "phases", "page-cache"])
def test_functions(sample: str) -> None:
    """A touch that an ephemeral mapping serves needs that its function has one, and nothing else."""
    trace = Trace.open(SAMPLES / f"{sample}.asitrace")
    user = (PageKind.ANON, PageKind.PAGE_CACHE, PageKind.SHMEM)
    base = replace(policy(), ephmap=PolicyEphmap(user, (TouchKind.READ, TouchKind.WRITE)))
    found = Stretches.of(trace, base, functions=True)
    numbers, known = Random(sample), len(found.sites.sites)
    mapped = {
        site for site, kinds in zip(found.sites.sites, found.sites.kinds, strict=True) if kinds.intersection(user)
    }
    policies: list[Policy] = []
    promised = []
    for _ in range(5):
        declared = [site for site in some(found.sites, numbers, 0.98) if site not in mapped]
        functions = [name for name in found.functions if numbers.random() < 0.7]
        have = {found.sites.sites.index(site) for site in declared}
        have |= {known + found.functions.index(name) for name in functions}
        promised.append(found.forced + sum(times for needed, times in found.needs.items() if not have >= {*needed}))
        named = replace(base.ephmap, functions=tuple(functions))
        policies.append(replace(found.sites.policy(base, declared, name=str(len(policies))), ephmap=named))
    assert [result.exits for result in replay(trace, policies)] == promised


@pytest.mark.parametrize("sample", ["kvm-guest", "page-cache"])
def test_a_site_is_declared_alone(sample: str) -> None:
    """A policy that declares some sites nonsensitive calls just their pages so, whatever weaker rules there are."""
    tables = SideTables.of(Trace.open(SAMPLES / f"{sample}.asitrace"))
    sites = MemorySites.of(tables)
    assert sum(sites.pages) == tables.pages.height
    assert sites.of_page[-1] == NO_SITE
    for first, second in pairwise([0.0, 0.3, 0.7, 1.0]):
        chosen = some(sites, Random(first), second)
        sensitive = apply_policy(sites.policy(load_policy("denylist-2025"), chosen, name="p"), tables).pages
        numbers = [sites.sites.index(site) for site in chosen]
        assert np.array_equal(sensitive, ~np.isin(sites.of_page, [*numbers, NO_SITE]))


def test_kinds_of_a_site() -> None:
    """A site has the kinds of its pages, so that what holds user data is known by its allocating function, too."""
    sites = MemorySites.of(SideTables.of(Trace.open(SAMPLES / "page-cache.asitrace")))
    kinds = dict(zip(map(str, sites.sites), sites.kinds, strict=True))
    assert kinds["caches filp"] == {PageKind.SLAB}
    assert PageKind.SHMEM in kinds["allocated_by shmem_alloc_folio"]
