"""The catalogue of mutants: every element of the mechanism removed, or moved, alone.

A mutant is an edit: of the protocol's data, or of what the rest of the kernel owes it. What becomes of it is never
written here: it is found by exploring.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from asikit.proofs.errors import UnknownMutantError
from asikit.protocol import AsiClass, Happening, MicroOp, Protocol, ProtocolError, Taint, TaintPolicy
from asikit.protocol.expressions import ALWAYS, BitAnd, Const
from asikit.protocol.operations import END
from asikit.protocol.taints import DATA_MASK
from asikit.protocol.vocabulary import CONTROL, DATA, TAINTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.proofs.model import World

    Edit = Callable[[World], World]

H = Happening
ENTRIES = (H.SYSCALL_ENTRY, H.EXCEPTION_ENTRY, H.INTERRUPT_ENTRY, H.NMI_ENTRY, H.VM_EXIT)
NESTED = (H.NESTED_EXCEPTION, H.NESTED_INTERRUPT, H.NESTED_NMI, H.NESTED_PAGE_FAULT, H.DOUBLE_FAULT)
RETURNS = (H.RETURN_USER, H.VM_ENTRY)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A way to get ASI wrong.

    Attributes:
        name: for the command line.
        says: what is changed, one line.
        family: `stun`, `order`, `flush`, `taint`, `interrupt`, `kernel` (what the rest of the kernel owes), or
            `published` (bugs of the public patches).
        edit: makes the mutant of a model; a model that has no such element stays as it is.
    """

    name: str
    says: str
    family: str
    edit: "Edit"


def mutant(name: str) -> Mutant:
    """Return a mutant of the catalogue. Raises UnknownMutantError with the nearest name."""
    for candidate in CATALOGUE:
        if candidate.name == name:
            return candidate
    raise UnknownMutantError(name, [candidate.name for candidate in CATALOGUE])


def has_element(world: "World", candidate: Mutant) -> bool:
    """Whether a mutant differs from the model: without SMT there is no stun to remove."""
    changed = candidate.edit(world)
    same = dict(changed.protocol.transitions) == dict(world.protocol.transitions)
    return not same or replace(changed, protocol=world.protocol) != world


# Edits.


def _protocol(change: "Callable[[Protocol], Protocol]") -> "Edit":
    def edit(world: "World") -> "World":
        try:
            return replace(world, protocol=change(world.protocol))
        except ProtocolError:  # the configuration has no such element
            return world

    return edit


def _without(*paths: str) -> "Edit":
    def change(protocol: Protocol) -> Protocol:
        for path in paths:
            name, _, op = path.partition(".")
            if any(found.name == op for found in protocol.transitions[name].ops):
                protocol = protocol.without(path)
        return protocol

    return _protocol(change)


def _moved(path: str, *, before: str = "", after: str = "") -> "Edit":
    return _protocol(lambda protocol: protocol.reordered(path, before=before, after=after))


def _flush_first(name: str) -> "Edit":
    """Clear the taints before the flush that they ask for."""

    def change(protocol: Protocol) -> Protocol:
        first_flush = protocol.transitions[name].ops[1].name
        return protocol.reordered(f"{name}.clear_taints", before=f"{name}.{first_flush}")

    return _protocol(change)


def _resume(change: "Callable[[MicroOp], tuple[MicroOp, ...]]") -> "Edit":
    def edit(protocol: Protocol) -> Protocol:
        for name in RETURNS:
            for op in protocol.transitions[name].ops:
                if op.name == "resume" and op.waits is not ALWAYS:
                    protocol = protocol.replacing(f"{name}.resume", *change(op))
        return protocol

    return _protocol(edit)


def _rewritten_taints(mask: Taint) -> "Edit":
    """Let no assignment keep a taint outside of a mask."""

    def change(path: str, op: MicroOp) -> MicroOp:
        del path
        sets = tuple(
            replace(assign, value=BitAnd(assign.value, Const(int(mask)))) if assign.field == TAINTS else assign
            for assign in op.sets
        )
        return replace(op, sets=sets)

    return _protocol(lambda protocol: protocol.rewriting(change))


def _policy(asi_class: AsiClass, change: "Callable[[TaintPolicy], TaintPolicy]") -> "Edit":
    def edit(world: "World") -> "World":
        config = world.config
        if asi_class not in config.classes:
            return world
        policy = change(config.registry.policy(asi_class))
        others = tuple(entry for entry in config.policies if entry[0] is not asi_class)
        return replace(world, protocol=Protocol(replace(config, policies=(*others, (asi_class, policy)))))

    return edit


def _data_mask_without_guest_data(path: str, op: MicroOp) -> MicroOp:
    if path != "maybe_flush_data.clear_taints":
        return op
    published = Const(int(DATA_MASK & ~Taint.GUEST_DATA), "the published DATA_MASK")
    return replace(op, sets=tuple(replace(assign, value=TAINTS.clear(published)) for assign in op.sets))


