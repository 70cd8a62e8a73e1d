"""Verdicts: a mitigation, or a mutant of it, put through exploration."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from asikit.proofs.costs import CostWorld
from asikit.proofs.errors import TooLargeError, VerifyError
from asikit.proofs.model import World
from asikit.proofs.relation import Relation
from asikit.proofs.reproduce import Reproduction, reproduce
from asikit.proofs.story import Counterexample, tell
from asikit.protocol import AsiClass, Protocol, ProtocolConfig, blanket_config
from asikit.threat import ALL_CAPABILITIES, ASSUMPTIONS, Capability

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TextIO

    from asikit.proofs.explore import Explored
    from asikit.threat import Mutant

    Progress = Callable[[int], None]

MITIGATIONS = ("asi", "blanket")
BOTH = (AsiClass.USERSPACE, AsiClass.KVM)
"""Processes and guests."""
NOT_PROVED: tuple[str, ...] = (
    "the kernel's code beyond the transitions: that it calls them where it must, and its own software bugs",
    "which memory is mapped in the restricted address spaces: what is declared nonsensitive is readable",
    "that stores of one sibling are seen by the other in order (barriers are taken as sequentially consistent)",
    "structures that no primitive clears (GDS), that cores share (SRBDS), timing and port contention",
    "injection of the attacker's values into the kernel's loads (LVI), predictors as a channel for victims' data",
)
"""What a verdict does not say."""
NOT_PROVED_SIBLINGS = (
    "a process against its own guest when they run on sibling threads: taints are each thread's own",
)
ASSUMED_OF_THE_KERNEL: tuple[str, ...] = (
    "K1  Siblings run untrusted code of one process (mm) only: core scheduling.",
    "K2  Before memory turns sensitive it is unmapped and flushed from all TLBs; before it turns nonsensitive, zeroed.",
)
T1 = "untrusted code never observes what depends on a secret"
NO_DEADLOCK = "no thread waits for its sibling for ever"
EXPLORE, INDUCTION = "explore", "induction"
"""The methods."""
NO_MUTUAL_WAIT = "two threads never wait for one another, and who is waited for has been interrupted"
RETRY_ENDS = "no rule of the API is broken, and an access that faulted does not fault again"
T3 = "no more flushes than the blanket mitigation's, but for exits inside nested handlers"
GADGET_FREE = "K3  The code between the last flush and untrusted code cannot be made to load secrets."


class Verdict(StrEnum):
    """What became of a proof."""

    PROVED = "PROVED"
    REFUTED = "REFUTED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Property:
    """Something that is to hold, and whether it does: None where that was not found out."""

    name: str
    says: str
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Verification:
    """A verdict, and what it rests on.

    :ivar mitigation: `asi` or `blanket`.
    :ivar mutant: What was changed, None if nothing.
    :ivar variant: What was changed besides, before: the alternative of which it is a mutant.
    :ivar threads: Hardware threads.
    :ivar nesting: Handlers inside one another, on each thread.
    :ivar classes: The classes of untrusted domains.
    :ivar attacker: What the attacker can do.
    :ivar method: `explore` or `induction`.
    :ivar verdict: Whether all properties hold.
    :ivar states: States that were reached.
    :ivar transitions: Steps between them.
    :ivar seconds: How long it took.
    :ivar properties: Each property's own verdict.
    :ivar counterexample: The shortest way to break one.
    :ivar machine: What became of the counterexample on the machine; None if there is none, or that was not asked for.
    :ivar reason: Why a verdict is UNKNOWN.
    :ivar assumptions: What was taken for granted.
    :ivar not_proved: What the verdict does not say.
    :ivar obligations: Of an induction: questions that were put to the solver.
    :ivar invariant: Of an induction: name and sentence of each clause.
    """

    mitigation: str
    mutant: str | None
    threads: int
    nesting: int
    classes: tuple[str, ...]
    attacker: tuple[str, ...]
    method: str
    verdict: Verdict
    states: int = 0
    transitions: int = 0
    seconds: float = 0.0
    properties: tuple[Property, ...] = ()
    counterexample: Counterexample | None = None
    machine: Reproduction | None = None
    variant: str = ""
    reason: str = ""
    assumptions: tuple[str, ...] = ASSUMPTIONS
    not_proved: tuple[str, ...] = NOT_PROVED
    obligations: int = 0
    invariant: tuple[tuple[str, str], ...] = ()

    @property
    def steps(self) -> int | None:
        """The length of the counterexample, in moves."""
        return None if self.counterexample is None else len(self.counterexample.steps)

    @property
    def leaks_on_machine(self) -> bool | None:
        """Whether the counterexample breaks the machine too; None if that is not known."""
        return None if self.machine is None else self.machine.leaks

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return {
            "mitigation": self.mitigation,
            "mutant": self.mutant,
            "variant": self.variant or None,
            "threads": self.threads,
            "nesting": self.nesting,
            "classes": list(self.classes),
            "attacker": list(self.attacker),
            "method": self.method,
            "verdict": str(self.verdict),
            "states": self.states or None,
            "transitions": self.transitions or None,
            "seconds": round(self.seconds, 2),
            "properties": [{"name": item.name, "says": item.says, "holds": item.holds} for item in self.properties],
            "counterexample": None if self.counterexample is None else self.counterexample.to_dict(),
            "reason": self.reason or None,
            "obligations": self.obligations or None,
            "invariant": [{"name": name, "says": says} for name, says in self.invariant],
            "steps": self.steps,
            "leaks_on_machine": self.leaks_on_machine,
            "on_machine": None if self.machine is None else self.machine.to_dict(),
            "assumptions": list(self.assumptions),
            "not_proved": list(self.not_proved),
        }


def world_for(
    mitigation: str = "asi",
    *,
    threads: int = 2,
    nesting: int = 1,
    classes: Iterable[AsiClass] | None = None,
    capabilities: Capability = ALL_CAPABILITIES,
) -> World:
    """Return the model of a mitigation.

    :param mitigation: One of MITIGATIONS.
    :param threads: Hardware threads of the core, 1 or 2.
    :param nesting: Handlers that may be open inside one another on each thread; 0 is no NMIs at all.
    :param classes: The classes of untrusted domains; by default processes and guests.
    :param capabilities: What the attacker can do.
    :raises VerifyError: There is no such mitigation, the blanket mitigation is asked for with two threads, or idle
        domains are.
    """
    if mitigation not in MITIGATIONS:
        raise VerifyError(f"no mitigation {mitigation!r}: there are {' and '.join(MITIGATIONS)}")
    if mitigation == "blanket":
        if threads > 1:
            raise VerifyError("the blanket mitigation switches SMT off: use --threads 1")
        protocol = Protocol(blanket_config())
        return World(protocol, nesting=nesting, capabilities=capabilities, gadgets_anywhere=False)
    config = ProtocolConfig(classes=frozenset(BOTH if classes is None else classes), smt=threads > 1)
    if AsiClass.IDLE in config.classes:
        raise VerifyError("idle domains are not covered: which mm an idle thread keeps is not modelled")
    return World(Protocol(config), threads=threads, nesting=nesting, capabilities=capabilities, trusting=threads > 1)


def verify(
    world: World,
    mutant: Mutant | None = None,
    *,
    costs: bool = False,
    on_machine: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Explore a model, or a mutant of it, and return the verdict.

    :param costs: Whether T3 is among the properties, of ASI itself with one thread.
    :param on_machine: Run a counterexample on the machine too.
    :param progress: Called now and then with the number of states so far.
    """
    from asikit.proofs.explore import explore  # noqa: PLC0415  (numba is slow to import)

    changed = world if mutant is None else mutant.edit(mutant.base(world))
    blank = _blank(changed, mutant, EXPLORE)
    began = time.perf_counter()
    try:
        explored = explore(changed, progress=progress)
    except TooLargeError as error:
        return replace(blank, reason=str(error), seconds=time.perf_counter() - began)
    properties = tuple(_properties(explored))
    if costs and mutant is None and world.threads == 1 and world.config.asi:
        properties += (Property("T3", T3, _costs_hold(world)),)
    found = next(_findings(changed, explored), None)
    proved = found is None and all(item.holds is not False for item in properties)
    return replace(
        blank,
        verdict=Verdict.PROVED if proved else Verdict.REFUTED,
        states=explored.states,
        transitions=explored.transitions,
        seconds=time.perf_counter() - began,
        properties=properties,
        counterexample=found,
        machine=reproduce(world, mutant, found) if on_machine and found is not None else None,
    )


