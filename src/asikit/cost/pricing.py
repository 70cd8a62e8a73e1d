"""The price of each mitigation on a processor: overhead, where it comes from, and when ASI would lose."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from asikit.cost.errors import CostError
from asikit.cost.expression import Monomial, Range, Sum, extremes, ratio_extremes, scaled, value_of
from asikit.cost.measure import measure_portions
from asikit.cost.parameters import Basis, Parameter, Unit, cpu_parameters
from asikit.cost.priced import priced_mitigation
from asikit.cost.result import BreakEven, CostPart, CostResult, CostRow, EachRow, Influence, PartRow
from asikit.cost.terms import CostTerm, data_terms, ephmap_terms, policy_terms, rest_terms, trace_parameters, unit_exit
from asikit.documents import SUFFIX, is_own_file
from asikit.errors import nearest
from asikit.machine.x86 import Feature
from asikit.mitigations import Source, base_name, shipped_mitigations
from asikit.protocol import EffectKind
from asikit.replay import MechanismKind, PolicyCpu, load_policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from asikit.cost.measure import Measured, Portion, Portions
    from asikit.machine.x86 import CpuModel
    from asikit.mitigations import KernelMitigation
    from asikit.replay import By, Policy, Selection
    from asikit.trace import Trace

__all__ = ["ASI", "BLANKET", "NONE", "BaseTime", "mitigation_names", "policy_on", "price", "unit_of"]

NONE, BLANKET, ASI = "none", "blanket", "asi"
LINUX = "linux"
_NS_PER_SECOND = 1e9


@dataclass(frozen=True, slots=True)
class BaseTime:
    """How long the run takes without any mitigation.

    :ivar seconds: CPU seconds, of all CPUs together, measured natively; None: instructions times ``cpi``.
    :ivar cpi: Instead of the processor's: cycles for an instruction.
    """

    seconds: float | None = None
    cpi: Range | None = None


def mitigation_names() -> tuple[str, ...]:
    """Return the mitigations that can be asked for by name."""
    return (NONE, *sorted({*shipped_mitigations(), BLANKET, ASI}))


def price(
    trace: Trace,
    cpus: Sequence[CpuModel],
    *,
    policies: Sequence[Policy],
    mitigations: Sequence[str],
    base_time: BaseTime | None = None,
    smt: bool = False,
    selection: Selection | None = None,
    by: By | None = None,
    each: bool = False,
) -> CostResult:
    """Say what mitigations cost on a recorded workload.

    :param policies: Sensitivity policies, a row each for the mitigation ``asi``.
    :param mitigations: ``none``, ``blanket``, ``asi``, a name of :func:`shipped_mitigations`, or a TOML file; of the
        latter two also variants (:func:`asikit.mitigations.load_variant`).
    :param smt: The machine runs work on its sibling threads: ASI stuns them, the blanket mitigation does without them.
    :param selection: The part of the recording to be priced, against its own time; all of it when None.
    :param by: What the cost is divided into, besides.
    :param each: Say also what each vulnerability's part is of the mitigations that are data.
    :raises CostError: A combination that makes no sense; also :class:`PolicyError`, :class:`SelectionError`,
        :class:`TraceError`.
    """
    _check(cpus, policies, mitigations, smt=smt)
    data = {name: priced_mitigation(name) for name in (*mitigations, LINUX) if name not in {NONE, BLANKET, ASI}}
    whens = [when for mitigation in data.values() for work in mitigation.work for when in work.times]
    chosen = base_time or BaseTime()
    needed = [
        policy_on(policy, cpu, smt=smt)
        for cpu in cpus
        for policy in (*(policies if ASI in mitigations else ()), load_policy(BLANKET))
    ]
    read = measure_portions(trace, needed, selection, by, whens)
    if not read.chosen.base.instructions:
        what = "the trace has" if selection is None else f"{selection.text} has"
        raise CostError(f"{trace.path}: {what} no instructions, so nothing can be a share of its time")
    per_cpu = len(needed) // len(cpus)
    rows: list[CostRow] = []
    alone: list[EachRow] = []
    in_parts: list[list[PartRow]] = [[] for _ in read.parts]
    for number, cpu in enumerate(cpus):
        policies_here = slice(number * per_cpu, (number + 1) * per_cpu)
        pricer = _Pricer(cpu, read.chosen, read, policies_here, chosen, data=data, smt=smt)
        rows += pricer.rows(mitigations)
        alone += pricer.each(mitigations) if each else ()
        for own, (_, portion) in zip(in_parts, read.parts, strict=True):
            own.extend(_Pricer(cpu, portion, read, policies_here, chosen, data=data, smt=smt).part_rows(mitigations))
    parts = [
        CostPart.of(group.name, group.pids, portion.base, tuple(row))
        for (group, portion), row in zip(read.parts, in_parts, strict=True)
    ]
    result = CostResult.of(trace, read.chosen.base, chosen, rows, smt=smt)
    return replace(
        result,
        warnings=tuple(dict.fromkeys(line for one in read.whole.measured for line in one.warnings)),
        selection="" if selection is None else selection.text,
        by="" if by is None else by.value,
        parts=tuple(parts),
        each=tuple(alone),
    )


def _check(cpus: Sequence[CpuModel], policies: Sequence[Policy], mitigations: Sequence[str], *, smt: bool) -> None:
    for policy in policies:
        if policy.mechanism.kind is not MechanismKind.ASI:
            raise CostError.usage(
                f"policy {policy.name} is not ASI's; ask for --mitigation {BLANKET} or {NONE} instead"
            )
    for cpu in cpus:
        if smt and cpu.threads == 1:
            raise CostError.usage(f"{cpu.name} has no sibling threads: leave --smt out")
    for name in mitigations:
        base = base_name(name)
        if base != name and base in {NONE, BLANKET, ASI}:
            raise CostError.usage(f"{name}: {base} is no list of mitigations, so none can be left out of it")
        if base not in mitigation_names() and not is_own_file(base):
            known = mitigation_names()
            raise CostError.usage(
                f'no mitigation "{base}"{nearest(base, known)}'
                f" (there are {', '.join(known)}; a file of your own ends in {SUFFIX})"
            )


def policy_on(policy: Policy, cpu: CpuModel, *, smt: bool = False) -> Policy:
    """Return a policy on a processor: its flushes are those that the processor needs.

    :param smt: The machine runs work on its sibling threads, which ASI stuns.
    """
    described = PolicyCpu(
        features=tuple(sorted(cpu.protocol_features)),
        bugs=tuple(sorted(cpu.protocol_bugs)),
        rsb_fill=policy.cpu.rsb_fill,
    )
    stuns = policy.mechanism.kind is MechanismKind.ASI and (smt or policy.mechanism.smt)
    return replace(policy, cpu=described, mechanism=replace(policy.mechanism, smt=stuns))


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a mitigation adds, and the parameters that it may consist of; ``measured`` for ASI."""

    mitigation: str
    terms: list[CostTerm]
    parameters: Mapping[str, Parameter]
    measured: Measured | None = None


