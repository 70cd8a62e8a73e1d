"""What is taught to predictors so that a victim's branch goes to the gadget, by whoever's branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.attacks.places import CALL, CHECKS, ENTRY, FILL, GADGET, PATTERN, RETURN, USER_FUNCTION
from asikit.attacks.vulnerability import Tag
from asikit.machine.x86 import Training

if TYPE_CHECKING:
    from asikit.attacks.lab import Lab

__all__ = ["train"]


def train(lab: Lab, owner: str) -> None:
    """Train what the lab's way needs, on the thread that runs.

    :param owner: Whose branches teach it.
    """
    hw, recorder, names = lab.hw, lab.recorder, set(map(str, lab.way.structures))
    lab.filled(*names)
    if "btb" in names and lab.way.tag is Tag.ADDRESS:
        for branch in sorted({*lab.sites, USER_FUNCTION + CALL, USER_FUNCTION + RETURN}):
            recorder.btb.add(Training(owner, branch, GADGET, hw.thread))
    if "bhb" in names:
        for branch in PATTERN:
            recorder.bhb.add(Training(owner, branch, branch, hw.thread))
    if "rsb" in names:
        for number in range(FILL):
            recorder.rsb.add(Training(owner, number, GADGET, hw.thread))
    if "pht" in names:
        for check in CHECKS:
            recorder.condition(hw.thread, owner, check, taken=True)
        recorder.condition(hw.thread, owner, ENTRY, taken=False)
