"""Counterexamples: the way to a leak as plain data, which a scheduler can follow, and as a story, which people can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asikit.proofs.threads import OWN_BEHIND, Mode, swapped
from asikit.protocol import AsiClass, Happening
from asikit.threat import NOBODY, Party

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.proofs.explore import Happened, Path
    from asikit.proofs.model import World
    from asikit.proofs.threads import Move, Thread
    from asikit.protocol import TaskState

_WORDS: dict[str, str] = {
    Happening.SYSCALL_ENTRY: "makes a system call",
    Happening.INTERRUPT_ENTRY: "is interrupted in user mode",
    Happening.EXCEPTION_ENTRY: "faults in user mode",
    Happening.NMI_ENTRY: "gets an NMI in user mode",
    Happening.VM_EXIT: "leaves the guest",
    Happening.RETURN_USER: "returns to user mode",
    Happening.VM_ENTRY: "enters the guest",
    Happening.UNMAPPED_TOUCH: "touches sensitive memory",
    Happening.EXPLICIT_EXIT: "exits explicitly",
    Happening.CONTEXT_SWITCH: "switches to another task",
    Happening.MM_SWITCH: "switches to another process",
    Happening.TLB_FLUSH_USER: "flushes the TLB for user addresses",
    Happening.TLB_FLUSH_KERNEL: "flushes the TLB for kernel addresses",
    Happening.TLB_FLUSH_USER_RANGE: "flushes pages at user addresses from the TLB",
    Happening.TLB_FLUSH_KERNEL_RANGE: "flushes pages at kernel addresses from the TLB",
    Happening.NESTED_NMI: "gets an NMI",
    Happening.NESTED_INTERRUPT: "gets an interrupt",
    Happening.NESTED_EXCEPTION: "gets an exception",
    Happening.NESTED_PAGE_FAULT: "faults for a reason of its own",
    Happening.DOUBLE_FAULT: "faults twice",
}


@dataclass(frozen=True, slots=True)
class StoryStep:
    """One step that a scheduler follows.

    :ivar thread: Who, 0 or 1.
    :ivar verb: `begins`, `interrupted by` (a transition); `runs`, `skips` (a micro-operation); `leaves`, `stops
        waiting`, `turns sensitive`, `breaks a rule in`.
    :ivar name: The transition, or the path of the micro-operation.
    :ivar effect: What it asks of the hardware, empty if nothing.
    :ivar loads: The state of the task that a switch of tasks, ending here, goes to: `target` (a `Space`), and
        `intr_nest_depth`.
    """

    thread: int
    verb: str
    name: str
    effect: str = ""
    loads: TaskState | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the step as JSON values."""
        return {
            "thread": self.thread,
            "verb": self.verb,
            "name": self.name,
            "effect": self.effect or None,
            "loads": None if self.loads is None else self.loads._asdict(),
        }


@dataclass(frozen=True, slots=True)
class Counterexample:
    """The shortest way to break a property.

    :ivar kind: `leak`, `deadlock`, or `broken rule`.
    :ivar steps: Every single step.
    :ivar story: The steps in lines to read.
    :ivar conclusion: What is wrong at the end.
    """

    kind: str
    steps: tuple[StoryStep, ...]
    story: tuple[str, ...]
    conclusion: str

    def to_dict(self) -> dict[str, Any]:
        """Return the counterexample as JSON values."""
        return {
            "kind": self.kind,
            "conclusion": self.conclusion,
            "story": list(self.story),
            "steps": [step.to_dict() for step in self.steps],
        }


def tell(world: World, kind: str, path: Path) -> Counterexample:
    """Return a path through a model as a counterexample."""
    steps = tuple(_step(happened) for happened in path.steps)
    story = tuple(line for line in _lines(world, path) if line)
    return Counterexample(kind, steps, story, _conclusion(world, kind, path))


def _step(happened: Happened) -> StoryStep:
    move = happened.move
    effect = "" if move.effect is None else str(move.effect)
    return StoryStep(happened.thread, move.verb, str(move.name), effect, move.loads)


def _lines(world: World, path: Path) -> Iterator[str]:
    """Yield a line for each run of steps that one thread makes without a break."""
    group: list[Happened] = []
    for step in path.steps:
        starts = step.move.verb not in {"runs", "skips"}
        if group and (starts or step.thread != group[-1].thread):
            yield _line(world, group)
            group = []
        group.append(step)
    if group:
        yield _line(world, group)


