"""The protocol of one configuration: its transitions, and three ways to run them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from asikit.protocol import edits
from asikit.protocol.blanket import blanket_transitions
from asikit.protocol.classes import Space
from asikit.protocol.describing import describe
from asikit.protocol.entries import NESTED_RETURN_TO_USER_HALF, STOP_WAITING, entry_transitions
from asikit.protocol.errors import MisuseError, ProtocolError, UnknownNameError
from asikit.protocol.happenings import Happening, Outcome
from asikit.protocol.operations import MicroOp, Program, Transitions, assemble, compile_op
from asikit.protocol.roles import Role
from asikit.protocol.state import CoreState, CpuState, Frame, Mailbox, State, TaskState, ThreadState
from asikit.protocol.stepping import HANDLER, Programs, Status, Step, step
from asikit.protocol.switching import restricted_spaces, switching_transitions
from asikit.protocol.taints import NO_TAINT, Taint

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.protocol.config import ProtocolConfig
    from asikit.protocol.effects import Effect, ExitReason


class Protocol:
    """The transitions of one configuration, and their execution.

    `happen` runs a whole transition on one CPU; `begin`, `interrupt`, `leave` and `step` run it micro-operation by
    micro-operation, on two hardware threads if one likes; `programs` is the same as data. An instance never changes:
    what looks like an edit gives another.
    """

    def __init__(self, config: ProtocolConfig, transitions: Transitions | None = None) -> None:
        if transitions is None:
            built = (
                (*switching_transitions(config), *entry_transitions(config))
                if config.asi
                else blanket_transitions(config)
            )
            transitions = {transition.name: transition for transition in built}
        self.config = config
        self.transitions: Transitions = MappingProxyType(dict(transitions))
        self.programs = MappingProxyType({name: assemble(name, self.transitions) for name in self.transitions})
        self._compiled: Programs = {
            name: tuple(compile_op(op) for op in program.ops) for name, program in self.programs.items()
        }

    # The states that everything begins with.

    def initial(self) -> State:
        """Return the state of a CPU that has just booted, followed alone: its sibling stands still in the kernel."""
        ours = Mailbox()
        sibling = Mailbox(stunned=int(self._stuns))
        return State(self._initial_cpu(), TaskState(), CoreState(ours, sibling))

    def initial_task(self) -> TaskState:
        """Return the state of a new task: relaxed."""
        return TaskState()

    def initial_core(self) -> CoreState:
        """Return the shared state of a core whose two threads have just booted: unrestricted, each stuns the other."""
        return CoreState(Mailbox(stunned=int(self._stuns)), Mailbox(stunned=int(self._stuns)))

    def initial_thread(self) -> ThreadState:
        """Return the state of a hardware thread that has just booted."""
        return ThreadState(self._initial_cpu(), TaskState())

    @property
    def _stuns(self) -> bool:
        return self.config.asi and self.config.smt

    def _initial_cpu(self) -> CpuState:
        # The prototype boots with no taints, so that the first enter does not flush what booting left in the caches.
        taints = Taint.KERNEL_DATA if self.config.asi else NO_TAINT
        stale = (
            sum(1 << space for space in restricted_spaces(self.config))
            if self.config.asi and self.config.noflush
            else 0
        )
        return CpuState(taints=int(taints), cr3=int(Space.UNRESTRICTED), tlb_stale=stale)

    # A task's part of the state, for context switches.

    def save_task(self, state: State) -> TaskState:
        """Return the current task's part of the state."""
        return state.task

    def load_task(self, state: State, task: TaskState) -> State:
        """Return the state with another task current."""
        return state._replace(task=task)

    # Whole transitions, one CPU.

    def happen(self, state: State, happening: Happening) -> Outcome:
        """Run the transition of a happening to its end, without interleaving.

        :raises MisuseError: The happening is impossible or forbidden in that state.
        """
        return self.run(state, happening)

    def run(self, state: State, transition: str) -> Outcome:
        """Run any transition (`asi_enter_kvm`, `asi_exit`, `asi_relax`...) to its end, without interleaving.

        :raises UnknownNameError: There is no such transition.
        :raises MisuseError: The kernel may not do that in this state.
        :raises ProtocolError: It would wait for ever.
        """
        core, thread = state.core, self.begin(ThreadState(state.cpu, state.task), transition)
        effects: list[Effect] = []
        exit_reason: ExitReason | None = None
        while thread.frames:
            taken = self.step(core, thread, 0)
            if taken.status is not Status.RAN:
                raise ProtocolError(f"{transition} waits for ever at place {thread.frames[-1].pc}: nobody else runs")
            core, thread = taken.core, taken.thread
            effects += [taken.effect] if taken.effect is not None else []
            exit_reason = exit_reason or taken.exit_reason
        return Outcome(State(thread.cpu, thread.task, core), tuple(effects), exit_reason)

    # One micro-operation at a time, any interleaving.

    def begin(self, thread: ThreadState, transition: str) -> ThreadState:
        """Start a transition on top of what the thread is doing.

        :raises UnknownNameError: There is no such transition.
        """
        if transition not in self.programs:
            raise UnknownNameError("transition", transition, self.programs)
        if not self.programs[transition].ops:
            return thread
        return thread._replace(frames=(*thread.frames, Frame(str(transition))))

    def step(self, core: CoreState, thread: ThreadState, who: int) -> Step:
        """Run the next micro-operation of hardware thread `who` (0 or 1).

        :raises MisuseError: The micro-operation's caller broke a rule.
        """
        return step(self._compiled, core, thread, who)

    def interrupt(self, thread: ThreadState, happening: Happening) -> ThreadState:
        """Interrupt kernel mode, between any two micro-operations, by one of the happenings that are nested.

        The handler's own code runs once the entry is through (`in_handler`), until `leave`.
        """
        body = Frame(HANDLER, thread.cpu.user_cr3)
        return self.begin(thread._replace(frames=(*thread.frames, body)), happening)

    def in_handler(self, thread: ThreadState) -> bool:
        """Return whether the thread runs the own code of a handler."""
        return bool(thread.frames) and thread.frames[-1].program == HANDLER

    def leave(self, thread: ThreadState) -> ThreadState:
        """Start the return from the innermost handler, whose own code is running.

        :raises MisuseError: No handler runs.
        """
        if not self.in_handler(thread):
            raise MisuseError("leave: no handler's own code is running")
        name = NESTED_RETURN_TO_USER_HALF if thread.frames[-1].pc else Happening.NESTED_RETURN
        return self.begin(thread._replace(frames=thread.frames[:-1]), name)

    def stop_waiting(self, thread: ThreadState) -> ThreadState:
        """Give up a return to untrusted code whose only step left is `resume`, as a stunned thread does to reschedule.

        :raises MisuseError: The thread is not just there.
        """
        at_resume = bool(thread.frames) and not self.in_handler(thread)
        if at_resume:
            name, pc = thread.frames[-1]
            at_resume = self.programs[name].ops[pc].role is Role.RESUME
        if not at_resume:
            raise MisuseError("stop_waiting: the thread is not waiting to resume untrusted code")
        return self.begin(ThreadState(thread.cpu, thread.task, thread.frames[:-1]), STOP_WAITING)

    # As data.

    def program(self, transition: str) -> Program:
        """Return a transition with its calls written out.

        :raises UnknownNameError: There is no such transition.
        """
        if transition not in self.programs:
            raise UnknownNameError("transition", transition, self.programs)
        return self.programs[transition]

    def describe(self, *names: str) -> str:
        """Return readable text of the transitions' micro-operations in order; of all, or of those named."""
        return describe(self.transitions, names or tuple(self.transitions))

    def having(self, role: Role, *within: str, optional: bool = False) -> tuple[str, ...]:
        """Return the paths of the micro-operations of a role, in all transitions or in those named.

        :raises MissingRoleError: There are none, and they are not optional.
        """
        return edits.having(self.transitions, role, *within, optional=optional)

    def without(self, path: str) -> Protocol:
        """Return the protocol without a micro-operation, as `asi_exit.flush_control`.

        :raises UnknownNameError: The path leads to none.
        """
        return Protocol(self.config, edits.without(self.transitions, path))

    def replacing(self, path: str, *ops: MicroOp) -> Protocol:
        """Return the protocol with others in the place of a micro-operation.

        :raises UnknownNameError: The path leads to none.
        """
        return Protocol(self.config, edits.replacing(self.transitions, path, *ops))

    def inserting(self, *ops: MicroOp, before: str = "", after: str = "") -> Protocol:
        """Return the protocol with micro-operations added.

        :raises UnknownNameError: The path leads to none.
        """
        return Protocol(self.config, edits.inserting(self.transitions, *ops, before=before, after=after))

    def reordered(self, path: str, *, before: str = "", after: str = "") -> Protocol:
        """Return the protocol with a micro-operation moved inside its transition.

        :raises UnknownNameError: A path leads to none.
        :raises EditError: The two are not of one transition.
        """
        return Protocol(self.config, edits.reordered(self.transitions, path, before=before, after=after))

    def rewriting(self, change: Callable[[str, MicroOp], MicroOp]) -> Protocol:
        """Return the protocol with every micro-operation changed by a function of its path and itself."""
        return Protocol(self.config, edits.rewriting(self.transitions, change))