def method_for(world: World, mutant: Mutant | None = None) -> str:
    """Return the method that a model is fit for: exploration, but where there are more states than can be explored.

    A mutant's shortest way to a leak is found long before that.
    """
    too_large = world.threads > 1 and world.nesting > 1
    return INDUCTION if too_large and mutant is None else EXPLORE


def _costs_hold(world: World) -> bool | None:
    """Return whether T3 holds; None with deeper nesting, where the account makes too many states."""
    from asikit.proofs.explore import explore  # noqa: PLC0415  (numba is slow to import)

    return explore(CostWorld(world)).broken is None if world.nesting <= 1 else None


def prove(world: World, mutant: Mutant | None = None, *, smtlib: TextIO | None = None) -> Verification:
    """Prove a model, or a mutant of it, by induction: for schedules of any length.

    What cannot be proved so is UNKNOWN, not refuted: the invariant may be too weak for it.

    :param smtlib: Where to write all questions to, as SMT-LIB 2.
    :raises VerifyError: The model has something that the induction does not cover.
    """
    from asikit.proofs.induction import Induction  # noqa: PLC0415  (z3 is slow to import)

    changed = world if mutant is None else mutant.edit(mutant.base(world))
    began = time.perf_counter()
    induction = Induction(Relation(changed))
    if smtlib is not None:
        smtlib.writelines(induction.smtlib())
    induced = induction.run()
    failed = induced.failures[0] if induced.failures else None
    proved = None if failed is not None else True
    reason = "" if failed is None else f"{failed.obligation} does not keep `{failed.clause}`: {failed.example}"
    return replace(
        _blank(changed, mutant, INDUCTION),
        verdict=Verdict.PROVED if proved else Verdict.UNKNOWN,
        seconds=time.perf_counter() - began,
        properties=(
            Property("T1", T1, proved),
            Property("no deadlock", NO_MUTUAL_WAIT, proved),
            Property("retry ends", RETRY_ENDS, proved),
        ),
        reason=reason,
        obligations=induced.obligations,
        invariant=induced.clauses,
    )


