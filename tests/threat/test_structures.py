"""What stays behind in a core: packed contents against plain sets, and what a thread may come by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asikit.machine.x86 import Core, Datum, PhysicalMemory, Training, load_cpu
from asikit.protocol import PRIMITIVES, EffectKind, ProtocolConfig, blanket_config
from asikit.threat import (
    DATA,
    EVERYBODY,
    FOLDED,
    NOBODY,
    PREDICTORS,
    STRUCTURES,
    ContentsLayout,
    Party,
    assumed,
    layout_for,
    left_behind,
)

LAYOUTS = st.sets(st.sampled_from(STRUCTURES)).map(
    lambda chosen: ContentsLayout(tuple(each for each in STRUCTURES if each in chosen))
)
PARTIES = st.integers(0, int(EVERYBODY)).map(Party)


def packed(held: list[Party]) -> int:
    """Return contents, a field of 4 bits for each structure in order."""
    return sum(int(parties) << 4 * place for place, parties in enumerate(held))


@st.composite
def contents(draw: st.DrawFn) -> tuple[ContentsLayout, list[Party]]:
    """Return a layout, and what each of its structures holds."""
    layout = draw(LAYOUTS)
    count = len(layout.structures)
    return layout, draw(st.lists(PARTIES, min_size=count, max_size=count))


@given(contents())
def test_unpacking(drawn: tuple[ContentsLayout, list[Party]]) -> None:
    """Each structure holds what was put there, and the contents are no wider than said."""
    layout, held = drawn
    assert list(layout.unpack(packed(held)).values()) == held
    assert [*layout.unpack(0)] == [structure.name for structure in layout.structures]
    assert packed([EVERYBODY] * len(held)) == (1 << layout.bits) - 1


@given(LAYOUTS, PARTIES, st.sampled_from(["data", "training"]))
def test_spreading(layout: ContentsLayout, parties: Party, holds: str) -> None:
    """Over the structures of one kind, and no other."""
    found = layout.unpack(layout.spread(holds, parties))
    assert found == {each.name: parties if each.holds == holds else NOBODY for each in layout.structures}


@given(contents(), st.sampled_from(EffectKind))
def test_clearing(drawn: tuple[ContentsLayout, list[Party]], kind: EffectKind) -> None:
    """A primitive empties its structure wholly (H2), and leaves the others."""
    layout, held = drawn
    left = layout.unpack(packed(held) & ~layout.cleared_by(kind))
    expected = [
        NOBODY if each.cleared_by is kind else parties for each, parties in zip(layout.structures, held, strict=True)
    ]
    assert list(left.values()) == expected


@given(contents())
def test_another_mm_is_loaded(drawn: tuple[ContentsLayout, list[Party]]) -> None:
    """What was the own user's or guest's is another's now; the kernel's stays; doing it again changes nothing."""
    layout, held = drawn
    folded = layout.fold(packed(held))
    expected = [(parties & ~FOLDED) | (Party.OTHER if parties & FOLDED else NOBODY) for parties in held]
    assert list(layout.unpack(folded).values()) == expected
    assert layout.fold(folded) == folded


@pytest.mark.parametrize("config", [ProtocolConfig(), ProtocolConfig(smt=True), blanket_config()])
def test_only_what_the_flushes_are_for(config: ProtocolConfig) -> None:
    """A structure that no flush of the configuration clears is left out; each flush's is there."""
    layout = layout_for(config)
    flushed = {*config.control_flush, *config.data_flush}
    assert {each.cleared_by for each in layout.structures} <= flushed
    assert [each for each in STRUCTURES if each.cleared_by in flushed] == list(layout.structures)


def test_a_primitive_has_one_side() -> None:
    """What is emptied as data is no predictor, and each structure of the machine is emptied by one primitive."""
    assert DATA.keys().isdisjoint(PREDICTORS)
    emptied = [name for primitive in PRIMITIVES for name, _ in primitive.empties]
    assert sorted(emptied) == sorted({*DATA, *PREDICTORS})


def recording() -> Core:
    """Return a core of two threads that records."""
    core = Core(0, assumed(load_cpu("generic")), PhysicalMemory(1 << 22), threads=2)
    core.record = True
    return core


def test_what_is_left_behind() -> None:
    """Of the structures that are asked for: data or training, newest first, whoever of the core left it (H3)."""
    first, second = recording().threads
    recorder = first.recorder
    assert recorder is not None
    assert recorder is second.recorder
    recorder.divide(0, "a", 1)
    recorder.divide(1, "b", 2)
    recorder.branch(1, "b", 0x1000, 0x2000)
    for thread in (0, 1):
        left = left_behind(recorder, thread, {"divider", "btb", "l1d"})
        assert left.keys() == {"divider", "btb", "l1d"}
        divided = left["divider"]
        assert [entry.owner for entry in divided] == ["b", "a"][: len(divided)]
        assert all(isinstance(entry, Datum) for entry in divided)
        assert left["btb"] == (Training("b", 0x1000, 0x2000, 1),)
        assert left["l1d"] == ()
    assert left_behind(recorder, 0, ()) == {}


def test_an_order_that_does_not_depend_on_who_asks() -> None:
    """The structures' own: two runs are compared by it."""
    recorder = recording().threads[0].recorder
    assert recorder is not None
    names = [structure.name for structure in recorder.structures]
    assert [*left_behind(recorder, 0, names)] == [*left_behind(recorder, 0, names[::-1])] == names
