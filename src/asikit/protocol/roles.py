"""What micro-operations are for: how code finds them, whatever they are called and wherever they stand."""

from __future__ import annotations

from enum import Enum, StrEnum


class Routine(StrEnum):
    """The transitions that others call: the ASI API and its parts. Happenings are the rest."""

    ENTER = "__asi_enter"
    EXIT = "asi_exit"
    RELAX = "asi_relax"
    INTR_ENTER = "asi_intr_enter"
    INTR_EXIT = "asi_intr_exit"
    HANDLE_SWITCH_MM = "asi_handle_switch_mm"
    FLUSH_CONTROL_FOR_ENTER = "maybe_flush_control_for_enter"
    FLUSH_CONTROL_FOR_EXIT = "maybe_flush_control_for_exit"
    FLUSH_DATA = "maybe_flush_data"


class Role(Enum):
    """What a micro-operation is for.

    A path (`asi_exit.write_cr3`) names a micro-operation for people; code that looks for one asks for its role.
    """

    LEAVE_UNTRUSTED = "says that the thread has left untrusted code"
    RESUME = "the last check before untrusted code, and the going"
    REFRESH_HOST_CR3 = "tells the VM exit which address space to come back into"

    SET_TARGET = "a client's enter begins the critical section"
    ENTER_TARGET = "a client's enter goes to its target"
    ENTER_ON_RETURN = "a return to user mode enters"
    END_INTERRUPT = "a return to user mode ends the interrupt"
    ALREADY_ENTERED = "an enter has nothing to do"
    SET_CURR_ASI = "an enter says where it goes"
    FLUSH_CONTROL_ON_ENTER = "an enter flushes the predictors"
    LOAD_ON_ENTER = "an enter writes CR3"
    FLUSH_DATA = "an enter flushes the data side channels"
    SET_TAINTS = "an enter sets the class' own taints"
    RELEASE_SIBLING = "an enter lets the sibling go on"

    ALREADY_EXITED = "an exit has nothing to do"
    STUN_SIBLING = "an exit keeps the sibling from untrusted code"
    INTERRUPT_SIBLING = "an exit interrupts the sibling"
    WAIT_FOR_SIBLING = "an exit waits until the sibling has left untrusted code"
    FLUSH_CONTROL_ON_EXIT = "an exit flushes the predictors"
    TAINT_KERNEL_DATA = "an exit says that kernel data will linger"
    LOAD_ON_EXIT = "an exit writes CR3"
    CLEAR_CURR_ASI = "an exit says that it is over"

    CLEAN = "a flush has nothing to do"
    CLEAR_TAINTS = "a flush says that it is over"

    COUNT_INTERRUPT = "a handler counts itself"
    UNCOUNT_INTERRUPT = "a handler counts itself down"
    ENTER_AGAIN = "the outermost handler restores the target's address space"

    EXIT_ON_FAULT = "a page fault exits"
    EXIT_ON_CONTEXT_SWITCH = "a switch of tasks exits"
    EXIT_ON_MM_SWITCH = "a switch of mm exits"
    SQUASH = "a switch of mm squashes the taints"
    SQUASH_DATA = "what the old mm left becomes what another mm left: data"
    WALK = "a page fault looks whether the access is possible now"

    ENTER_USER_HALF = "goes to the page tables' user half"

    PREPARE_LOAD = "finds out whether a write of CR3 may keep TLB entries"
    LOAD_KEEPING = "writes CR3, and keeps TLB entries"
    LOADED = "a write of CR3 that kept no TLB entries is over"
    OUTDATE_TLB = "counts a generation of address spaces"
    NOTE_TLB_GEN = "reads the generation that the coming flush is for"
    RECORD_TLB_GEN = "notes the generation as seen"
    FLUSH_DOMAIN = "flushes the domain's TLB entries"
