"""Whether a way makes sense: what its mechanism needs, and what it cannot have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.attacks.vulnerability import Branch, Check, Holds, Mappings, Mechanism, Tag, Trainer
from asikit.threat import ALL_PREDICTORS

if TYPE_CHECKING:
    from asikit.attacks.vulnerability import Way

__all__ = ["contradiction"]

_TRAINED: Final[dict[Branch, tuple[tuple[str, Tag], ...]]] = {
    Branch.INDIRECT: (("btb", Tag.ADDRESS), ("bhb", Tag.HISTORY)),
    Branch.RETURN: (("rsb", Tag.POSITION), ("btb", Tag.ADDRESS)),
    Branch.UNDERFLOW: (("btb", Tag.ADDRESS),),
    Branch.CONDITIONAL: (("pht", Tag.ADDRESS),),
    Branch.ENTRY: (("pht", Tag.ADDRESS),),
}
"""What predicts a branch, and by what an entry of it is found."""
_MAPPINGS: Final = {
    Mechanism.STEER: Mappings.VICTIM,
    Mechanism.INJECT: Mappings.VICTIM,
    Mechanism.BYPASS: Mappings.VICTIM,
    Mechanism.DEFERRED: Mappings.ATTACKER,
    Mechanism.TERMINAL: Mappings.PHYSICAL,
    Mechanism.SAMPLE: Mappings.NONE,
}
"""Whose translation a mechanism's load goes through."""


def contradiction(way: Way) -> str:
    """Return what a way lacks for its mechanism, or has and cannot have; empty if it is sound."""
    return _parties(way) or _bugs(way) or _CHECKS[way.mechanism](way) or _foreign(way)


def _parties(way: Way) -> str:
    if not all(code.is_untrusted for code in way.attackers) and len(way.attackers) > 1:
        return "attackers are user or guest; the kernel, which is the host, stands alone"
    if not way.attackers or not way.victims:
        return "victims and attackers: name at least one of each, or leave the key out for all"
    return ""


def _bugs(way: Way) -> str:
    both = next((bug for bug in way.any_bug if bug in way.no_bug), None)
    return f"any_bug and no_bug: {both} is in both, so no processor has it in this way" if both is not None else ""


def _foreign(way: Way) -> str:
    """Return which key belongs to another mechanism, or to another structure."""
    steer_alone = {"branch": way.branch is not None, "trained_by": way.trained_by is not Trainer.ATTACKER}
    given = next((key for key, is_given in steer_alone.items() if is_given), "")
    if way.mechanism is not Mechanism.STEER and given:
        return f"{given} goes with steer alone"
    if way.mechanism not in {Mechanism.DEFERRED, Mechanism.TERMINAL} and way.defers is not Check.NONE:
        return "defers goes with deferred and terminal alone"
    if way.mechanism in {Mechanism.SAMPLE, Mechanism.BYPASS} and way.steered:
        return "nobody chooses an address: leave steered out, or it is deferred or terminal"
    if way.mappings not in {Mappings.NONE, _MAPPINGS[way.mechanism]}:
        return f'its load goes through other mappings: mappings = "{_MAPPINGS[way.mechanism]}"'
    return _not_its_own(way)


def _not_its_own(way: Way) -> str:
    """Return which key has a structure that the way does not name."""
    for key, table in (("cleared_by", way.cleared_by), ("sharing", way.sharing), ("survives", way.survives)):
        other = next((name for name in table if name not in way.structures), None)
        if other is not None:
            return f"{key}: {other} is not among its structures"
    return ""


def _steer(way: Way) -> str:
    if way.branch is None:
        return "it needs branch: which of the victim's goes wrong"
    if way.branch is Branch.STRAIGHT_LINE:
        return "nothing is trained for straight_line: leave structures out" if way.structures else ""
    if not way.structures:
        return "it needs structures: what is trained"
    if way.trained_by is Trainer.VICTIM and way.tag is Tag.POSITION:
        return "no victim trains its own return stack, as its calls and returns come in pairs: leave trained_by out"
    fitting = _TRAINED[way.branch]
    if any(name in way.structures and way.tag is tag for name, tag in fitting):
        return ""
    wanted = ", or ".join(f'structures with "{name}" and tag = "{tag}"' for name, tag in fitting)
    return f"{way.branch} branches need {wanted}"


def _deferred(way: Way) -> str:
    if way.defers is not Check.PERMISSION or way.mappings is not Mappings.ATTACKER or not way.steered:
        return 'it needs defers = "permission", mappings = "attacker" and steered = true'
    return ""


def _terminal(way: Way) -> str:
    physical = way.mappings is Mappings.PHYSICAL and way.tag is Tag.PHYSICAL
    if way.defers is not Check.PRESENCE or not physical or not way.steered:
        return 'it needs defers = "presence", mappings = "physical", tag = "physical" and steered = true'
    return "" if "l1d" in way.structures else 'it needs structures with "l1d", which answers by physical address'


def _sample(way: Way) -> str:
    if not way.structures:
        return "it needs structures: what is sampled"
    for name in way.structures:
        if name in ALL_PREDICTORS:
            fitting: tuple[Holds, ...] = (Holds.ADDRESSES,)
        elif name == "staging_buffer":
            fitting = (Holds.RANDOM,)
        else:
            fitting = (Holds.DATA, Holds.RANDOM)
        if way.holds not in fitting:
            wanted = " or ".join(f'holds = "{word}"' for word in fitting)
            return f"of {name} it needs {wanted}: what a victim leaves there"
    return ""


def _inject(way: Way) -> str:
    if not way.structures:
        return "it needs structures: what is injected from"
    predictor = next((name for name in way.structures if name in ALL_PREDICTORS), None)
    if predictor is not None:
        return f"{predictor} holds no values to inject"
    return "" if way.steered else "it needs steered = true: what is injected is the address"


def _bypass(way: Way) -> str:
    return (
        "" if "store_buffer" in way.structures else 'it needs structures with "store_buffer": it holds the older store'
    )


_CHECKS: Final = {
    Mechanism.STEER: _steer,
    Mechanism.DEFERRED: _deferred,
    Mechanism.TERMINAL: _terminal,
    Mechanism.SAMPLE: _sample,
    Mechanism.INJECT: _inject,
    Mechanism.BYPASS: _bypass,
}
