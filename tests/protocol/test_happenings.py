"""What one CPU does at each happening, and what it asks of the hardware."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from asikit.protocol import (
    TLB_FLUSHES,
    AsiClass,
    ConfigError,
    CpuBug,
    CpuFeature,
    Effect,
    EffectKind,
    ExitReason,
    Happening,
    MisuseError,
    Protocol,
    ProtocolConfig,
    Space,
    State,
    Taint,
    blanket_config,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

H = Happening
K = EffectKind
PUBLISHED = ProtocolConfig()
NO_CONTEXT_SWITCH_EXIT = ProtocolConfig(exit_on_context_switch=False)


def follow(
    protocol: Protocol, *happenings: Happening, state: State | None = None
) -> tuple[State, list[str], list[ExitReason]]:
    """Run happenings; return the last state, all effects as text, and the exits."""
    state = state or protocol.initial()
    effects: list[str] = []
    exits: list[ExitReason] = []
    for happening in happenings:
        outcome = protocol.happen(state, happening)
        state = outcome.state
        effects += [str(effect) for effect in outcome.effects]
        exits += [outcome.exit_reason] if outcome.exit_reason else []
    return state, effects, exits


def last(protocol: Protocol, *happenings: Happening) -> tuple[State, list[str], list[ExitReason]]:
    """Run happenings; return the state, effects and exits of the last one alone."""
    before, _, _ = follow(protocol, *happenings[:-1])
    return follow(protocol, happenings[-1], state=before)


def test_a_round_trip_without_sensitive_access_asks_for_nothing() -> None:
    """The fast path by which ASI wins: entry, kernel work, return."""
    protocol = Protocol(PUBLISHED)
    user, _, _ = follow(protocol, H.RETURN_USER)
    assert follow(protocol, H.SYSCALL_ENTRY, H.RETURN_USER, state=user) == (user, [], [])
    assert follow(protocol, H.INTERRUPT_ENTRY, H.RETURN_USER, state=user) == (user, [], [])


def test_a_touch_of_sensitive_memory_exits() -> None:
    """Fault; predictors flushed before CR3; the walk; and on the return the buffers flushed after CR3."""
    protocol = Protocol(PUBLISHED)
    _, effects, exits = last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, H.UNMAPPED_TOUCH)
    assert effects == ["page_fault", "ibpb", "rsb_fill", "write_cr3(unrestricted)", "page_walk"]
    assert exits == [ExitReason.PAGE_FAULT]
    _, effects, exits = last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, H.UNMAPPED_TOUCH, H.RETURN_USER)
    assert effects == ["write_cr3(restricted userspace)", "l1d_flush", "verw"]
    assert exits == []


def test_a_second_touch_costs_nothing() -> None:
    """Unrestricted, everything is mapped."""
    protocol = Protocol(PUBLISHED)
    assert last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, H.UNMAPPED_TOUCH, H.UNMAPPED_TOUCH)[1:] == ([], [])


def test_the_four_states() -> None:
    """Relaxed or tense, restricted or unrestricted: all four exist, and tense is undone at the outermost return."""
    protocol = Protocol(PUBLISHED)
    boot, _, _ = follow(protocol)
    user, _, _ = follow(protocol, H.RETURN_USER)
    kernel, _, _ = follow(protocol, H.SYSCALL_ENTRY, state=user)
    interrupt, _, exits = follow(protocol, H.INTERRUPT_ENTRY, H.UNMAPPED_TOUCH, state=user)
    seen = [(state.is_tense, state.is_restricted) for state in (boot, user, kernel, interrupt)]
    assert seen == [(False, False), (True, True), (False, True), (True, False)]
    assert exits == [ExitReason.PAGE_FAULT]
    again, effects, _ = follow(protocol, H.RETURN_USER, state=interrupt)
    assert again == user
    assert effects == ["write_cr3(restricted userspace)", "l1d_flush", "verw"]


def test_user_mode_page_fault_does_not_exit_by_itself() -> None:
    """Only the nested fault in its handler does, at depth 2; a nested return at depth 1 does not enter again."""
    protocol = Protocol(PUBLISHED)
    handler, _, exits = follow(protocol, H.RETURN_USER, H.EXCEPTION_ENTRY)
    assert (handler.task.intr_nest_depth, exits) == (1, [])
    touched, _, exits = follow(protocol, H.UNMAPPED_TOUCH, state=handler)
    assert (touched.task.intr_nest_depth, touched.is_restricted, exits) == (1, False, [ExitReason.PAGE_FAULT])


def test_kernel_mode_fault_that_is_real() -> None:
    """Every kernel-mode page fault exits, ordinary demand faults too; its handler runs until its return."""
    protocol = Protocol(PUBLISHED)
    state, effects, exits = last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, H.NESTED_PAGE_FAULT)
    assert (effects[-1], exits) == ("page_walk", [ExitReason.PAGE_FAULT])
    again, effects, exits = follow(protocol, H.NESTED_RETURN, H.NESTED_PAGE_FAULT, state=state)
    assert (effects, exits) == (["page_walk"], [])
    assert not again.is_restricted


def test_interrupts_do_not_exit_by_themselves() -> None:
    """Nested interrupts, exceptions and NMIs cost nothing unless they fault; #DF exits at once."""
    protocol = Protocol(PUBLISHED)
    for nested in (H.NESTED_INTERRUPT, H.NESTED_EXCEPTION, H.NESTED_NMI):
        assert last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, nested)[1:] == ([], [])
    assert last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, H.DOUBLE_FAULT)[2] == [ExitReason.MISC]


