"""Places by what the micro-operations there are for: the regions that the invariant speaks of, found by path."""

from __future__ import annotations

from functools import cached_property

from asikit.proofs.relation import GUEST, HANDLER, KERNEL, NO_HANDLER, RESTING, USER, Place, Relation
from asikit.protocol import Happening
from asikit.protocol.entries import STOP_WAITING

H = Happening


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

    # Where a thread may be, by the paths of the micro-operations that come next.

    def before(self, *paths: str) -> list[Place]:
        """Return the places before micro-operations of some paths; a path may end in `.*`."""

        def named(path: str) -> bool:
            return any(path == one or (one.endswith("*") and path.startswith(one[:-1])) for one in paths)

        return [place for place in self.relation.places if place not in RESTING and named(self.path(place))]

    def programs(self, *names: str) -> list[Place]:
        """Return the places inside programs on the base level."""
        return [place for place in self.levels[0] if place.program in names]

    @cached_property
    def enter_before_cr3(self) -> list[Place]:
        """Inside `__asi_enter`, curr_asi set, CR3 not."""
        return [*self.before("maybe_flush_control_for_enter.*"), *self.loading("__asi_enter")]

    @cached_property
    def enter_after_cr3(self) -> list[Place]:
        """Inside `__asi_enter`, CR3 written."""
        loaded = self.before("__asi_enter.record_tlb_gen", "__asi_enter.written")
        rest = self.before("maybe_flush_data.*", "__asi_enter.set_taints", "__asi_enter.release_sibling")
        return [*loaded, *rest]

    def loading(self, transition: str) -> list[Place]:
        """Return the places from where `__asi_enter` or `asi_exit` goes about to write CR3, up to the write."""
        steps = ("barrier", "read_tlb_gen", "note_tlb_gen", "write_cr3", "write_cr3_noflush")
        return self.before(*(f"{transition}.{step}" for step in steps))

    @cached_property
    def entering(self) -> list[Place]:
        """Inside `__asi_enter`, which has something to do."""
        return [*self.before("__asi_enter.set_curr_asi"), *self.enter_before_cr3, *self.enter_after_cr3]

    @cached_property
    def exiting(self) -> list[Place]:
        """Inside `asi_exit`, which has something to do."""
        everything = self.before("asi_exit.*", "maybe_flush_control_for_exit.*")
        first = self.before("asi_exit.already_there")
        return [place for place in everything if place not in first]

    @cached_property
    def resuming(self) -> list[Place]:
        """Before untrusted code, entered."""
        user = self.before("return_user.enter_user_half", "return_user.resume")
        return [*user, *self.before("vm_entry.resume", "vm_entry.refresh_host_cr3")]

    @cached_property
    def after_fault(self) -> list[Place]:
        """In an access that faulted, after the exit."""
        found: list[Place] = []
        for level in self.levels:
            touch = [place for place in level if place.program == H.UNMAPPED_TOUCH]
            walks = [place.pc for place in touch if self.path(place) == "nested_page_fault.walk"]
            found += [place for place in touch if walks and place.pc >= walks[0]]
        return found

    def flushed(self, structure: int, programs: tuple[str, ...]) -> list[Place]:
        """Return the places after a structure's flush, up to the step that clears the taints."""
        found = []
        for place in self.before(*(f"{name}.*" for name in programs)):
            path = self.path(place)
            order = [op.name for op in self.relation.world.protocol.transitions[path.partition(".")[0]].ops]
            flush = str(self.structures[structure].cleared_by)
            if flush in order and order.index(path.partition(".")[2]) > order.index(flush):
                found.append(place)
        return found

    def opened(self, place: Place) -> int:
        """Return how many handlers are counted at a place, if the thread is tense there."""
        if place in {USER, GUEST, NO_HANDLER}:
            return 0
        if place in {KERNEL, HANDLER}:
            return 1
        ops = self.relation.world.protocol.programs[place.program].ops[: place.pc]
        counted = sum((op.path == "asi_intr_enter.count") - (op.path == "asi_intr_exit.uncount") for op in ops)
        fresh = place.program in {*self.from_untrusted, H.VM_ENTRY, STOP_WAITING}
        if place.level:
            fresh = (
                place.program in self.relation.world.nested_happenings or place.program in self.relation.world.faults
            )
        return counted + (not fresh)

    @property
    def from_untrusted(self) -> tuple[str, ...]:
        """The programs that enter the kernel from untrusted code."""
        return (*self.relation.world.entries_from_user, H.VM_EXIT)

    def after_in_exit(self, name: str) -> list[Place]:
        """Return the places in `asi_exit` after a micro-operation of it, up to its end."""
        ops = [op.name for op in self.relation.world.protocol.transitions["asi_exit"].ops]
        if name not in ops:
            return []
        after = [f"asi_exit.{op}" for op in ops[ops.index(name) + 1 :]]
        return self.before(*after, "maybe_flush_control_for_exit.*")
