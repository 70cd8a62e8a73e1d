"""Expressions for the solver: on numbers they say what the expressions themselves compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import z3
from hypothesis import given, settings
from hypothesis import strategies as st

from asikit.proofs import smt
from asikit.protocol import expressions as e

if TYPE_CHECKING:
    from collections.abc import Sequence

FIELDS = (
    e.Field(e.Scope.CPU, "cr3", 0),
    e.Field(e.Scope.TASK, "target", 1),
    e.Field(e.Scope.SIBLING, "stunned", 2),
)
SMALL, BYTE = st.integers(0, 7), st.integers(0, 255)
VALUES = st.tuples(BYTE, BYTE, BYTE)
TABLES = st.dictionaries(SMALL, BYTE, max_size=4).map(lambda table: tuple(table.items()))
TERMS: st.SearchStrategy[e.Term] = st.recursive(
    st.sampled_from(FIELDS) | st.builds(e.Const, BYTE),
    lambda inner: st.one_of(
        st.builds(e.BitAnd, inner, inner),
        st.builds(e.BitOr, inner, inner),
        st.builds(e.BitClear, inner, inner),
        st.builds(e.Plus, inner, st.integers(-3, 3)),
        st.builds(e.Lookup, st.just("table"), TABLES, inner),
        st.builds(e.Bit, st.builds(e.BitAnd, inner, st.just(e.Const(7)))),  # what is shifted out is another matter
    ),
    max_leaves=6,
)
GUARDS: st.SearchStrategy[e.Guard] = st.recursive(
    st.one_of(
        st.just(e.ALWAYS),
        st.builds(e.Equal, TERMS, TERMS),
        st.builds(e.AnyBit, TERMS, TERMS),
        st.builds(e.Below, st.sampled_from(FIELDS), BYTE),
    ),
    lambda inner: st.one_of(
        st.builds(e.Not, inner),
        st.builds(e.Named, st.just("a name"), inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda guards: e.And(tuple(guards))),
        st.lists(inner, min_size=1, max_size=3).map(lambda guards: e.Or(tuple(guards))),
    ),
    max_leaves=5,
)


def environment(values: Sequence[int]) -> dict[e.Field, z3.BitVecRef]:
    """Return the fields as numbers of the solver's."""
    return {field: z3.BitVecVal(value, smt.WIDTH) for field, value in zip(FIELDS, values, strict=True)}


def in_range(part: e.Term | e.Guard, values: Sequence[int]) -> bool:
    """Whether no sum in an expression leaves the numbers that the solver has: the protocol's never do."""
    inner = [getattr(part, name) for name in part.__dataclass_fields__]  # type: ignore[union-attr]
    parts = [each for one in inner for each in (one if isinstance(one, tuple) else (one,))]
    fits = not isinstance(part, e.Plus) or 0 <= part.compiled()(values) < 1 << smt.WIDTH
    return fits and all(in_range(each, values) for each in parts if isinstance(each, e.Term | e.Guard))


@settings(max_examples=60, deadline=None)
@given(TERMS, VALUES)
def test_terms(term: e.Term, values: tuple[int, int, int]) -> None:
    """A term as a bit vector has the value that it computes."""
    if in_range(term, values):
        found = z3.simplify(smt.number(term, environment(values)))
        assert found.eq(z3.BitVecVal(term.compiled()(values), smt.WIDTH))


@settings(max_examples=60, deadline=None)
@given(GUARDS, VALUES)
def test_guards(guard: e.Guard, values: tuple[int, int, int]) -> None:
    """A guard as a truth value is what it decides."""
    if in_range(guard, values):
        found = z3.simplify(smt.truth(guard, environment(values)))
        assert found.eq(z3.BoolVal(guard.compiled()(values)))


def test_comparisons_are_of_numbers_without_a_sign() -> None:
    """200 is not below 100."""
    guard = e.Below(FIELDS[0], 100)
    assert z3.simplify(smt.truth(guard, environment((200, 0, 0)))).eq(z3.BoolVal(val=False))
    assert z3.is_true(z3.simplify(smt.truth(guard, environment((99, 0, 0)))))


def test_what_has_no_case() -> None:
    """A class that is new to the language is refused, not read as something else."""
    with pytest.raises(TypeError, match="no case for Term"):
        smt.number(e.Term(), {})
    with pytest.raises(TypeError, match="no case for Guard"):
        smt.truth(e.Guard(), {})