def test_guest_round_trip_and_the_vmm() -> None:
    """VM exits that need nothing cost nothing; from the guest's domain to the VMM's is a direct switch."""
    protocol = Protocol(PUBLISHED)
    kernel, _, _ = follow(protocol, H.RETURN_USER, H.SYSCALL_ENTRY)
    guest, effects, _ = follow(protocol, H.VM_ENTRY, state=kernel)
    # The VMM's own data is what the guest must not sample.
    assert effects == ["write_cr3(restricted kvm)", "l1d_flush", "verw", "refresh_host_cr3(restricted kvm)"]
    again, effects, exits = follow(protocol, H.VM_EXIT, H.VM_ENTRY, state=guest)
    assert (again, effects, exits) == (guest, ["refresh_host_cr3(restricted kvm)"], [])
    _, effects, exits = follow(protocol, H.VM_EXIT, H.RETURN_USER, state=guest)
    # The guest trusts its VMM with its data, but the VMM fears the guest's training.
    assert (effects, exits) == (["ibpb", "rsb_fill", "write_cr3(restricted userspace)"], [])


def test_guest_may_be_allowed_to_sample_its_vmm() -> None:
    """Without `kvm_protects_user_data` no data flush is needed from the VMM to its guest."""
    protocol = Protocol(replace(PUBLISHED, kvm_protects_user_data=False))
    effects = last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, H.VM_ENTRY)[1]
    assert effects == ["write_cr3(restricted kvm)", "refresh_host_cr3(restricted kvm)"]


def test_prototype_exits_at_the_end_of_kvm_run() -> None:
    """`kvm_exit_on_user_return`: an exit when the VCPU's thread goes back to user mode."""
    protocol = Protocol(replace(PUBLISHED, kvm_exit_on_user_return=True))
    steps = (H.RETURN_USER, H.SYSCALL_ENTRY, H.VM_ENTRY, H.VM_EXIT, H.RETURN_USER)
    assert last(protocol, *steps)[2] == [ExitReason.USER_RET]
    assert last(protocol, *steps, H.SYSCALL_ENTRY, H.RETURN_USER)[2] == []


def test_a_class_that_is_not_registered_is_not_covered() -> None:
    """With KVM alone, user mode needs the unrestricted address space; with userspace alone, guests run as ever."""
    kvm = Protocol(replace(PUBLISHED, classes=frozenset({AsiClass.KVM})))
    state, _, exits = last(kvm, H.VM_ENTRY, H.VM_EXIT, H.RETURN_USER)
    assert (exits, state.space) == ([ExitReason.USER_RET], Space.UNRESTRICTED)
    userspace = Protocol(replace(PUBLISHED, classes=frozenset({AsiClass.USERSPACE})))
    assert last(userspace, H.RETURN_USER, H.SYSCALL_ENTRY, H.VM_ENTRY)[1:] == ([], [])


def test_kvm_policy_knows_what_the_vm_exit_clears() -> None:
    """GUEST_CONTROL is no taint if every VM exit clears the predictors; unless a sibling's guest trains them on."""
    features = frozenset(CpuFeature)
    one = ProtocolConfig(features=features).registry.policy(AsiClass.KVM)
    two = ProtocolConfig(features=features, smt=True).registry.policy(AsiClass.KVM)
    assert (one.set, two.set) == (Taint.GUEST_DATA, Taint.GUEST_DATA | Taint.GUEST_CONTROL)