def _line(world: World, group: list[Happened]) -> str:
    first, last = group[0].move, group[-1]
    text = _opening(first) if first.verb not in {"runs", "skips"} else "goes on"
    did = [words for step in group for words in _deed(step)]
    if text == "goes on" and not did and last.move.after.mode is Mode.KERNEL:
        return ""
    text += f": {', '.join(did)}" if did else ""
    if last.move.after.mode is not Mode.KERNEL and last.move.verb == "runs":
        text += f"; {'user mode' if last.move.after.mode is Mode.USER else 'the guest'} runs"
    new = _news(world, group[0].contents_before, last.contents)
    text += f" [{new}]" if new else ""
    return f"thread {last.thread} {text}" if world.threads > 1 else text


def _opening(move: Move) -> str:
    if move.verb in {"begins", "interrupted by"}:
        return _WORDS.get(move.name, f"begins {move.name}")
    if move.verb == "stops waiting":
        return "stops waiting"
    if move.verb == "turns sensitive":
        return "keeps the translation of a page that becomes sensitive"
    return f"{move.verb} {move.name}"


def _deed(step: Happened) -> Iterator[str]:
    """Yield what a micro-operation is called, if it did anything."""
    move = step.move
    if move.verb != "runs" or (not move.changes and move.effect is None):
        return
    yield str(move.effect) if move.effect is not None else move.name.partition(".")[2]


def _news(world: World, before: int, after: int) -> str:
    """Return what the structures hold now that they did not: victims' data, attackers' training."""
    old, new = world.layout.unpack(before), world.layout.unpack(after)
    holds = {structure.name: structure.holds for structure in world.layout.structures}
    gained: dict[str, list[str]] = {}
    for name, parties in new.items():
        fresh = parties & ~old[name]
        feared = fresh & (Party.KERNEL | Party.OTHER) if holds[name] == "data" else fresh
        if feared:
            verb = "data of" if holds[name] == "data" else "trained by"
            gained.setdefault(f"{verb} {_who(world, feared, holds[name])}", []).append(name)
    return "; ".join(f"{', '.join(names)}: {what}" for what, names in gained.items())


def _who(world: World, parties: Party, holds: str) -> str:
    # Where parties are merged, another process' tag is the kernel's too, and the process' its guest's.
    if holds == "data" and parties & (Party.KERNEL | (Party.OTHER if world.trusting else NOBODY)):
        return "the kernel"
    if world.trusting and AsiClass.KVM in world.config.classes and parties & Party.USER:
        return "the process or its guest"
    return " and ".join(party.label for party in Party if party & parties)


def _conclusion(world: World, kind: str, path: Path) -> str:
    shared = (path.shared, swapped(path.shared))
    if kind == "broken rule":
        return str(next(thread.broken for thread in path.threads if thread.broken))
    if kind == "deadlock":
        waiting = [who for who, thread in enumerate(path.threads) if world.spins(thread, shared[who])]
        places = [f"thread {who} at {world.place(path.threads[who])}" for who in waiting]
        return f"{' and '.join(places)} {'wait' if len(places) > 1 else 'waits'} for ever"
    for who, thread in enumerate(path.threads):
        view = world.view(thread, shared[who])
        found = view.forbids & path.contents
        if view.leak or found:
            return view.leak or _leak(world, who, thread, found, behind=bool(shared[who] & OWN_BEHIND))
    raise AssertionError("a path to a leak ends where nothing leaks")


def _leak(world: World, who: int, thread: Thread, found: int, *, behind: bool) -> str:
    parties = {name: value for name, value in world.layout.unpack(found).items() if value}
    holds = {structure.name: structure.holds for structure in world.layout.structures}
    name = next(iter(parties))
    whose = _who(world, parties[name], holds[name])
    thread_text = f"thread {who}" if world.threads > 1 else "the CPU"
    if holds[name] == "data":
        reader = "user mode" if thread.mode is Mode.USER else "the guest"
        reader += " of another process" if behind else ""
        return f"{reader} on {thread_text} reads data of {whose} from the {name}"
    return f"code with secrets in reach on {thread_text} follows the {name} that {whose} trained, and transmits them"
