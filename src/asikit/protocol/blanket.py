"""The mitigations that ASI is compared with, in the same micro-operations: blanket flushing, and nothing at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.protocol.entries import (
    ENTER_USER_HALF,
    LEAVE_UNTRUSTED,
    LEAVE_USER_HALF,
    NESTED_RETURN_TO_USER_HALF,
    resume,
)
from asikit.protocol.happenings import Happening
from asikit.protocol.operations import Transition
from asikit.protocol.switching import flush_ops

if TYPE_CHECKING:
    from asikit.protocol.config import ProtocolConfig


def blanket_transitions(config: ProtocolConfig) -> tuple[Transition, ...]:
    """Return the transition of each happening without ASI: with the blanket mitigation if it is on."""
    # Predictors before PTI's CR3 write, so that nothing runs mistrained with more than the user half mapped; data after
    # it, the last place before untrusted code. Between that flush and the return an NMI can still touch a secret: the
    # hole that the blanket mitigation has and ASI has not.
    predictors = flush_ops(config.control_flush) if config.blanket else ()
    data = flush_ops(config.data_flush) if config.blanket else ()
    leave_user_half = (LEAVE_USER_HALF,) if config.pti else ()
    enter_user_half = (ENTER_USER_HALF,) if config.pti else ()
    special = (
        *(
            Transition(happening, "From user mode.", (LEAVE_UNTRUSTED, *predictors, *leave_user_half))
            for happening in Happening
            if happening.from_user
        ),
        Transition(Happening.VM_EXIT, "From a guest.", (LEAVE_UNTRUSTED, *predictors)),
        *(
            Transition(happening, "From kernel mode: nothing but PTI's.", leave_user_half)
            for happening in Happening
            if happening.nested
        ),
        Transition(Happening.RETURN_USER, "To user mode.", (*enter_user_half, *data, resume(config))),
        Transition(Happening.VM_ENTRY, "Into a guest.", (*data, resume(config))),
        Transition(NESTED_RETURN_TO_USER_HALF, "Back into entry code on the user half.", enter_user_half),
    )
    names = {transition.name for transition in special}
    rest = (Transition(happening, "Nothing to do.", ()) for happening in Happening if happening not in names)
    return (*special, *rest)