def test_context_switches() -> None:
    """Every one exits, or only a change of mm; lazy TLB (a kernel thread and back) keeps the domain then."""
    steps = (H.RETURN_USER, H.SYSCALL_ENTRY, H.CONTEXT_SWITCH)
    assert last(Protocol(PUBLISHED), *steps)[2] == [ExitReason.CONTEXT_SWITCH]
    lazy = Protocol(NO_CONTEXT_SWITCH_EXIT)
    state, effects, _ = last(lazy, *steps)
    kthread = lazy.load_task(state, lazy.initial_task())
    back = lazy.load_task(lazy.happen(kthread, H.CONTEXT_SWITCH).state, lazy.save_task(state))
    assert (back, effects) == (state, [])
    assert last(lazy, H.RETURN_USER, H.SYSCALL_ENTRY, H.MM_SWITCH)[2] == [ExitReason.SWITCH_MM]


def test_switch_of_mm_squashes_taints() -> None:
    """What was the user's becomes another mm's."""
    state, _, _ = follow(Protocol(PUBLISHED), H.RETURN_USER, H.SYSCALL_ENTRY, H.MM_SWITCH)
    assert state.taints == Taint.KERNEL_DATA | Taint.OTHER_MM_DATA


def test_target_and_depth_go_with_the_task() -> None:
    """A task preempted in an interrupt of its critical section is restored to its domain wherever it runs next."""
    protocol = Protocol(NO_CONTEXT_SWITCH_EXIT)
    state, _, _ = follow(protocol, H.RETURN_USER, H.INTERRUPT_ENTRY, H.CONTEXT_SWITCH, H.MM_SWITCH)
    preempted = protocol.save_task(state)
    other = protocol.initial()  # another CPU
    resumed = protocol.load_task(other, preempted)
    after, effects, _ = follow(protocol, H.RETURN_USER, state=resumed)
    assert (after.in_critical_section, after.space) == (True, Space.USERSPACE)
    assert effects == ["write_cr3(restricted userspace)", "l1d_flush", "verw"]


def test_explicit_exits() -> None:
    """Code that cannot live with a changing CR3, and full flushes of user addresses, exit first."""
    protocol = Protocol(PUBLISHED)
    assert last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, H.EXPLICIT_EXIT)[2] == [ExitReason.MISC]
    assert last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, H.TLB_FLUSH_USER)[2] == [ExitReason.TLB_FLUSH]
    for flush in TLB_FLUSHES[1:]:
        assert last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, flush)[1:] == ([], [])


@pytest.mark.parametrize("flush", TLB_FLUSHES)
def test_flushes_exit_as_configured(flush: Happening) -> None:
    """Each kind of flush exits if the configuration says so, and only then."""
    for exits in (frozenset(TLB_FLUSHES) - {flush}, frozenset({flush}), frozenset[Happening]()):
        protocol = Protocol(replace(PUBLISHED, exit_on_tlb_flush=exits))
        wanted = [ExitReason.TLB_FLUSH] if flush in exits else []
        assert last(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, flush)[2] == wanted


def test_only_flushes_exit_as_flushes() -> None:
    """A configuration that names something else is refused."""
    with pytest.raises(ConfigError, match="exit_on_tlb_flush has syscall_entry; it takes only tlb_flush_user, "):
        replace(PUBLISHED, exit_on_tlb_flush=frozenset({H.SYSCALL_ENTRY}))


def test_noflush_keeps_tlb_entries_until_a_flush() -> None:
    """The first enter flushes, later ones do not; a flush outdates every space but the loaded one, which is flushed."""
    protocol = Protocol(replace(PUBLISHED, noflush=True))
    round_trip = (H.SYSCALL_ENTRY, H.UNMAPPED_TOUCH, H.RETURN_USER)

    def writes(*happenings: Happening) -> list[str]:
        return [text for text in last(protocol, *happenings)[1] if text.startswith(("write_cr3", "tlb_flush"))]

    assert writes(H.RETURN_USER) == ["write_cr3(restricted userspace)"]
    assert writes(H.RETURN_USER, *round_trip) == ["write_cr3(restricted userspace, noflush)"]
    assert writes(H.RETURN_USER, H.SYSCALL_ENTRY, H.UNMAPPED_TOUCH) == ["write_cr3(unrestricted, noflush)"]
    for flush in TLB_FLUSHES:
        flushed = (H.RETURN_USER, H.SYSCALL_ENTRY, flush)
        assert writes(*flushed) == ["tlb_flush(restricted userspace)"]
        assert writes(*flushed, H.UNMAPPED_TOUCH) == ["write_cr3(unrestricted)"]
        assert writes(*flushed, H.UNMAPPED_TOUCH, H.RETURN_USER) == ["write_cr3(restricted userspace, noflush)"]
    assert writes(H.RETURN_USER, *round_trip, H.SYSCALL_ENTRY, H.MM_SWITCH, H.RETURN_USER) == [
        "write_cr3(restricted userspace)"
    ]


