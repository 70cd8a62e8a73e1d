"""The regions that the invariant speaks of: each micro-operation is where it belongs, in every configuration."""

from __future__ import annotations

import pytest

from asikit.proofs import World, world_for
from asikit.proofs.regions import Regions
from asikit.proofs.relation import GUEST, HANDLER, KERNEL, NO_HANDLER, USER, Place, Relation
from asikit.protocol import AsiClass, Happening, Protocol, ProtocolConfig, Role

CONFIGS = {
    "plain": ProtocolConfig(),
    "SMT": ProtocolConfig(smt=True),
    "PTI": ProtocolConfig(pti=True),
    "NOFLUSH": ProtocolConfig(noflush=True),
    "everything": ProtocolConfig(smt=True, pti=True, noflush=True),
}


def regions(config: ProtocolConfig) -> Regions:
    """Return the regions of a configuration."""
    return Regions(Relation(World(Protocol(config), threads=1 + config.smt)))


def paths(of: Regions, places: list[Place]) -> list[str]:
    """Return the paths at places, each once, in order."""
    return sorted({of.path(place) for place in places})


@pytest.mark.parametrize("name", CONFIGS)
def test_cr3_divides_an_enter(name: str) -> None:
    """What comes before the write of CR3, in any of its forms, and what comes after it: nothing is left out."""
    of = regions(CONFIGS[name])
    before, after = set(of.enter_before_cr3), set(of.enter_after_cr3)
    assert not before & after
    inside = of.inside("__asi_enter", "maybe_flush_control_for_enter", "maybe_flush_data")
    first = of.before(Role.ALREADY_ENTERED, Role.SET_CURR_ASI)
    assert {*first, *before, *after} == set(inside)
    writes = [place for place in inside if "write_cr3" in of.path(place)]
    assert set(writes) <= before
    assert len(writes) == len(set(writes)) > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_cr3_divides_an_exit(name: str) -> None:
    """The same of an exit."""
    of = regions(CONFIGS[name])
    loading, after = set(of.loading_on_exit), set(of.exit_after_cr3)
    assert not loading & after
    assert loading | after <= set(of.exiting)
    assert all("write_cr3" in of.path(place) or CONFIGS[name].noflush for place in loading)
    assert "asi_exit.clear_curr_asi" in paths(of, list(after))


def test_writes_that_keep_tlb_entries() -> None:
    """With NOFLUSH there are two writes, and what prepares and what records."""
    of = regions(CONFIGS["NOFLUSH"])
    steps = ("barrier", "note_tlb_gen", "read_tlb_gen", "write_cr3", "write_cr3_noflush")
    assert paths(of, of.loading_on_exit) == [f"asi_exit.{step}" for step in steps]
    left = ("clear_curr_asi", "record_tlb_gen", "written")
    assert paths(of, of.exit_after_cr3) == [f"asi_exit.{step}" for step in left]
    assert "mm_switch.outdate" in paths(of, of.squashing)


def test_the_user_half() -> None:
    """With PTI a return, and a handler's end, go there."""
    of = regions(CONFIGS["PTI"])
    assert paths(of, of.to_user_half) == ["nested_return_to_user_half.enter_user_half"]
    assert "return_user.enter_user_half" in paths(of, of.resuming)
    assert regions(CONFIGS["plain"]).to_user_half == []


def test_numbers_are_one_per_place() -> None:
    """Each level counts its own places from zero; ranges say the same."""
    of = regions(CONFIGS["SMT"])
    for number, level in enumerate(of.levels):
        assert [of.number(place) for place in level] == list(range(len(level)))
        assert of.ranges(level, number) == [(0, len(level) - 1)]
    two = [of.levels[0][3], of.levels[0][1]]
    assert of.ranges(two, 0) == [(1, 1), (3, 3)]
    assert of.ranges(two, 1) == []


def test_handlers_that_are_counted() -> None:
    """None in untrusted code or where none is open, one in ordinary code that an interrupt began; counting counts."""
    of = regions(CONFIGS["plain"])
    assert [of.opened(place) for place in (USER, GUEST, NO_HANDLER, KERNEL, HANDLER)] == [0, 0, 0, 1, 1]
    (count,) = of.before(Role.COUNT_INTERRUPT, within=("asi_intr_enter",))[:1]
    program = of.relation.world.protocol.programs[count.program].ops
    after = count._replace(pc=count.pc + 1)
    if after.pc < len(program):
        assert of.opened(after) == of.opened(count) + 1
    (uncount,) = [place for place in of.before(Role.UNCOUNT_INTERRUPT) if place.program == Happening.NESTED_RETURN]
    assert (of.opened(uncount), of.opened(uncount._replace(pc=uncount.pc + 1))) == (1, 0)


@pytest.mark.parametrize(
    ("classes", "places", "entries"),
    [
        ((AsiClass.USERSPACE, AsiClass.KVM), [USER, GUEST], True),
        ((AsiClass.USERSPACE,), [USER], True),
        ((AsiClass.KVM,), [GUEST], False),
    ],
)
def test_whom_a_class_protects_from(classes: tuple[AsiClass, ...], places: list[Place], *, entries: bool) -> None:
    """Code that no class is there for is as good as the kernel's."""
    of = Regions(Relation(world_for(threads=1, classes=classes)))
    assert of.untrusted == places
    assert (Happening.SYSCALL_ENTRY in of.from_untrusted) == entries
    assert set(of.from_untrusted) <= set(of.entries)
