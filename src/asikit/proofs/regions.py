"""Places by what the micro-operations there are for: the regions that the invariant speaks of, found by role."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from asikit.proofs.relation import GUEST, HANDLER, KERNEL, NO_HANDLER, USER, Place, Relation
from asikit.protocol import AsiClass, Happening, Protocol, Role, Routine
from asikit.protocol.entries import NESTED_RETURN_TO_USER_HALF, STOP_WAITING

if TYPE_CHECKING:
    from asikit.protocol.operations import ProgramOp

H = Happening
_LOADING = (Role.PREPARE_LOAD, Role.NOTE_TLB_GEN, Role.LOAD_KEEPING)
"""On the way to a write of CR3 that may keep TLB entries; the other write's roles say of what it is."""


class Regions:
    """The places of a relation: a number for each, on its level, and sets of them."""

    def __init__(self, relation: Relation) -> None:
        self.relation = relation
        self.levels = tuple([place for place in relation.places if place.level == level] for level in (0, 1))
        self._numbers = {place: index for level in self.levels for index, place in enumerate(level)}
        self.structures = relation.world.layout.structures

    def number(self, place: Place) -> int:
        """Return the number of a place, on its level."""
        return self._numbers[place]

    def ranges(self, places: list[Place], level: int) -> list[tuple[int, int]]:
        """Return the numbers of the places of a level that are reached at all, as ranges: first and last."""
        found: list[tuple[int, int]] = []
        for value in sorted(
            {self.number(place) for place in places if place.level == level and place in self._numbers}
        ):
            if found and found[-1][1] == value - 1:
                found[-1] = (found[-1][0], value)
            else:
                found.append((value, value))
        return found

    def path(self, place: Place) -> str:
        """Return the path of the micro-operation that comes next at a place; it is not a resting place."""
        return self.relation.world.protocol.programs[place.program].ops[place.pc].path

    def role(self, place: Place) -> Role | None:
        """Return the role of the micro-operation that comes next at a place; it is not a resting place."""
        return self.relation.world.protocol.programs[place.program].ops[place.pc].role

    # Where a thread may be, by what the micro-operations that come next are for.

    def before(self, *roles: Role, within: tuple[str, ...] = (), optional: bool = False) -> list[Place]:
        """Return the places before micro-operations of some roles, in all transitions or in those named.

        A mutant may have lost one, which then has no places.

        :raises MissingRoleError: The configuration never has such a role, and it is not optional.
        """
        for role in roles:
            self._plain.having(role, *within, optional=optional)
        return [place for place, op in self._ops if op.role in roles and (not within or op.transition in within)]

    def inside(self, *transitions: str) -> list[Place]:
        """Return the places before micro-operations of some transitions.

        :raises UnknownNameError: There is no such transition.
        """
        for name in transitions:
            self._plain.program(name)
        return [place for place, op in self._ops if op.transition in transitions]

    @cached_property
    def _plain(self) -> Protocol:
        """The protocol of which this one may be a mutant."""
        return Protocol(self.relation.world.config)

    @cached_property
    def _ops(self) -> tuple[tuple[Place, ProgramOp], ...]:
        """The places before micro-operations, and those."""
        ops = ((place, self.relation.op(place)) for place in self.relation.places)
        return tuple((place, op) for place, op in ops if op is not None)

    def programs(self, *names: str) -> list[Place]:
        """Return the places inside programs on the base level."""
        return [place for place in self.levels[0] if place.program in names]

    @cached_property
    def enter_before_cr3(self) -> list[Place]:
        """Inside `__asi_enter`, curr_asi set, CR3 not."""
        return [*self.inside(Routine.FLUSH_CONTROL_FOR_ENTER), *self.loading_on_enter]

    @cached_property
    def enter_after_cr3(self) -> list[Place]:
        """Inside `__asi_enter`, CR3 written."""
        loaded = self._of(Routine.ENTER, Role.RECORD_TLB_GEN, Role.LOADED)
        return [*loaded, *self.inside(Routine.FLUSH_DATA), *self.enter_after_flush]

    @cached_property
    def loading_on_enter(self) -> list[Place]:
        """Inside `__asi_enter`, about to write CR3."""
        return [*self._of(Routine.ENTER, *_LOADING), *self.before(Role.LOAD_ON_ENTER)]

    @cached_property
    def loading_on_exit(self) -> list[Place]:
        """Inside `asi_exit`, about to write CR3."""
        return [*self._of(Routine.EXIT, *_LOADING), *self.before(Role.LOAD_ON_EXIT)]

    @cached_property
    def exit_after_cr3(self) -> list[Place]:
        """Inside `asi_exit`, CR3 written."""
        return [*self._of(Routine.EXIT, Role.RECORD_TLB_GEN, Role.LOADED), *self.before(Role.CLEAR_CURR_ASI)]

    @cached_property
    def squashing(self) -> list[Place]:
        """In a switch of mm, after the exit."""
        return [*self.inside(Routine.HANDLE_SWITCH_MM), *self._of(H.MM_SWITCH, Role.OUTDATE_TLB)]

    def _of(self, transition: str, *roles: Role) -> list[Place]:
        """Return the places before micro-operations of a transition that only some configurations have."""
        return self.before(*roles, within=(transition,), optional=True)

    @cached_property
    def to_user_half(self) -> list[Place]:
        """At the end of a handler that interrupted code on the page tables' user half."""
        return self._of(NESTED_RETURN_TO_USER_HALF, Role.ENTER_USER_HALF) if self.relation.world.config.pti else []

    @cached_property
    def enter_after_flush(self) -> list[Place]:
        """Inside `__asi_enter`, the data side channels flushed."""
        return [*self.before(Role.SET_TAINTS), *self.before(Role.RELEASE_SIBLING, optional=True)]

    @cached_property
    def entering(self) -> list[Place]:
        """Inside `__asi_enter`, which has something to do."""
        return [*self.before(Role.SET_CURR_ASI), *self.enter_before_cr3, *self.enter_after_cr3]

    @cached_property
    def exiting(self) -> list[Place]:
        """Inside `asi_exit`, which has something to do."""
        everything = self.inside(Routine.EXIT, Routine.FLUSH_CONTROL_FOR_EXIT)
        first = self.before(Role.ALREADY_EXITED)
        return [place for place in everything if place not in first]

    @cached_property
    def resuming(self) -> list[Place]:
        """Before untrusted code, entered."""
        half = self._of(H.RETURN_USER, Role.ENTER_USER_HALF) if USER in self.untrusted else []
        return [*half, *self.before(Role.RESUME, Role.REFRESH_HOST_CR3, optional=True)]

    @cached_property
    def after_fault(self) -> list[Place]:
        """In an access that faulted, after the exit."""
        found: list[Place] = []
        for level in self.levels:
            touch = [place for place in level if place.program == H.UNMAPPED_TOUCH]
            walks = [place.pc for place in touch if self.role(place) is Role.WALK]
            found += [place for place in touch if walks and place.pc >= walks[0]]
        return found

    def flushed(self, structure: int, programs: tuple[str, ...]) -> list[Place]:
        """Return the places after a structure's flush, up to the step that clears the taints.

        There are none if the programs lack that flush.
        """
        found, flush = [], self.structures[structure].cleared_by
        for place, op in self._ops:
            if op.transition not in programs:
                continue
            transition = self.relation.world.protocol.transitions[op.transition]
            kinds = [each.asks.kind if each.asks is not None else None for each in transition.ops]
            if flush in kinds and transition.index(op.name) > kinds.index(flush):
                found.append(place)
        return found

    def opened(self, place: Place) -> int:
        """Return how many handlers are counted at a place, if the thread is tense there."""
        if place in {USER, GUEST, NO_HANDLER}:
            return 0
        if place in {KERNEL, HANDLER}:
            return 1
        ops = self.relation.world.protocol.programs[place.program].ops[: place.pc]
        counted = sum((op.role is Role.COUNT_INTERRUPT) - (op.role is Role.UNCOUNT_INTERRUPT) for op in ops)
        fresh = place.program in {*self.entries, H.VM_ENTRY, STOP_WAITING}
        if place.level:
            fresh = (
                place.program in self.relation.world.nested_happenings or place.program in self.relation.world.faults
            )
        return counted + (not fresh)

    @property
    def entries(self) -> tuple[str, ...]:
        """The programs that enter the kernel from user mode and from guests."""
        return (*self.relation.world.entries_from_user, H.VM_EXIT)

    @property
    def untrusted(self) -> list[Place]:
        """Where code runs that a class is there to protect from."""
        classes = self.relation.world.config.classes
        modes = ((USER, AsiClass.USERSPACE), (GUEST, AsiClass.KVM))
        return [place for place, asi_class in modes if asi_class in classes]

    @property
    def from_untrusted(self) -> tuple[str, ...]:
        """The programs that enter the kernel from such code."""
        user, guest = (place in self.untrusted for place in (USER, GUEST))
        return (*(self.relation.world.entries_from_user if user else ()), *((H.VM_EXIT,) if guest else ()))

    def after_in_exit(self, role: Role) -> list[Place]:
        """Return the places in `asi_exit` after the micro-operation of a role, up to its end; none if a mutant lost it.

        :raises MissingRoleError: The configuration never has such a role.
        """
        self._plain.having(role, Routine.EXIT)
        ops = self.relation.world.protocol.transitions[Routine.EXIT].ops
        start = next((index for index, op in enumerate(ops) if op.role is role), None)
        if start is None:
            return []
        after = {op.name for op in ops[start + 1 :]}
        inside = [place for place, op in self._ops if op.transition == Routine.EXIT and op.name in after]
        return [*inside, *self.inside(Routine.FLUSH_CONTROL_FOR_EXIT)]
