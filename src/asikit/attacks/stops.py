"""What stops an attack: which structure was filled or trained, what emptied it or kept it from being used.

This is written down while an attack runs, and no verdict is made of it: a verdict is what two runs show.
"""

from __future__ import annotations

from typing import NamedTuple

from asikit.attacks.vulnerability import HIDES, UNMAPPED
from asikit.mitigations import Measure

__all__ = ["Obstacle", "emptied", "hidden", "kept", "siblings_off", "stunned", "unmapped"]

_KEEPS = {
    Measure.NO_INDIRECT_PREDICTION: "the victim's branch is a retpoline, which the target buffer does not predict",
    Measure.NO_RETURN_PREDICTION: "the victim's return goes through a thunk, which the target buffer does not predict",
    Measure.ISOLATE_MODES: "the entry was less privileged code's, and by it the kernel's branch is not predicted",
    Measure.ISOLATE_THREADS: "the entry was the sibling's, and by it no branch is predicted",
    Measure.MASK_INDICES: "the bounds check went wrong, and the index was masked",
    Measure.FENCE_ENTRY: "the entry code's branch went wrong, and a fence stood behind it",
    Measure.FENCE_VM_EXIT: "the entry was a guest's, and a fence stood before the first return after the VM exit",
    Measure.INVERT_ENTRIES: "the entry that is not present names no memory that there is",
    Measure.ORDER_LOADS: "the load waited for the older store",
    Measure.TRAP_BEHIND_RETURNS: "behind the return there is a trap",
}
"""What happened, where a measure kept the victim or the attacker from going on."""


class Obstacle(NamedTuple):
    """Something that stopped an attack once.

    :ivar by: The primitive, the promise, or the part of the mitigation that did.
    :ivar says: What happened, in a sentence.
    :ivar unless: What would have to fail, as a vulnerability's file says it, or in words.
    """

    by: str
    says: str
    unless: str


def emptied(step: str, kind: str, structure: str, *, trained: bool) -> Obstacle:
    """Return that a primitive emptied a structure of what had come into it.

    :param step: The micro-operation.
    """
    what = "what was trained" if trained else "the secret"
    return Obstacle(kind, f"{structure} held {what}; {step} emptied it", f'survives = {{ {structure} = ["{kind}"] }}')


def kept(measure: Measure) -> Obstacle:
    """Return that a measure kept the attack from going on."""
    return Obstacle(str(measure), _KEEPS[measure], f'breaks = ["{measure}"]')


def hidden(structure: str) -> Obstacle:
    """Return that microcode, or the kernel's code, keeps the vulnerability from a structure."""
    return Obstacle(HIDES, f"{structure} is out of its reach: microcode, or thunks", f'breaks = ["{HIDES}"]')


def unmapped(space: str) -> Obstacle:
    """Return that a transient load found nothing."""
    return Obstacle(UNMAPPED, f"a transient load found nothing mapped{space}", f'breaks = ["{UNMAPPED}"]')


def stunned() -> Obstacle:
    """Return that the attacker's thread was made to leave untrusted code."""
    return Obstacle(
        "stun", "the sibling thread left untrusted code before the kernel had the secret", "no stun: asi-no-stun"
    )


def siblings_off() -> Obstacle:
    """Return that the attacker has no sibling thread to run on."""
    return Obstacle("smt_off", "sibling threads are off: the attacker ran on another core", "siblings that run")