def _squash_without_guest_data(path: str, op: MicroOp) -> MicroOp:
    if path != "asi_handle_switch_mm.squash_data":
        return _data_mask_without_guest_data(path, op)
    return replace(op, when=TAINTS.has(Const(int(DATA.value) & ~int(Taint.GUEST_DATA))))


def _exit_asks_own_taints(protocol: Protocol) -> Protocol:
    name = "maybe_flush_control_for_exit"
    first = protocol.transitions[name].ops[0].name
    if first == "clean":
        return protocol
    clean = MicroOp(name="clean", when=~TAINTS.has(CONTROL), jump=END)
    return protocol.inserting(clean, before=f"{name}.{first}")


_STUN = (
    Mutant("no-stun", "asi_exit does not mark the sibling stunned", "stun", _without("asi_exit.stun_sibling")),
    Mutant(
        "no-stun-interrupt",
        "asi_exit does not interrupt the sibling",
        "stun",
        _without("asi_exit.interrupt_sibling"),
    ),
    Mutant(
        "no-stun-acknowledgement",
        "asi_exit does not wait until the sibling has left untrusted code",
        "stun",
        _without("asi_exit.wait_for_sibling"),
    ),
    Mutant(
        "no-stun-check",
        "the return to untrusted code does not look whether it is stunned",
        "stun",
        _resume(lambda op: (replace(op, waits=ALWAYS),)),
    ),
    Mutant(
        "stun-check-not-atomic",
        "the return checks the stun in one step and goes in the next",
        "stun",
        _resume(lambda op: (replace(op, sets=()), replace(op, name="go", waits=ALWAYS))),
    ),
    Mutant(
        "release-before-data-flush",
        "__asi_enter releases the sibling before it flushes",
        "stun",
        _moved("__asi_enter.release_sibling", before="__asi_enter.flush_data"),
    ),
    Mutant("no-release", "__asi_enter never releases the sibling", "stun", _without("__asi_enter.release_sibling")),
    Mutant(
        "control-flush-before-stun",
        "asi_exit flushes the predictors while the sibling still trains them",
        "stun",
        _moved("asi_exit.flush_control", before="asi_exit.stun_sibling"),
    ),
    Mutant(
        "untrusted-kept-in-nested-entries",
        "a nested entry does not acknowledge for the entry that it interrupts",
        "stun",
        _without(*(f"{name}.leave_untrusted" for name in NESTED)),
    ),
    Mutant(
        "untrusted-kept-in-entries",
        "an entry from untrusted code does not say that it left it",
        "stun",
        _without(*(f"{name}.leave_untrusted" for name in ENTRIES)),
    ),
    Mutant(
        "no-core-scheduling",
        "siblings run untrusted code of different processes",
        "stun",
        lambda world: replace(world, core_scheduling=world.threads == 1),
    ),
)
_FLUSH = (
    Mutant(
        "no-control-flush-on-exit",
        "asi_exit does not flush the predictors",
        "flush",
        _without("asi_exit.flush_control"),
    ),
    Mutant(
        "no-control-flush-on-enter",
        "__asi_enter does not flush the predictors",
        "flush",
        _without("__asi_enter.flush_control"),
    ),
    Mutant(
        "no-data-flush",
        "__asi_enter does not flush the data side channels",
        "flush",
        _without("__asi_enter.flush_data"),
    ),
    *(
        Mutant(
            f"no-{name.replace('_', '-')}",
            f"the flush of the {what} lacks {name}",
            "flush",
            _without(*(f"{transition}.{name}" for transition in transitions)),
        )
        for name, what, transitions in (
            ("ibpb", "predictors", ("maybe_flush_control_for_exit", "maybe_flush_control_for_enter")),
            ("rsb_fill", "predictors", ("maybe_flush_control_for_exit", "maybe_flush_control_for_enter")),
            ("l1d_flush", "data side channels", ("maybe_flush_data",)),
            ("verw", "data side channels", ("maybe_flush_data",)),
        )
    ),
)
_ORDER = (
    Mutant(
        "cr3-before-control-flush-on-exit",
        "asi_exit writes CR3 before it flushes the predictors",
        "order",
        _moved("asi_exit.flush_control", after="asi_exit.write_cr3"),
    ),
    Mutant(
        "cr3-before-control-flush-on-enter",
        "__asi_enter writes CR3 before it flushes the predictors",
        "order",
        _moved("__asi_enter.flush_control", after="__asi_enter.write_cr3"),
    ),
    Mutant(
        "data-flush-before-cr3",
        "__asi_enter flushes the data side channels before it writes CR3",
        "order",
        _moved("__asi_enter.flush_data", before="__asi_enter.write_cr3"),
    ),
    Mutant(
        "cr3-before-curr-asi-on-enter",
        "__asi_enter sets curr_asi after CR3",
        "order",
        _moved("__asi_enter.set_curr_asi", after="__asi_enter.write_cr3"),
    ),
    Mutant(
        "curr-asi-before-cr3-on-exit",
        "asi_exit clears curr_asi before CR3",
        "order",
        _moved("asi_exit.clear_curr_asi", before="asi_exit.write_cr3"),
    ),
    Mutant(
        "kernel-data-after-cr3",
        "asi_exit records KERNEL_DATA after CR3",
        "order",
        _moved("asi_exit.taint_kernel_data", after="asi_exit.write_cr3"),
    ),
    Mutant(
        "taint-cleared-before-control-flush",
        "the control taints are cleared before the predictors are flushed",
        "order",
        _flush_first("maybe_flush_control_for_exit"),
    ),
    Mutant(
        "taint-cleared-before-data-flush",
        "the data taints are cleared before the flush",
        "order",
        _flush_first("maybe_flush_data"),
    ),
    Mutant(
        "target-after-enter",
        "asi_enter sets the target after it switched",
        "order",
        _moved("asi_enter_userspace.set_target", after="asi_enter_userspace.enter"),
    ),
)
_TAINT = (
    Mutant(
        "no-kernel-data-taint",
        "asi_exit does not record that kernel data will linger",
        "taint",
        _without("asi_exit.taint_kernel_data"),
    ),
    Mutant("no-class-taints", "__asi_enter sets no taints", "taint", _without("__asi_enter.set_taints")),
    Mutant("no-squash", "a switch of mm does not squash the taints", "taint", _without("mm_switch.squash")),
    Mutant(
        "guest-control-not-set",
        "a guest is believed to leave no training",
        "taint",
        _policy(AsiClass.KVM, lambda policy: replace(policy, set=Taint.GUEST_DATA)),
    ),
    Mutant(
        "user-control-not-set",
        "a process is believed to leave no training",
        "taint",
        _policy(AsiClass.USERSPACE, lambda policy: replace(policy, set=Taint.USER_DATA)),
    ),
    Mutant(
        "guest-may-sample-user",
        "KVM's policy does not protect USER_DATA",
        "taint",
        _policy(AsiClass.KVM, lambda policy: replace(policy, protect_data=policy.protect_data & ~Taint.USER_DATA)),
    ),
    Mutant(
        "boot-untainted",
        "booting leaves no taint, so the first enter does not flush",
        "published",
        lambda world: replace(world, boot_tainted=False),
    ),
)
_INTERRUPT = (
    Mutant(
        "no-reentry",
        "the outermost interrupt return does not enter again",
        "interrupt",
        _without("asi_intr_exit.enter_again"),
    ),
    Mutant(
        "no-interrupt-depth",
        "asi_intr_enter does not count",
        "interrupt",
        _without("asi_intr_enter.count"),
    ),
    Mutant(
        "reentry-before-uncount",
        "asi_intr_exit enters again before it counts down",
        "interrupt",
        _moved("asi_intr_exit.uncount", after="asi_intr_exit.enter_again"),
    ),
    Mutant(
        "no-exit-in-page-fault",
        "the page-fault handler does not exit",
        "interrupt",
        _without("nested_page_fault.exit"),
    ),
    Mutant("no-enter-on-return", "the return to user mode does not enter", "interrupt", _without("return_user.enter")),
    Mutant(
        "no-interrupt-end-on-return",
        "the return from an interrupt to user mode does not end it",
        "interrupt",
        _without("return_user.end_interrupt"),
    ),
)
_KERNEL = (
    Mutant(
        "no-exit-on-mm-switch",
        "a switch of mm does not exit",
        "kernel",
        _without("mm_switch.exit"),
    ),
    Mutant(
        "no-exit-on-context-switch",
        "a switch of tasks in one mm does not exit",
        "kernel",
        _without("context_switch.exit"),
    ),
    Mutant(
        "no-unmapping",
        "the restricted address space maps sensitive memory",
        "kernel",
        lambda world: replace(world, unmapped=False),
    ),
    Mutant(
        "no-shootdown",
        "memory turns sensitive while TLBs still have its translation",
        "kernel",
        lambda world: replace(world, shootdown=False),
    ),
)
_PUBLISHED = (
    Mutant(
        "exit-asks-own-taints",
        "with SMT, asi_exit flushes the predictors only if this thread's taints ask for it",
        "published",
        _protocol(_exit_asks_own_taints),
    ),
    Mutant(
        "kvm-policy-assigns",
        "KVM's policy sets GUEST_CONTROL with `=`, which loses GUEST_DATA",
        "published",
        _policy(AsiClass.KVM, lambda policy: replace(policy, set=Taint.GUEST_CONTROL)),
    ),
    Mutant(
        "data-mask-without-guest-data",
        "DATA_MASK lacks GUEST_DATA: never flushed away, forgotten by a switch of mm",
        "published",
        _protocol(lambda protocol: protocol.rewriting(_squash_without_guest_data)),
    ),
    Mutant(
        "six-taints",
        "ASI_NUM_TAINTS is 6: OTHER_MM_CONTROL falls off",
        "published",
        _rewritten_taints(Taint(0x3F)),
    ),
)
CATALOGUE: tuple[Mutant, ...] = (*_STUN, *_FLUSH, *_ORDER, *_TAINT, *_INTERRUPT, *_KERNEL, *_PUBLISHED)