def _blank(world: World, mutant: Mutant | None, method: str) -> Verification:
    asi = world.config.asi
    kernel = ASSUMED_OF_THE_KERNEL if asi else ()
    return Verification(
        mitigation="asi" if asi else "blanket",
        mutant=None if mutant is None else mutant.name,
        variant="" if mutant is None else mutant.variant,
        threads=world.threads,
        nesting=world.nesting,
        classes=tuple(asi_class.name.lower() for asi_class in sorted(world.config.classes)),
        attacker=tuple(one.name.lower() for one in Capability if one in world.capabilities and one.name),
        method=method,
        verdict=Verdict.UNKNOWN,
        assumptions=(*ASSUMPTIONS, *kernel, *(() if world.gadgets_anywhere else (GADGET_FREE,))),
        not_proved=(*NOT_PROVED, *(NOT_PROVED_SIBLINGS if world.trusting else ())),
    )


def _findings(world: World, explored: Explored) -> Iterator[Counterexample]:
    """Yield what was found, the worst first."""
    from asikit.proofs._ordering import with_fewest_switches  # noqa: PLC0415  (imports numba)

    for kind, path in (("leak", explored.leak), ("deadlock", explored.stuck), ("broken rule", explored.broken)):
        if path is not None:
            yield tell(world, kind, with_fewest_switches(world, path) if world.threads > 1 else path)


def _properties(explored: Explored) -> Iterator[Property]:
    whole = explored.complete
    yield Property("T1", T1, explored.leak is None)
    yield Property("no deadlock", NO_DEADLOCK, explored.stuck is None if whole else None)
    yield Property("retry ends", RETRY_ENDS, explored.broken is None if whole else None)
