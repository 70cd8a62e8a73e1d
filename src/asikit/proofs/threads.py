"""What the model is made of: hardware threads, the bits that two of them share, and what may happen to one."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from asikit.protocol import HANDLER, CoreState, Mailbox
from asikit.threat import Party

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.protocol import Effect, TaskState, ThreadState

OWN_STUNNED, OWN_UNTRUSTED, OWN_IPI, SIBLING_STUNNED, SIBLING_UNTRUSTED, SIBLING_IPI, OWN_BEHIND, SIBLING_BEHIND = (
    1 << bit for bit in range(8)
)
SHARED_BITS = 8
"""The width of what two threads share, as one sees it: both mailboxes, and who has yet to follow a switch of mm."""


SHARED_WORDS: tuple[tuple[int, ...], ...] = tuple(
    tuple(shared >> bit & 1 for bit in range(SHARED_BITS)) for shared in range(1 << SHARED_BITS)
)
"""The bits of each value of them, in the order of the fields that they are to expressions."""


def shared_of_words(words: Sequence[int]) -> int:
    """Return the bits as one number."""
    return sum(word << bit for bit, word in enumerate(words))


def core_of(shared: int) -> tuple[CoreState, int]:
    """Return the mailboxes, this thread's first, and the bits of who is behind."""
    own = Mailbox(shared & 1, shared >> 1 & 1, shared >> 2 & 1)
    sibling = Mailbox(shared >> 3 & 1, shared >> 4 & 1, shared >> 5 & 1)
    return CoreState(own, sibling), shared & (OWN_BEHIND | SIBLING_BEHIND)


def shared_bits(core: CoreState, behind: int) -> int:
    """Return mailboxes, this thread's first, and the bits of who is behind, as one number."""
    own, sibling = core
    first = own.stunned | own.untrusted << 1 | own.stun_ipi << 2
    return first | sibling.stunned << 3 | sibling.untrusted << 4 | sibling.stun_ipi << 5 | behind


def swapped(shared: int) -> int:
    """Return the shared bits as the sibling sees them."""
    mailboxes, behind = shared & 0x3F, shared >> 6
    return (mailboxes >> 3) | ((mailboxes & 7) << 3) | (behind >> 1 | (behind & 1) << 1) << 6


class Mode(IntEnum):
    """What a hardware thread runs."""

    KERNEL = 0
    USER = 1
    GUEST = 2

    @property
    def party(self) -> Party:
        """Whose code that is."""
        return (Party.KERNEL, Party.USER, Party.GUEST)[self]


class Thread(NamedTuple):
    """One hardware thread.

    :ivar state: The protocol's part: per-CPU and per-task state, transitions in progress.
    :ivar mode: What it runs.
    :ivar stale: Its TLB maps, in the restricted address space, a page that has become sensitive since.
    :ivar broken: Why it cannot go on: a rule of the API was broken, or a page fault's retry faults again.
    """

    state: ThreadState
    mode: Mode = Mode.KERNEL
    stale: bool = False
    broken: str = ""


class Move(NamedTuple):
    """Something that may happen next to a thread.

    :ivar verb: `begins`, `runs`, `interrupted by`, `leaves`, `stops waiting`, `skips` or `turns sensitive`.
    :ivar name: The transition, or the path of the micro-operation.
    :ivar after: The thread after it.
    :ivar shared: The shared bits after it.
    :ivar effect: What it asks of the hardware.
    :ivar clears: The mask of what it empties.
    :ivar folds: Another mm is loaded: what was the own user's is another's now.
    :ivar owed: It happens sooner or later, if nothing else does.
    :ivar changes: A micro-operation that changed the state, rather than only looked at it.
    :ivar loads: The task that a switch, ending here, goes to.
    """

    verb: str
    name: str
    after: Thread
    shared: int
    effect: Effect | None = None
    clears: int = 0
    folds: bool = False
    owed: bool = False
    changes: bool = False
    loads: TaskState | None = None


class View(NamedTuple):
    """What a thread means for the core's structures, in the state it is in.

    :ivar adds: What it brings into them.
    :ivar forbids: What must not be in them: it would be sampled, or would steer code that has a secret in reach.
    :ivar leak: A leak that needs no structure, empty if none.
    """

    adds: int = 0
    forbids: int = 0
    leak: str = ""


def in_transition(thread: Thread) -> bool:
    """Whether a thread runs a transition of the protocol, rather than ordinary code or a handler's own."""
    frames = thread.state.frames
    return bool(frames) and frames[-1].program != HANDLER
