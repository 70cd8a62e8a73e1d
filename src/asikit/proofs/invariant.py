"""The invariant of the induction: what holds in every state, whatever the schedule; each clause with its sentence.

Written over one hardware thread `h` and its sibling `k`; it holds for both ways round. A thread has a place on each
level: level 0 is what it does, above it is a level for each handler that may be open. Which micro-operations a name
stands for is taken from the programs, by role.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import z3

from asikit.proofs.regions import Regions
from asikit.proofs.relation import GUEST, NO_HANDLER, STALE, USER, USER_HALF, Place, Relation
from asikit.proofs.smt import WIDTH, number
from asikit.protocol import CONTROL_MASK, Happening, Role, Routine, Space, Taint
from asikit.protocol.entries import STOP_WAITING
from asikit.protocol.switching import policy_table, restricted_spaces
from asikit.protocol.vocabulary import FIELDS, USER_CR3
from asikit.threat import Party

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.proofs.smt import Symbolic

H = Happening
SECRET = int(Taint.KERNEL_DATA | Taint.OTHER_MM_DATA)
CONTROL = int(CONTROL_MASK)
BITS = (USER_CR3.name, STALE.name, USER_HALF.name)
"""Fields of a thread, or of its handlers, that are one bit."""
USER_SPACE, KVM_SPACE = int(Space.USERSPACE), int(Space.KVM)


@dataclass(frozen=True, slots=True)
class Clause:
    """One conjunct.

    :ivar name: Short.
    :ivar says: One line.
    :ivar formula: For each thread, or once.
    """

    name: str
    says: str
    formula: z3.BoolRef


def any_of(formulas: list[z3.BoolRef]) -> z3.BoolRef:
    """Return the disjunction of some formulas, at least one: of one it is that one, as SMT-LIB wants it."""
    return z3.Or(formulas) if len(formulas) > 1 else formulas[0]


class Side:
    """One thread of a symbolic state, in the words of the clauses."""

    def __init__(self, invariant: InductiveInvariant, state: Symbolic, who: int) -> None:
        fields, self.box = state.fields[who], state.boxes[who]
        self.invariant, self.who = invariant, who
        self.curr, self.cr3, self.target = fields["curr_asi"], fields["cr3"], fields["target"]
        self.taints, self.depth = fields["taints"], fields["intr_nest_depth"]
        self.stale = fields[STALE.name]
        self.bits = [value for name, value in fields.items() if name.startswith(BITS)]
        self.places = state.places[who]
        self.levels = range(len(self.places))
        self.contents = state.contents
        self.policy = self._policies(self.target)
        self.interrupted = self.interrupted_on(0)
        self.tense = self.target != 0
        self.restricted = self.cr3 != 0
        self.untrusted = z3.And(z3.Not(self.interrupted), self.base_in(invariant.regions.untrusted))
        self.dirty = self.taints & SECRET != 0
        self.behind = self.box["behind"] != 0

    def _policies(self, space: z3.BitVecRef) -> dict[str, z3.BitVecRef]:
        config = self.invariant.world.config
        env = dict.fromkeys(FIELDS, space)
        return {name: number(policy_table(config, name), env) for name in ("protect_data", "prevent_control", "set")}

    @cached_property
    def settled(self) -> z3.BoolRef:
        """CR3 is that of curr_asi, whose policy is content with the taints, and whose own taints are set."""
        policy = self._policies(self.curr)
        content = z3.And(self.lacks(policy["protect_data"]), self.lacks(policy["prevent_control"]))
        return z3.And(self.cr3 == self.curr, content, policy["set"] & ~self.taints == 0)

    def lacks(self, mask: z3.BitVecRef | int) -> z3.BoolRef:
        """No taint of a mask is set."""
        return self.taints & mask == 0

    def interrupted_on(self, level: int) -> z3.BoolRef:
        """What runs on a level was interrupted by a handler, which is open."""
        if level == self.levels[-1]:
            return z3.BoolVal(val=False)
        return self.places[level + 1] != self.invariant.regions.number(NO_HANDLER)

    def on(self, level: int, places: list[Place]) -> z3.BoolRef:
        """The place on a level is one of some."""
        return self.invariant.one_of(self.places[level], places, min(level, 1))

    def base_in(self, places: list[Place]) -> z3.BoolRef:
        """The place on level 0 is one of some."""
        return self.on(0, places)

    def handler_in(self, places: list[Place]) -> z3.BoolRef:
        """The place of a handler is one of some."""
        return any_of([self.on(level, places) for level in self.levels[1:]])

    def either_in(self, places: list[Place]) -> z3.BoolRef:
        """The place on some level is one of some."""
        return z3.Or([self.on(level, places) for level in self.levels])

    def untouched(self, level: int) -> z3.BoolRef:
        """What runs on a level still finds what it left: no handler above it has exited, or is about to."""
        switching = self.invariant.regions.exiting + self.invariant.regions.entering
        calm = [z3.Not(self.on(above, switching)) for above in self.levels[level + 1 :]]
        return z3.Or(z3.Not(self.interrupted_on(level)), z3.And(*calm, self.curr == self.target))

    def finds(self, places: list[Place]) -> z3.BoolRef:
        """The thread is at one of some places, or will be when its handlers return, which have changed nothing."""
        *lower, last = self.levels
        found = [z3.And(self.untouched(level), self.on(level, places)) for level in lower]
        return z3.Or(self.on(last, places), *found)

    def depth_upto(self, last: int) -> z3.BitVecRef:
        """How many handlers are counted on a level and those below it, if the thread is tense."""
        return sum(
            (self.invariant.counted(self.places[level], min(level, 1)) for level in range(last + 1)),
            z3.BitVecVal(0, WIDTH),
        )

    def holds(self, structure: int, *parties: Party) -> z3.BoolRef:
        """A structure holds something of some parties."""
        mask = sum(int(party) for party in parties) << 4 * structure
        return self.contents & z3.BitVecVal(mask, self.contents.size()) != 0


class InductiveInvariant:
    """The clauses for a relation; the places by number."""

    def __init__(self, relation: Relation) -> None:
        self.world = relation.world
        self.regions = Regions(relation)
        self.two = relation.world.threads > 1
        # Whether asi_exit flushes the predictors only if this thread's taints say so.
        self.asks_taints = bool(
            self.regions.before(Role.CLEAN, within=(Routine.FLUSH_CONTROL_FOR_EXIT,), optional=True)
        )

    def one_of(self, variable: z3.BitVecRef, places: list[Place], level: int) -> z3.BoolRef:
        """Return the formula that a place variable is one of some places."""
        ranges = self.regions.ranges(places, level)
        within = [z3.And(variable >= first, variable <= last) for first, last in ranges]
        return z3.Or(within) if within else z3.BoolVal(val=False)  # an empty disjunction is no SMT-LIB

    def counted(self, variable: z3.BitVecRef, level: int) -> z3.BitVecRef:
        """Return how many handlers are counted at a place, if the thread is tense."""
        total = z3.BitVecVal(0, WIDTH)
        for count in range(1, 4):
            places = [place for place in self.regions.levels[level] if self.regions.opened(place) == count]
            if places:
                total = z3.If(self.one_of(variable, places, level), z3.BitVecVal(count, WIDTH), total)
        return total

    # The clauses.

    def clauses(self, state: Symbolic) -> list[Clause]:
        """Return all clauses for a state."""
        sides = [Side(self, state, who) for who in range(self.world.threads)]
        found: list[Clause] = []
        for h in sides:
            k = sides[1 - h.who] if self.two else None
            found += [*self._types(h), *self._targets(h), *self._entering(h), *self._entered(h)]
            found += [*self._taints(h), *self._contents(h, k)]
            if k is not None:
                found += self._siblings(h, k)
        return [*found, *self._secrets(sides)]

    def _types(self, h: Side) -> Iterator[Clause]:
        spaces = (0, *(int(space) for space in restricted_spaces(self.world.config)))

        def is_space(variable: z3.BitVecRef) -> z3.BoolRef:
            return z3.Or([variable == space for space in spaces])

        bits = [z3.ULE(bit, 1) for bit in (*h.box.values(), *h.bits)]
        levels = [self.regions.levels[min(level, 1)] for level in h.levels]
        places = [z3.And(place >= 0, place < len(level)) for place, level in zip(h.places, levels, strict=True)]
        yield Clause(
            "types",
            "spaces are those that exist, and places are places",
            z3.And(*(is_space(one) for one in (h.curr, h.cr3, h.target)), *bits, *places),
        )
        yield Clause(
            "handlers-interrupt-the-kernel",
            "a handler has interrupted the kernel, or a handler",
            z3.And(
                z3.Implies(h.interrupted, z3.Not(h.base_in([USER, GUEST]))),
                *(z3.Implies(h.interrupted_on(level), h.interrupted_on(level - 1)) for level in h.levels[1:-1]),
            ),
        )
        yield Clause(
            "depth",
            "the depth is the number of handlers that are open inside the critical section; 0 when relaxed",
            h.depth == z3.If(h.tense, h.depth_upto(h.levels[-1]), z3.BitVecVal(0, WIDTH)),
        )
        guests = self.regions.programs(H.VM_EXIT, H.VM_ENTRY, "guest")
        others = self.regions.programs(STOP_WAITING)
        processes = [place for place in self.regions.levels[0] if place not in guests and place not in others]
        yield Clause(
            "target",
            "the target is the class of the code that was interrupted, or that is gone to",
            z3.And(
                z3.Implies(z3.And(h.tense, h.base_in(guests)), h.target == KVM_SPACE),
                z3.Implies(z3.And(h.tense, h.base_in(processes)), h.target == USER_SPACE),
            ),
        )

        if not self.world.shootdown:
            yield Clause(
                "no-stale-translations",
                "no TLB maps, in a restricted address space, a page that has become sensitive",
                h.stale == 0,
            )

    @cached_property
    def _just_in(self) -> list[Place]:
        """Where an entry from untrusted code begins."""
        return [place for place in self.regions.programs(*self.regions.from_untrusted) if place.pc == 0]

    def _targets(self, h: Side) -> Iterator[Clause]:
        uncounting = self.regions.before(Role.UNCOUNT_INTERRUPT, Role.ENTER_AGAIN)
        returning = self.regions.before(Role.ALREADY_ENTERED)
        yield Clause(
            "tense",
            "before and in __asi_enter, and in untrusted code and until its entry says otherwise, there is a target",
            z3.And(
                z3.Implies(
                    h.base_in(
                        [
                            *uncounting,
                            *returning,
                            *self.regions.entering,
                            *self.regions.resuming,
                            *self.regions.untrusted,
                            *self._just_in,
                        ]
                    ),
                    h.tense,
                ),
                z3.Implies(h.handler_in([*uncounting, *returning, *self.regions.entering]), h.tense),
            ),
        )
        entering = [*returning, *self.regions.entering]
        yield Clause(
            "enter-outside-handlers",
            "__asi_enter runs where no handler is open",
            z3.And([z3.Implies(h.on(level, entering), h.depth_upto(level) == 0) for level in h.levels]),
        )
        yield Clause(
            "relaxed",
            "a client's enter begins relaxed",
            z3.Implies(
                h.base_in(self.regions.before(Role.SET_TARGET)),
                h.target == 0,
            ),
        )

    def _entering(self, h: Side) -> Iterator[Clause]:
        inside = [*self.regions.enter_before_cr3, *self.regions.enter_after_cr3]
        yield Clause(
            "interrupted-enter",
            "in __asi_enter, curr_asi and after CR3 was written CR3 are the target's, or a handler has exited",
            z3.And(
                z3.Implies(h.either_in(inside), z3.Or(h.curr == 0, h.curr == h.target)),
                z3.Implies(h.either_in(self.regions.enter_after_cr3), z3.Or(z3.Not(h.restricted), h.cr3 == h.target)),
            ),
        )
        yield Clause(
            "curr-asi-set",
            "in __asi_enter, curr_asi is the target",
            z3.Implies(h.finds(inside), h.curr == h.target),
        )
        yield Clause(
            "no-feared-training",
            "before and after __asi_enter writes CR3, no training that the target fears is left",
            z3.Implies(
                h.finds([*self.regions.loading_on_enter, *self.regions.enter_after_cr3]),
                h.lacks(h.policy["prevent_control"]),
            ),
        )
        yield Clause(
            "cr3-written",
            "after __asi_enter wrote CR3, it is the target's",
            z3.Implies(h.finds(self.regions.enter_after_cr3), h.cr3 == h.target),
        )
        yield Clause(
            "nothing-to-hide",
            "after __asi_enter flushed the data, no taint is left that the target must not sample",
            z3.Implies(
                h.finds(self.regions.enter_after_flush),
                h.lacks(h.policy["protect_data"]),
            ),
        )
        yield Clause(
            "taints-set",
            "before __asi_enter releases the sibling, the target's own taints are set",
            z3.Implies(
                h.finds(self.regions.before(Role.RELEASE_SIBLING, optional=True)), h.policy["set"] & ~h.taints == 0
            ),
        )

    def _entered(self, h: Side) -> Iterator[Clause]:
        ready = z3.Or(
            h.finds([*self.regions.resuming, *self.regions.untrusted, *self._just_in]),
            z3.And(h.tense, h.finds(self.regions.before(Role.ENTER_ON_RETURN, optional=True))),
        )
        yield Clause(
            "ready", "what resumes or runs untrusted code is in its own domain", z3.Implies(ready, h.curr == h.target)
        )
        ending = self.regions.to_user_half
        if ending:
            ended = [z3.And(h.on(level, ending), z3.Not(h.interrupted_on(level))) for level in h.levels[1:]]
            yield Clause(
                "returned",
                "a handler that goes back to the page tables' user half has entered again, if it was to",
                z3.Implies(z3.And(any_of(ended), h.tense, h.depth == 0), h.curr == h.target),
            )
        switching = [*self.regions.enter_before_cr3, *self.regions.enter_after_cr3, *self.regions.exiting]
        yield Clause(
            "settled",
            "outside of __asi_enter and asi_exit, CR3 is curr_asi's, the taints are what it allows, its own are set",
            z3.Implies(z3.And(h.curr != 0, z3.Not(h.either_in(switching))), h.settled),
        )

    def _taints(self, h: Side) -> Iterator[Clause]:
        yield Clause("recorded", "curr_asi is set whenever CR3 is restricted", z3.Implies(h.restricted, h.curr != 0))
        yield Clause(
            "unrestricted",
            "while CR3 is unrestricted, KERNEL_DATA is set, and no control taint",
            z3.Implies(z3.Not(h.restricted), z3.And(h.taints & int(Taint.KERNEL_DATA) != 0, h.lacks(CONTROL))),
        )
        about = [*self.regions.before(Role.TAINT_KERNEL_DATA), *self.regions.loading_on_exit]
        yield Clause(
            "exit-flushed",
            "in asi_exit, after the control flush, no control taint is set; and before CR3, KERNEL_DATA is",
            z3.And(
                z3.Implies(h.either_in(about), h.lacks(CONTROL)),
                z3.Implies(h.either_in(self.regions.loading_on_exit), h.taints & int(Taint.KERNEL_DATA) != 0),
            ),
        )
        outside = [*self.regions.squashing, *self.regions.after_fault, *self.regions.exit_after_cr3]
        yield Clause(
            "exited",
            "a switch of mm squashes, an exit forgets curr_asi, and a fault is tried again, while CR3 is unrestricted",
            z3.Implies(h.either_in(outside), z3.Not(h.restricted)),
        )
        yield Clause("no-others-training", "other mm's training is never left", h.lacks(int(Taint.OTHER_MM_CONTROL)))
        in_user_space = h.cr3 == USER_SPACE
        yield Clause(
            "no-guest-near-user-data",
            "where user addresses are mapped, no guest's training is left",
            z3.Implies(in_user_space, h.lacks(int(Taint.GUEST_CONTROL))),
        )
        yield Clause(
            "user-data-recorded",
            "where user addresses are mapped, a data taint says so, as soon as __asi_enter is through",
            z3.Implies(
                in_user_space,
                z3.Or(h.taints & (SECRET | int(Taint.USER_DATA)) != 0, h.either_in(self.regions.enter_after_cr3)),
            ),
        )

    def _contents(self, h: Side, k: Side | None) -> Iterator[Clause]:
        for place, structure in enumerate(self.regions.structures):
            if structure.holds == "training":
                trained = self._training(h, place) if self.asks_taints else self._training_of_siblings(h, place)
                yield Clause(f"trained: {structure.name}", *trained)
            elif k is None:
                yield Clause(
                    f"user data: {structure.name}",
                    "user data in it is recorded as a taint, or its addresses are still mapped",
                    z3.Implies(
                        h.holds(place, Party.USER),
                        z3.Or(
                            z3.And(
                                h.taints & (SECRET | int(Taint.USER_DATA)) != 0,
                                z3.Not(h.finds(self.regions.flushed(place, (Routine.FLUSH_DATA,)))),
                            ),
                            h.cr3 == USER_SPACE,
                        ),
                    ),
                )

    def _own_taints(self, h: Side, secured: z3.BoolRef) -> Iterator[Clause]:
        """Yield why a thread's own taints say what its sibling trains: both run the same class."""
        yield Clause(
            "own-taints-set",
            "in a restricted address space, its control taints are set, or k is still kept out",
            z3.Implies(h.restricted, z3.Or(h.taints & int(Taint.USER_CONTROL) != 0, secured)),
        )
        flush = self.regions.inside(Routine.FLUSH_CONTROL_FOR_ENTER)
        never = [place for place in flush if self.regions.role(place) is not Role.CLEAN]
        yield Clause(
            "enter-flushes-no-training",
            "as siblings only ever run one class, __asi_enter finds no training that it must flush",
            z3.Not(h.either_in(never)),
        )

    def _training(self, h: Side, place: int) -> tuple[str, z3.BoolRef]:
        empty = z3.Not(h.holds(place, Party.USER, Party.GUEST, Party.OTHER))
        flushes = (Routine.FLUSH_CONTROL_FOR_EXIT, Routine.FLUSH_CONTROL_FOR_ENTER)
        return (
            "training is recorded as a taint, but between its flush and the clearing of the taints is none",
            z3.And(
                z3.Implies(h.holds(place, Party.USER), h.taints & int(Taint.USER_CONTROL) != 0),
                z3.Implies(h.holds(place, Party.GUEST), h.taints & int(Taint.GUEST_CONTROL) != 0),
                z3.Not(h.holds(place, Party.OTHER)),
                z3.Implies(h.either_in(self.regions.flushed(place, flushes)), empty),
            ),
        )

    def _training_of_siblings(self, h: Side, place: int) -> tuple[str, z3.BoolRef]:
        flushed = self.regions.flushed(place, (Routine.FLUSH_CONTROL_FOR_EXIT,))
        about = [*self.regions.before(Role.TAINT_KERNEL_DATA), *self.regions.loading_on_exit]
        return (
            "after asi_exit's flush, and while CR3 is unrestricted, there is no training; other mm's never",
            z3.And(
                z3.Implies(
                    z3.Or(z3.Not(h.restricted), h.either_in([*flushed, *about])),
                    z3.Not(h.holds(place, Party.USER, Party.GUEST)),
                ),
                z3.Not(h.holds(place, Party.OTHER)),
            ),
        )

    def _siblings(self, h: Side, k: Side) -> Iterator[Clause]:
        secured = z3.And(k.box["stunned"] != 0, k.box["untrusted"] == 0)
        yield Clause(
            "exclusion",
            "while h is unrestricted, or has not flushed since, k is stunned and not in untrusted code",
            z3.Implies(z3.Or(z3.Not(h.restricted), h.dirty), secured),
        )
        yield Clause(
            "stunned",
            "in asi_exit, after the stun, k is stunned; after the wait, it has left untrusted code",
            z3.And(
                z3.Implies(h.either_in(self.regions.after_in_exit(Role.STUN_SIBLING)), k.box["stunned"] != 0),
                z3.Implies(h.either_in(self.regions.after_in_exit(Role.WAIT_FOR_SIBLING)), secured),
            ),
        )
        yield Clause(
            "told",
            "while h waits for k to leave untrusted code that it runs, the interrupt that makes k leave is on its way",
            z3.Implies(
                z3.And(h.either_in(self.regions.before(Role.WAIT_FOR_SIBLING)), k.untrusted),
                k.box["stun_ipi"] != 0,
            ),
        )
        holding = [*self.regions.exiting, *self.regions.enter_after_cr3]
        yield Clause(
            "released",
            "k is stunned only while h is unrestricted, in asi_exit, or in __asi_enter and has not released it yet",
            z3.Implies(k.box["stunned"] != 0, z3.Or(z3.Not(h.restricted), h.either_in(holding))),
        )
        leaving = self.regions.before(Role.LEAVE_UNTRUSTED)
        entry = [place for place in leaving if place.level == 0 and place.program in self.regions.from_untrusted]
        own = h.box["untrusted"] != 0
        nested = [place for place in leaving if place.level == 1 and place.pc == 0]
        fresh = [z3.Or(z3.Not(h.interrupted_on(level - 1)), h.on(level, nested)) for level in h.levels[1:]]
        says = z3.And(h.base_in(entry), *fresh)
        yield Clause(
            "untrusted",
            "who runs untrusted code says so, and who says so runs it, or has just entered the kernel",
            z3.And(z3.Implies(h.untrusted, own), z3.Implies(own, z3.Or(h.untrusted, says))),
        )
        if self.asks_taints:
            yield from self._own_taints(h, secured)
        busy = self.regions.programs(H.RETURN_USER, H.VM_ENTRY, STOP_WAITING, "user", "guest", *self.regions.entries)
        yield Clause(
            "behind",
            "while k has to follow a switch of mm, h has not, is unrestricted, and goes nowhere near untrusted code",
            z3.Implies(k.behind, z3.And(z3.Not(h.behind), z3.Not(h.restricted), z3.Not(h.base_in(busy)))),
        )

    def _secrets(self, sides: list[Side]) -> Iterator[Clause]:
        for place, structure in enumerate(self.regions.structures):
            if structure.holds == "data":
                flushed = self.regions.flushed(place, (Routine.FLUSH_DATA,))
                hot = [z3.And(h.dirty, z3.Not(h.finds(flushed))) for h in sides]
                yield Clause(
                    f"secrets: {structure.name}",
                    "a secret in it is recorded as a taint of a thread that has not flushed it since",
                    z3.Implies(sides[0].holds(place, Party.KERNEL, Party.OTHER), z3.Or(hot)),
                )
