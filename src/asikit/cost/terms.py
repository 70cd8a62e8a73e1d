"""What a mitigation adds to a run, as terms: how often, at which price, counted as what."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.cost.expression import Monomial, Range
from asikit.cost.parameters import Basis, Parameter, Unit
from asikit.mitigations import Source
from asikit.protocol import PRIMITIVES, EffectKind, FlushSide, Happening
from asikit.replay import ALL_CLASSES, MechanismKind, Stepper

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from asikit.cost.measure import Base, Measured, Walked
    from asikit.machine.x86 import CpuModel
    from asikit.mitigations import KernelMitigation
    from asikit.protocol import Effect
    from asikit.replay import Policy

__all__ = [
    "LINES",
    "TRANSLATIONS",
    "CostTerm",
    "asi_terms",
    "data_terms",
    "ephmap_terms",
    "policy_terms",
    "rest_terms",
    "step_terms",
    "trace_parameters",
    "unit_exit",
]

TRANSLATIONS = "translations_per_switch"
"""Counted in the trace: kernel translations to be found again for each return that loaded another address space."""
LINES = "lines_per_flush"
"""Counted in the trace: L1D lines to be fetched again for each flush of the L1D."""

_FLUSHES = {FlushSide.CONTROL: Source.PREDICTOR_FLUSH, FlushSide.DATA: Source.BUFFER_FLUSH}
_PRICES: Mapping[EffectKind, tuple[tuple[Source, tuple[str, ...]], ...]] = {
    # A primitive costs the parameter of its name; what else it costs, and under which line, is below.
    **{each.kind: ((_FLUSHES[each.side], (each.kind.value,)),) for each in PRIMITIVES},
    EffectKind.IBPB: (
        (Source.PREDICTOR_FLUSH, ("ibpb",)),
        (Source.PREDICTOR_REFILL, ("predictor_refill",)),
    ),
    EffectKind.RSB_FILL: ((Source.RSB_FILL, ("rsb_fill",)),),
    EffectKind.L1D_FLUSH: (
        (Source.L1D_FLUSH, ("l1d_flush",)),
        (Source.L1D_REFILL, (LINES, "l1d_line_refill")),
    ),
    EffectKind.WRITE_CR3: ((Source.CR3_WRITES, ("cr3_write",)),),
    EffectKind.TLB_FLUSH: ((Source.CR3_WRITES, ("tlb_flush",)),),
    EffectKind.PAGE_FAULT: ((Source.PAGE_FAULTS, ("page_fault",)), (Source.PAGE_FAULTS, ("fault_work",))),
    EffectKind.BARRIER: ((Source.TRANSITIONS, ("barrier",)),),
    EffectKind.REFRESH_HOST_CR3: ((Source.TRANSITIONS, ("host_cr3_write",)),),
    EffectKind.STUN: ((Source.STUN, ("ipi",)), (Source.STUN, ("sibling_busy", "ipi"))),
    EffectKind.UNSTUN: (),  # a store
    EffectKind.PAGE_WALK: (),  # in fault_work
}


@dataclass(frozen=True, slots=True)
class CostTerm:
    """One part of a cost.

    :ivar what: In words.
    :ivar count: How often; for a share of the run, how much of it.
    :ivar price: Names of the parameters to be multiplied: one of them is a time, or all are shares.
    """

    source: Source
    what: str
    count: float
    price: tuple[str, ...]

    def monomial(self) -> Monomial:
        """Return it as a product: cycles, ns or a share, as its parameters say."""
        return Monomial(self.count).times(1, *self.price)


def data_terms(mitigation: KernelMitigation, cpu: CpuModel, base: Base) -> list[CostTerm]:
    """Return what a mitigation that is data does on a processor."""
    return [
        CostTerm(work.counts_as, f"{work.name} [{work.vulnerability.value}]: {when.text}", count, product)
        for work in mitigation.on(cpu)
        if work.counts_as is not None
        for when in work.times
        if (count := base.times(when))
        for product in work.costs
    ]


def policy_terms(measured: Measured, base: Base, *, smt: bool) -> list[CostTerm]:
    """Return what a policy's mechanism adds to the run.

    :param smt: The machine uses its sibling threads, so that the blanket mitigation does without them.
    """
    if measured.policy.mechanism.kind is MechanismKind.ASI:
        return asi_terms(measured, base)
    off = [CostTerm(Source.SMT_OFF, "capacity without the sibling threads", 1, ("smt_off",))] if smt else []
    return [*effect_terms(measured.effects), *off]


def asi_terms(measured: Measured, base: Base) -> list[CostTerm]:
    """Return what ASI adds to the run."""
    walked, result = measured.walked, measured.result
    blocks = measured.pageblocks
    sensitive, nonsensitive = measured.pageblock_shares
    terms = [
        *effect_terms(measured.effects),
        *_transition_terms(walked.switches_out, walked.switches_in),
        *([] if measured.policy.mechanism.noflush else _refill_terms(walked.switches_in, walked.switches_to_userspace)),
        *ephmap_terms(result.ephmap_operations),
    ]
    if measured.policy.mechanism.smt:  # also where another part has left the restricted address space
        share = walked.unrestricted_instructions / max(1, base.instructions)
        terms.append(CostTerm(Source.STUN, "the sibling stands still while unrestricted", share, ("sibling_busy",)))
    if not blocks.to_sensitive.is_exact or blocks.to_sensitive.mid:
        terms.append(
            CostTerm(Source.PAGEBLOCKS, "pageblock made sensitive", sensitive, (TO_SENSITIVE, "tlb_shootdown"))
        )
    if not blocks.to_nonsensitive.is_exact or blocks.to_nonsensitive.mid:
        price = (TO_NONSENSITIVE, "clear_pageblock")
        terms.append(CostTerm(Source.PAGEBLOCKS, "pageblock made nonsensitive", nonsensitive, price))
    return [term for term in terms if term.count]


def ephmap_terms(count: int) -> list[CostTerm]:
    """Return what reaching memory through so many ephemeral mappings adds."""
    return [
        CostTerm(Source.EPHMAP, "translation discarded after an ephemeral mapping", count, ("tlb_single_flush",)),
        CostTerm(Source.EPHMAP, "code of an ephemeral mapping", count, ("ephmap_work",)),
    ]


TO_SENSITIVE, TO_NONSENSITIVE = "pageblocks_to_sensitive", "pageblocks_to_nonsensitive"


def effect_terms(effects: Mapping[Effect, int]) -> list[CostTerm]:
    """Return the price of what the protocol asked of the hardware."""
    times: Counter[EffectKind] = Counter()
    for effect, count in effects.items():
        times[effect.kind] += count
    return [
        CostTerm(source, _WORDS.get(price, kind.value.replace("_", " ")), times[kind], price)
        for kind in EffectKind
        if times[kind]
        for source, price in _PRICES[kind]
    ]


_WORDS = {
    ("predictor_refill",): "mispredictions after an IBPB",
    (LINES, "l1d_line_refill"): "lines fetched again after an L1D flush",
    ("page_fault",): "page fault for ASI: exception and IRET",
    ("fault_work",): "page fault for ASI: its handler",
    ("ipi",): "stun: waiting for the sibling's answer",
    ("sibling_busy", "ipi"): "stun: the sibling's time for the interrupt",
}


def unit_exit(measured: Measured, base: Base) -> list[CostTerm]:
    """Return what one exit by a page fault, and the return that enters again, add to a round trip.

    The protocol itself says what they ask for: it is run through a system call that touches what is missing.
    """
    effects = exit_effects(measured.policy)
    walked = measured.walked
    terms = [*effect_terms(effects), *_transition_terms(1, 1)]
    if not measured.policy.mechanism.noflush:
        terms += _refill_terms(1, 1)
    if any(effect.kind is EffectKind.STUN for effect in effects):
        instructions = walked.unrestricted_instructions / max(1, walked.switches_out)
        share = instructions / max(1, base.instructions)
        terms.append(CostTerm(Source.STUN, "the sibling stands still while unrestricted", share, ("sibling_busy",)))
    return terms


def exit_effects(policy: Policy) -> Counter[Effect]:
    """Return what the protocol asks for from the touch of missing memory to the return to user mode."""
    stepper = Stepper(policy, ALL_CLASSES)
    state = stepper.initial()
    asked: Counter[Effect] = Counter()
    for happening in (
        Happening.RETURN_USER,
        Happening.SYSCALL_ENTRY,
        Happening.UNMAPPED_TOUCH,
        Happening.RETURN_USER,
    ):
        step = stepper.step(state, happening)
        state = step.state
        asked = Counter(step.effects) + (asked if happening is Happening.RETURN_USER else Counter())
    return asked


def rest_terms(measured: Measured, base: Base) -> list[CostTerm]:
    """Return what ASI adds but for exits by page faults: switches between domains, ephemeral mappings, pageblocks."""
    exits = measured.result.exits
    counted: dict[tuple[Source, str, tuple[str, ...]], float] = {}
    for term in asi_terms(measured, base):
        key = (term.source, term.what, term.price)
        counted[key] = counted.get(key, 0) + term.count
    for term in unit_exit(measured, base):
        key = (term.source, term.what, term.price)
        if key in counted:
            counted[key] = max(0.0, counted[key] - exits * term.count)
    return [CostTerm(source, what, count, price) for (source, what, price), count in counted.items() if count]


def step_terms(
    effects: Sequence[Effect], *, exits: bool, enters: bool, to_userspace: bool, refills: bool
) -> list[CostTerm]:
    """Return the price of one step of the protocol; those of all steps add up to what a run's exits and entries cost.

    :param exits: It leaves the restricted address space; ``enters``: it loads one again.
    :param refills: A load of an address space loses what the TLB has.
    """
    terms = [*effect_terms(Counter(effects)), *_transition_terms(int(exits), int(enters))]
    if enters and refills:
        terms += _refill_terms(1, int(to_userspace))
    return [term for term in terms if term.count]


def _transition_terms(out: int, into: int) -> list[CostTerm]:
    return [
        CostTerm(Source.TRANSITIONS, "code of asi_exit", out, ("transition_work",)),
        CostTerm(Source.TRANSITIONS, "code of asi_enter", into, ("transition_work",)),
    ]


def _refill_terms(switches: int, to_userspace: int) -> list[CostTerm]:
    return [
        CostTerm(Source.TLB_REFILL, "kernel translations walked again", switches, (TRANSLATIONS, "tlb_walk")),
        CostTerm(Source.TLB_REFILL, "user translations walked again", to_userspace, ("user_translations", "tlb_walk")),
    ]


def trace_parameters(
    measured: Measured, base: Base, parameters: Mapping[str, Parameter], l1d_lines: int
) -> dict[str, Parameter]:
    """Return what the trace says of the state that each switch and flush takes, as parameters with ranges."""
    walked = measured.walked
    blocks = measured.pageblocks
    switched = walked.switches_in and measured.policy.mechanism.kind is MechanismKind.ASI
    translations = _per_switch(walked, parameters["used_again"].range) if switched else _per_trip(base.walked)
    where = "this policy's returns into a restricted address space" if switched else "all round trips"
    flushes = walked.flushes or base.walked.flushes
    return {
        TRANSLATIONS: _counted(
            translations,
            f"the trace, over {where}: large pages to pages of 4 KiB; before an exit by used_again",
        ),
        LINES: _counted(
            _lines(flushes, parameters, l1d_lines),
            f"the trace's pages until the next flush, times lines_per_page, plus user_lines, at most {l1d_lines} lines",
        ),
        TO_SENSITIVE: _counted(blocks.to_sensitive, "the trace's allocations: see docs/cost.md, pageblocks"),
        TO_NONSENSITIVE: _counted(blocks.to_nonsensitive, "the trace's allocations: see docs/cost.md, pageblocks"),
    }


def _counted(figures: Range, source: str) -> Parameter:
    low, mid, high = figures.low, figures.mid, figures.high
    return Parameter(unit=Unit.COUNT, basis=Basis.TRACE, source=source, low=low, mid=mid, high=high)


def _per_switch(walked: Walked, used_again: Range) -> Range:
    """Return the translations to be found again for a return that loaded another address space."""
    (large, small), (large_before, small_before) = walked.misses, walked.before_exit
    counts = (
        large + used_again.low * large_before,
        large + used_again.mid * large_before,
        small + used_again.high * small_before,
    )
    return Range(*(count / walked.switches_in for count in counts))


def _per_trip(walked: Walked) -> Range:
    trips = max(1, walked.round_trips)
    least, most = walked.touched
    return Range(least / trips, least / trips, most / trips)


def _lines(flushes: Mapping[int, int], parameters: Mapping[str, Parameter], l1d_lines: int) -> Range:
    """Return the lines to be fetched again for a flush: no more than the L1D has, whatever was touched."""
    per_page, user = parameters["lines_per_page"].range, parameters["user_lines"].range

    def mean(lines: float, own: float) -> float:
        return _mean((min(pages * lines + own, l1d_lines), times) for pages, times in flushes.items())

    # At the least nothing: what was flushed might have been displaced anyway.
    return Range(0.0, mean(per_page.mid, user.mid), mean(per_page.high, user.high))


def _mean(weighted: Iterable[tuple[float, int]]) -> float:
    pairs = list(weighted)
    total = sum(times for _, times in pairs)
    return sum(value * times for value, times in pairs) / total if total else 0.0