class _Pricer:
    """Prices on one processor of a recording or a part of it.

    What a switch of address spaces or a flush costs afterwards is the whole recording's mean, also in a part: so the
    parts' costs add up to the whole's.
    """

    def __init__(
        self,
        cpu: CpuModel,
        portion: Portion,
        read: Portions,
        policies: slice,
        base_time: BaseTime,
        *,
        data: Mapping[str, KernelMitigation],
        smt: bool,
    ) -> None:
        """Prepare.

        :param portion: What is priced: what was selected of the recording, or a part of that.
        :param policies: Which of the portions' policies are this processor's.
        :param data: The mitigations that are data, by what they were asked for by.
        """
        self._cpu = cpu
        self._data = data
        self._base = portion.base
        self._run = read.chosen.base
        self._whole = read.whole.base
        self._smt = smt
        # Measured seconds are the whole recording's; a part has as many of them as it has of the instructions.
        self._seconds = None if base_time.seconds is None else base_time.seconds / self._whole.instructions
        self._shared: dict[str, Parameter] = dict(cpu_parameters(cpu))
        if base_time.cpi is not None:
            self._shared["cpi"] = msgspec.structs.replace(
                self._shared["cpi"],
                basis=Basis.USER,
                source="--cpi",
                low=base_time.cpi.low,
                mid=base_time.cpi.mid,
                high=base_time.cpi.high,
                value=None,
            )
        measured = portion.measured[policies]
        self._wholes = dict(zip(map(id, measured), read.whole.measured[policies], strict=True))
        self._policies = [one for one in measured if one.policy.mechanism.kind is MechanismKind.ASI]
        self._blanket = next(one for one in measured if one.policy.mechanism.kind is not MechanismKind.ASI)

    def rows(self, mitigations: Sequence[str]) -> list[CostRow]:
        """Return a row for each mitigation, and for ASI a row for each policy."""
        return [
            self._row(row.mitigation, row.terms, row.parameters)
            if row.measured is None
            else self._asi_row(row.measured)
            for row in self._terms(mitigations)
        ]

    def _terms(self, mitigations: Sequence[str]) -> Iterator[_Terms]:
        for name in mitigations:
            if name == NONE:
                yield _Terms(name, [], self._shared)
            elif name == BLANKET:
                yield _Terms(name, self._blanket_terms, self._with_trace(self._blanket))
            elif name == ASI:
                for measured in self._policies:
                    terms = policy_terms(measured, self._base, smt=self._smt)
                    yield _Terms(name, terms, self._with_trace(measured), measured)
            else:
                mitigation = self._data[name]
                yield _Terms(mitigation.name, data_terms(mitigation, self._cpu, self._base), self._shared)

    def each(self, mitigations: Sequence[str]) -> list[EachRow]:
        """Return what each vulnerability adds to each of the mitigations that are data."""
        return [row for name in mitigations if name in self._data for row in self._each(self._data[name])]

    def _each(self, mitigation: KernelMitigation) -> Iterator[EachRow]:
        """Give a row for each vulnerability, or for those that only count together: with it, less without it."""
        ranges = {key: parameter.range for key, parameter in self._shared.items()}
        everything = Counter(data_terms(mitigation, self._cpu, self._base))
        left = mitigation.vulnerabilities & self._cpu.bugs - mitigation.left_out
        groups = {tuple(sorted(mitigation.with_it(bug, self._cpu))): bug for bug in sorted(left)}
        acted = {work.vulnerability for work in mitigation.on(self._cpu)}
        for group in groups:
            rest = Counter(data_terms(mitigation.without(group), self._cpu, self._base))
            names = tuple(bug.value for bug in group)
            if everything == rest:
                if acted.intersection(group):
                    yield EachRow(mitigation.name, self._cpu.name, names)
                continue
            share, cycles = (
                (
                    *figure(list((everything - rest).elements()), self._shared),
                    *scaled(figure(list((rest - everything).elements()), self._shared), -1),
                )
                for figure in (self._share, self._cycles)
            )
            trips = max(1, self._base.walked.round_trips)
            yield EachRow(
                mitigation.name,
                self._cpu.name,
                names,
                extremes(share, ranges),
                extremes(scaled(cycles, 1 / trips), ranges),
            )

    def part_rows(self, mitigations: Sequence[str]) -> list[PartRow]:
        """Return what each mitigation adds in this part."""
        return [self._part_row(row) for row in self._terms(mitigations)]

    def _part_row(self, row: _Terms) -> PartRow:
        ranges = {key: parameter.range for key, parameter in row.parameters.items()}
        return PartRow(
            row.mitigation,
            None if row.measured is None else row.measured.policy.name,
            self._cpu.name,
            extremes(self._cycles(row.terms, row.parameters), ranges),
            extremes(self._share(row.terms, row.parameters), ranges),
            None if row.measured is None else row.measured.result.exits,
        )

    @cached_property
    def _blanket_terms(self) -> list[CostTerm]:
        return policy_terms(self._blanket, self._base, smt=self._smt)

    def _with_trace(self, measured: Measured) -> dict[str, Parameter]:
        lines = self._cpu.structures.l1d.entries
        return self._shared | trace_parameters(self._wholes[id(measured)], self._whole, self._shared, lines)

    def _row(self, name: str, terms: list[CostTerm], parameters: Mapping[str, Parameter]) -> CostRow:
        ranges = {key: parameter.range for key, parameter in parameters.items()}
        overhead = self._share(terms, parameters)
        added = self._cycles(terms, parameters)
        by_source = {
            source.value: extremes(self._share([t for t in terms if t.source is source], parameters), ranges)
            for source in Source
            if any(term.source is source for term in terms)
        }
        return CostRow(
            mitigation=name,
            policy=None,
            cpu=self._cpu.name,
            overhead=extremes(overhead, ranges),
            per_round_trip=extremes(
                tuple(term.times(1 / max(1, self._base.walked.round_trips)) for term in added), ranges
            ),
            by_source=by_source,
            terms=tuple(terms),
            shares=overhead,
            parameters=_used(parameters, [*overhead, *added]),
            sensitivity=_sensitivity(overhead, parameters, ranges),
            round_trips=self._base.walked.round_trips,
        )

    def _asi_row(self, measured: Measured) -> CostRow:
        parameters = self._with_trace(measured)
        ranges = {key: parameter.range for key, parameter in parameters.items()}
        terms = policy_terms(measured, self._base, smt=self._smt)
        exit_terms = unit_exit(measured, self._base)
        one_exit = self._cycles(exit_terms, parameters)
        row = self._row(ASI, terms, parameters)
        result = measured.result
        return replace(
            row,
            policy=measured.policy.name,
            exits=result.exits,
            round_trips_with_exit=result.round_trips - result.round_trips_without_exit,
            per_exit=extremes(one_exit, ranges),
            per_exit_ns=extremes(_nanoseconds(one_exit), ranges),
            per_ephmap_ns=extremes(_nanoseconds(self._cycles(ephmap_terms(1), parameters)), ranges)
            if result.ephmap_operations
            else None,
            exit_by_source={
                source.value: extremes(self._cycles([t for t in exit_terms if t.source is source], parameters), ranges)
                for source in Source
                if any(term.source is source for term in exit_terms)
            },
            break_even=self._break_even(measured, self._blanket_terms, one_exit),
            break_even_linux=self._break_even(measured, data_terms(self._data[LINUX], self._cpu, self._base), one_exit),
            parameters={**row.parameters, **_used(parameters, one_exit)},
            notes=tuple(self._notes(self._wholes[id(measured)])),
        )

    def _break_even(self, measured: Measured, other: list[CostTerm], one_exit: Sum) -> BreakEven | None:
        """The part of the round trips that may have one exit each until ASI costs as much as the other mitigation.

        None if an exit may cost nothing: no number of them is too many.
        """
        parameters = self._with_trace(measured)
        # The other mitigation's lines are those of its own flushes.
        mine = {f"blanket.{name}": parameter for name, parameter in self._with_trace(self._blanket).items()}
        names = set(self._with_trace(self._blanket)) - set(self._shared)
        renamed = [
            replace(term, price=tuple(f"blanket.{name}" if name in names else name for name in term.price))
            for term in other
        ]
        both = parameters | mine
        ranges = {key: parameter.range for key, parameter in both.items()}
        rest = self._cycles(rest_terms(measured, self._base), both)
        above = (*self._cycles(renamed, both), *(term.times(-1) for term in rest))
        trips = max(1, self._base.walked.round_trips)
        below = tuple(term.times(trips) for term in one_exit)
        if extremes(below, ranges).low <= 0:
            return None
        fraction = ratio_extremes(above, below, ranges)
        with_exit = measured.result.round_trips - measured.result.round_trips_without_exit
        return BreakEven(fraction, with_exit / max(1, measured.result.round_trips))

    def _cycles(self, terms: Sequence[CostTerm], parameters: Mapping[str, Parameter]) -> Sum:
        """Return the cycles that terms add."""
        return tuple(self._in_cycles(term, parameters) for term in terms)

    def _in_cycles(self, term: CostTerm, parameters: Mapping[str, Parameter]) -> Monomial:
        product = term.monomial()
        match unit_of(term, parameters):
            case Unit.NANOSECONDS:
                return product.times(1, "frequency")
            case Unit.SHARE if self._seconds is None:
                return product.times(self._base.instructions, "cpi")
            case Unit.SHARE:
                return product.times((self._seconds or 0) * self._base.instructions * _NS_PER_SECOND, "frequency")
            case _:
                return product

    def _share(self, terms: Sequence[CostTerm], parameters: Mapping[str, Parameter]) -> Sum:
        """Return the share of the run's time that terms add; the run is all that was selected."""
        if self._seconds is None:
            return tuple(
                self._in_cycles(term, parameters).times(1 / self._run.instructions, over=("cpi",)) for term in terms
            )
        nanoseconds = self._seconds * self._run.instructions * _NS_PER_SECOND
        return tuple(self._in_cycles(term, parameters).times(1 / nanoseconds, over=("frequency",)) for term in terms)

    def _notes(self, measured: Measured) -> list[str]:
        notes = []
        if Feature.IBPB not in self._cpu.features:
            notes.append(f"{self._cpu.name} has no IBPB, or a hypervisor hides it: no predictor flush is priced.")
        if not measured.walked.switches_in:
            notes.append("No return loaded another address space: what a switch costs is taken from all round trips.")
        if any(effect.kind is EffectKind.L1D_FLUSH for effect in measured.effects):
            notes.append("The trace has pages, not lines: the L1D's refill is bounded, and user mode's part estimated.")
        if not measured.policy.mechanism.noflush:
            notes.append("The trace has no accesses of user mode: its part of the TLB's refill is an estimate.")
        if measured.pageblocks.unknown:
            notes.append(
                f"{measured.pageblocks.unknown:,} page allocations were never touched: whether they are sensitive is"
                " unknown, and they count in no pageblock."
            )
        return notes


