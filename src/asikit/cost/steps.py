"""What single steps of the protocol cost, so that a picture can be drawn by cost as well as by count."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from asikit.cost.parameters import Unit
from asikit.cost.pricing import unit_of
from asikit.cost.terms import step_terms
from asikit.protocol import EffectKind, Space

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asikit.cost.parameters import Parameter
    from asikit.cost.result import CostRow
    from asikit.cost.terms import CostTerm
    from asikit.replay import History

__all__ = ["step_cycles"]


def step_cycles(history: History, row: CostRow) -> Mapping[int, float]:
    """Return the cycles of each step in a history, with all figures at their middle.

    :param history: Under the row's policy on the row's processor (:func:`asikit.cost.policy_on`).
    :param row: Of the mitigation ``asi``, priced on the same recording.
    """
    middle = {name: parameter.range.mid for name, parameter in row.parameters.items()}
    found = {}
    for number in history.marks["step"].unique().to_list():
        if number < 0:
            continue
        step = history.step(number)
        loads = [effect.space for effect in step.effects if effect.kind is EffectKind.WRITE_CR3]
        enters = bool(loads) and step.exit_reason is None
        terms = step_terms(
            step.effects,
            exits=step.exit_reason is not None,
            enters=enters,
            to_userspace=enters and loads[-1] is Space.USERSPACE,
            refills=not history.policy.mechanism.noflush,
        )
        found[number] = float(sum(_cycles(term, row.parameters, middle) for term in terms))
    return found


def _cycles(term: CostTerm, parameters: Mapping[str, Parameter], middle: Mapping[str, float]) -> float:
    times = term.count * prod(middle[name] for name in term.price)
    return times * middle["frequency"] if unit_of(term, parameters) is Unit.NANOSECONDS else times