def test_user_flush_leaves_guests_alone() -> None:
    """KVM's domain maps no user addresses, so a flush of those does not outdate it."""
    protocol = Protocol(replace(PUBLISHED, noflush=True))
    state, effects, _ = last(protocol, H.VM_ENTRY, H.VM_EXIT, H.TLB_FLUSH_USER)
    assert effects == []
    assert state.cpu.tlb_stale == (1 << Space.UNRESTRICTED) | (1 << Space.USERSPACE)


def test_smt_stuns_and_releases() -> None:
    """The sibling is interrupted before anything else in an exit and released after the data flush."""
    protocol = Protocol(replace(PUBLISHED, smt=True))
    _, effects, _ = follow(protocol, H.RETURN_USER, H.SYSCALL_ENTRY, H.UNMAPPED_TOUCH, H.RETURN_USER)
    assert effects == [
        *("write_cr3(restricted userspace)", "l1d_flush", "verw", "unstun"),
        *("page_fault", "stun", "ibpb", "rsb_fill", "write_cr3(unrestricted)", "page_walk"),
        *("write_cr3(restricted userspace)", "l1d_flush", "verw", "unstun"),
    ]


def test_pti_with_asi() -> None:
    """Both together: the entry stays in the restricted address space, only its half changes."""
    protocol = Protocol(replace(PUBLISHED, pti=True))
    _, effects, _ = follow(protocol, H.RETURN_USER, H.SYSCALL_ENTRY)
    assert effects[-2:] == [
        "write_cr3(restricted userspace, user half, noflush)",
        "write_cr3(restricted userspace, noflush)",
    ]


def test_flushes_are_what_the_cpu_needs() -> None:
    """No IBPB without the feature; the L1D with L1TF only (as published), VERW with MDS, nothing without bugs."""
    published = ProtocolConfig(bugs=frozenset({CpuBug.L1TF}))
    assert published.data_flush == (K.L1D_FLUSH,)
    assert ProtocolConfig(bugs=frozenset()).data_flush == ()
    assert ProtocolConfig(bugs=frozenset(CpuBug)).data_flush == (K.L1D_FLUSH, K.VERW, K.DUMMY_DIVIDE)
    assert ProtocolConfig(bugs=frozenset({CpuBug.BHI})).control_flush == (K.IBPB, K.BHB_CLEAR, K.RSB_FILL)
    assert ProtocolConfig(features=frozenset(), rsb_fill=False).control_flush == ()


def test_blanket_mitigation_flushes_at_every_entry_and_return() -> None:
    """Predictors at each entry, data at each return, PTI's CR3 writes between; nothing at nested entries or touches."""
    protocol = Protocol(blanket_config())
    _, effects, exits = follow(
        protocol, H.RETURN_USER, H.SYSCALL_ENTRY, H.UNMAPPED_TOUCH, H.NESTED_NMI, H.NESTED_RETURN
    )
    assert effects == [
        *("write_cr3(unrestricted, user half, noflush)", "l1d_flush", "verw"),
        *("ibpb", "rsb_fill", "write_cr3(unrestricted, noflush)"),
    ]
    assert exits == []
    assert last(protocol, H.VM_ENTRY)[1] == ["l1d_flush", "verw"]
    assert last(protocol, H.VM_ENTRY, H.VM_EXIT)[1] == ["ibpb", "rsb_fill"]


def states(protocol: Protocol) -> Iterator[tuple[State, Happening, tuple[Effect, ...]]]:
    """Yield every reachable state with every happening that is legal there, task switches included."""
    start, seen = [protocol.initial()], {protocol.initial()}
    while start:
        state = start.pop()
        found = [protocol.load_task(state, protocol.initial_task())]
        for happening in Happening:
            try:
                outcome = protocol.happen(state, happening)
            except MisuseError:
                continue
            yield state, happening, outcome.effects
            found.append(outcome.state)
        for new in found:
            if new not in seen:
                seen.add(new)
                start.append(new)


def test_asi_off_asks_for_nothing() -> None:
    """`asi=off`: whatever happens, no effects."""
    assert {effects for _, _, effects in states(Protocol(ProtocolConfig(asi=False)))} == {()}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PUBLISHED, 160),
        (ProtocolConfig(noflush=True, smt=True, exit_on_context_switch=False), 467),
        (ProtocolConfig(asi=False), 2),
        (blanket_config(), 4),
    ],
    ids=["published", "noflush and smt", "off", "blanket"],
)
def test_reachable_states_are_few(config: ProtocolConfig, expected: int) -> None:
    """Finite and few, so that a replay can tabulate them."""
    assert len({state for state, _, _ in states(Protocol(config))}) == expected