def unit_of(term: CostTerm, parameters: Mapping[str, Parameter]) -> Unit:
    """Return what a term counts: its parameters have one time, or are all shares.

    :raises CostError: There is no such parameter.
    """
    missing = [name for name in term.price if name not in parameters]
    if missing:
        raise CostError(
            f"data/costs.toml has no [{missing[0]}], which {term.what!r} costs: "
            "add it, with unit, basis, source and figures"
        )
    units = {parameters[name].unit for name in term.price}
    for unit in (Unit.NANOSECONDS, Unit.CYCLES):
        if unit in units:
            return unit
    return Unit.SHARE


def _nanoseconds(cycles: Sum) -> Sum:
    return tuple(term.times(1, over=("frequency",)) for term in cycles)


def _used(parameters: Mapping[str, Parameter], terms: Sequence[Monomial]) -> dict[str, Parameter]:
    names = {name for term in terms for name, _ in term.powers}
    return {name: parameters[name] for name in sorted(names)}


def _sensitivity(
    shares: Sum, parameters: Mapping[str, Parameter], ranges: Mapping[str, Range]
) -> tuple[Influence, ...]:
    """Say how far each parameter alone moves the overhead, the others at their middle; the most first."""
    names = {name for term in shares for name, _ in term.powers}
    middle = {name: ranges[name].mid for name in names}
    rows = []
    for name in sorted(names):
        ends = [value_of(shares, middle | {name: end}) for end in (ranges[name].low, ranges[name].high)]
        if max(ends) > min(ends):
            rows.append(Influence(name, parameters[name].unit, min(ends), max(ends)))
    return tuple(sorted(rows, key=lambda row: (row.low - row.high, row.parameter)))
