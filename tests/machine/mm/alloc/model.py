"""An independent, simple statement of what the allocator promises, checked against its lists and the raw page tables.

It knows which frames are allocated and with which sensitivity; what secrets lie where; and which frames some CPU may
still have in its TLB for the restricted address space (the worst case: everything that ever was there, until flushed).
A broken promise is a `Violation` that names the rule.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asikit.machine.mm import (
    GFP_ATOMIC,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_NOWAIT,
    GFP_USER,
    AtomicFlipError,
    Gfp,
    OutOfMemoryError,
    SplitError,
)
from tests.machine.mm.alloc.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.machine.mm import PageAllocator

SECRET = b"the secret of some other domain!"
FRAME = 4096

REQUESTS: tuple[Gfp, ...] = (
    GFP_KERNEL,
    GFP_KERNEL | Gfp.ZERO,
    GFP_KERNEL | Gfp.RECLAIMABLE,
    GFP_KERNEL | Gfp.MOVABLE,
    GFP_USER,
    GFP_HIGHUSER_MOVABLE,
    GFP_HIGHUSER_MOVABLE | Gfp.ZERO,
    GFP_USER | Gfp.RECLAIMABLE,
    GFP_KERNEL | Gfp.DMA32,
    GFP_USER | Gfp.DMA32,
)
SENSITIVE_REQUESTS = tuple(gfp for gfp in REQUESTS if gfp & Gfp.SENSITIVE)
NONSENSITIVE_REQUESTS = tuple(gfp for gfp in REQUESTS if not gfp & Gfp.SENSITIVE)
ATOMIC_REQUESTS: tuple[Gfp, ...] = (GFP_ATOMIC, GFP_NOWAIT, GFP_ATOMIC | Gfp.SENSITIVE, GFP_NOWAIT | Gfp.MOVABLE)
ATTRIBUTES = ("ro", "rw", "x", "nx", "np", "p")


class Violation(AssertionError):  # noqa: N818 - it is what a test looks for
    """A broken promise; `rule` names it."""

    def __init__(self, rule: str, detail: object) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


@dataclass
class Allocation:
    """What was handed out."""

    pfn: int
    order: int
    sensitive: bool

    @property
    def frames(self) -> range:
        """Its frames."""
        return range(self.pfn, self.pfn + (1 << self.order))


class Model:
    """Runs operations on an allocator and keeps its own account of them."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.allocator: PageAllocator = rig.allocator
        self.allocator.observers.append(self)
        self.allocations: dict[int, Allocation] = {}
        self.owned: set[int] = set()
        """Frames of all allocations."""
        self.usable = {pfn for frames in rig.memblock.free_ranges() for pfn in frames}
        self.stale: set[int] = set()
        """Frames that a restricted TLB may have."""
        self.not_present: set[int] = set()
        """Frames that set_memory_np took out."""
        self.nonsensitive_blocks: set[int] = set()
        self.block_frames = 1 << self.allocator.pageblocks.order
        self.operations = 0
        self.out_of_memory = 0
        self.tables: set[int] = set()
        """Frames that became page tables at a split."""
        rig.direct_map.attach(allocate=self._allocate_table, free=self.allocator.free_pages)

    # What the allocator reports.

    def on_alloc(self, pfn: int, order: int, gfp: Gfp, migratetype: int) -> None:
        """Accounted for by `alloc`."""

    def on_free(self, pfn: int, order: int) -> None:
        """Accounted for by `free`."""

    def on_flip(self, pageblock: int, sensitive: bool) -> None:
        """A block changed: no shootdown, and it may stay readable."""
        start = pageblock * self.block_frames
        frames = range(start, start + self.block_frames)
        self._see_flushes()
        if not self.owned.isdisjoint(frames):
            raise Violation("a block with allocated pages changes sensitivity", pageblock)
        if sensitive:
            self.nonsensitive_blocks.discard(pageblock)
        else:
            self.nonsensitive_blocks.add(pageblock)
            self.stale.update(frames)

    def _see_flushes(self) -> None:
        log = self.rig.flusher.log
        for _, start, end in log:
            if not isinstance(start, int) or not isinstance(end, int):
                continue
            base = self.rig.layout.direct_map.start
            if end - start >= self.rig.memory.size:
                self.stale.clear()
            else:
                self.stale.difference_update(range((start - base) >> 12, (end - base) >> 12))
        log.clear()

    def _allocate_table(self) -> int:
        pfn = self.allocator.alloc_pages(GFP_KERNEL | Gfp.ZERO)
        self.tables.add(pfn)
        self.owned.add(pfn)
        return pfn

    # Operations.

    def alloc(self, gfp: Gfp, order: int, cpu: int) -> Allocation | None:
        """Allocate, and check what is handed out at once. None if memory ran out."""
        self.operations += 1
        self.rig.context.cpu_number = cpu
        self.rig.context.may_block = bool(gfp & Gfp.DIRECT_RECLAIM)
        flipped = self.allocator.counters.flipped_frames
        try:
            pfn = self.allocator.alloc_pages(gfp, order)
        except OutOfMemoryError:
            self.out_of_memory += 1
            return None
        except AtomicFlipError as error:
            raise Violation("sensitivity changes in atomic context", error) from error
        finally:
            self.rig.context.may_block = True
        if not gfp & Gfp.DIRECT_RECLAIM and self.allocator.counters.flipped_frames != flipped:
            raise Violation("sensitivity changes in atomic context", gfp)
        allocation = Allocation(pfn, order, self.allocator.asi and bool(gfp & Gfp.SENSITIVE))
        self._check_new(allocation, zeroed=bool(gfp & Gfp.ZERO))
        self.allocations[pfn] = allocation
        self.owned.update(allocation.frames)
        return allocation

    def _check_new(self, allocation: Allocation, *, zeroed: bool) -> None:
        self._see_flushes()
        frames = allocation.frames
        if not self.usable.issuperset(frames) or not self.owned.isdisjoint(frames):
            raise Violation("a frame is handed out twice, or is no memory", allocation)
        if allocation.pfn % len(frames):
            raise Violation("an allocation is not aligned", allocation)
        for pfn in frames:
            if self.allocator.asi and allocation.sensitive == (pfn // self.block_frames in self.nonsensitive_blocks):
                raise Violation("a page of the wrong sensitivity is handed out", allocation)
            if allocation.sensitive and pfn in self.stale:
                raise Violation("a sensitive page is in some TLB", hex(pfn))
            content = self.rig.memory.frame(pfn)
            if zeroed and any(content):
                raise Violation("a page that was to be cleared is not", hex(pfn))
            if not allocation.sensitive and SECRET in content:
                raise Violation("a nonsensitive page has old secrets", hex(pfn))
            content[:] = (SECRET if allocation.sensitive else b"what everybody may know about it") * (FRAME // 32)

    def free(self, allocation: Allocation, cpu: int) -> None:
        """Free, with mappings restored as a careful caller does."""
        self.operations += 1
        self.rig.context.cpu_number = cpu
        for pfn in allocation.frames:
            if pfn in self.not_present:
                self.set_memory("p", pfn, 1)
        del self.allocations[allocation.pfn]
        self.owned.difference_update(allocation.frames)
        self.allocator.free_pages(allocation.pfn, allocation.order)

    def set_memory(self, attribute: str, pfn: int, frames: int) -> None:
        """Change attributes in the direct map; a split that finds no memory changes nothing."""
        self.operations += 1
        vaddr = self.rig.layout.virt(pfn << 12)
        try:
            getattr(self.rig.direct_map, f"set_memory_{attribute}")(vaddr, frames)
        except SplitError:
            self.out_of_memory += 1
            return
        if attribute == "np":
            self.not_present.update(range(pfn, pfn + frames))
        elif attribute == "p":
            self.not_present.difference_update(range(pfn, pfn + frames))

    def drain(self, cpu: int | None) -> None:
        """Drain one CPU's lists, or all."""
        self.operations += 1
        if cpu is None:
            self.allocator.drain_all_pages()
        else:
            self.allocator.drain_pages(cpu)

    # Checks.

    def check(self) -> None:
        """Check everything."""
        self._see_flushes()
        self._check_places()
        if self.allocator.asi:
            self._check_mappings()
            self._check_secrets()

    def _check_places(self) -> None:
        """Every frame is in exactly one place, and on a list of its block's sensitivity."""
        places = sorted(self.owned)
        heads: dict[int, int] = {}
        for pfn, order, sensitive, on_zone in self._free_blocks():
            places += range(pfn, pfn + (1 << order))
            self._check_block(pfn, order, sensitive=sensitive)
            if on_zone:
                heads[pfn] = order
        for pfn, order in self.allocator.flipping.items():
            places += range(pfn, pfn + (1 << order))
        if len(places) != len(set(places)):
            raise Violation("a frame is in two places", sorted({pfn for pfn in places if places.count(pfn) > 1}))
        if set(places) != self.usable:
            raise Violation("a frame is lost", sorted(self.usable ^ set(places)))
        for pfn, order in heads.items():
            if order < self.allocator.pageblocks.order and heads.get(pfn ^ 1 << order) == order:
                raise Violation("buddies are not merged", hex(pfn))

    def _free_blocks(self) -> Iterator[tuple[int, int, bool, bool]]:
        """Frame, order, the list's sensitivity, and whether it is a zone's list, of all blocks on all lists."""
        for zone in self.allocator.zones:
            for order, area in enumerate(zone.free_area):
                for freetype, heads in enumerate(area.free_list):
                    for pfn in heads:
                        yield pfn, order, freetype >= 4, True
        for pcps in self.allocator.pcp:
            for pcp in pcps:
                for index, blocks in enumerate(pcp.lists):
                    sensitive, inner = divmod(index, 14)
                    for pfn in blocks:
                        yield pfn, 9 if inner >= 12 else inner // 3, bool(sensitive), False

    def _check_block(self, pfn: int, order: int, *, sensitive: bool) -> None:
        if pfn % (1 << order):
            raise Violation("a free block is not aligned", (hex(pfn), order))
        blocks = range(pfn // self.block_frames, (pfn + (1 << order) - 1) // self.block_frames + 1)
        kinds = {block not in self.nonsensitive_blocks for block in blocks}
        if len(kinds) > 1:
            raise Violation("blocks are merged across sensitivity", (hex(pfn), order))
        if self.allocator.asi and kinds != {sensitive}:
            raise Violation("a block is on a list of the other sensitivity", (hex(pfn), order))

    def _check_mappings(self) -> None:
        unrestricted, restricted = self.rig.unrestricted(), self.rig.restricted()
        everything = set(range(self.rig.direct_map.frames))
        if everything - unrestricted != self.not_present:
            raise Violation("the unrestricted map is not what set_memory_* made it", None)
        bits = self.allocator.pageblocks.nonsensitive
        if {block for block, bit in enumerate(bits) if bit} != self.nonsensitive_blocks:
            raise Violation("the pageblock bits are not what changes made them", None)
        wanted = {pfn for pfn in unrestricted if pfn // self.block_frames in self.nonsensitive_blocks}
        if restricted - wanted:
            raise Violation("a sensitive page is in the restricted map", sorted(restricted - wanted))
        if wanted - restricted != self.rig.direct_map.removed & wanted:
            raise Violation("a nonsensitive page is not in the restricted map", sorted(wanted - restricted))

    def _check_secrets(self) -> None:
        for block in self.nonsensitive_blocks:
            for pfn in range(block * self.block_frames, (block + 1) * self.block_frames):
                if SECRET in self.rig.memory.frame(pfn):
                    raise Violation("a nonsensitive page has old secrets", hex(pfn))


class RandomRun:
    """A seeded sequence of operations. It drifts between phases that allocate more, and that free more."""

    def __init__(self, model: Model, seed: int, *, cpus: int = 2, max_order: int = 5, order_rate: float = 1.2) -> None:
        self.model = model
        self.random = random.Random(seed)
        self.cpus = cpus
        self.max_order = max_order
        self.order_rate = order_rate
        """Smaller for larger allocations: the exponential distribution's, in 1/orders."""
        self.live: list[Allocation] = []
        self.pressure = 0.5
        self.preferred = REQUESTS

    def run(self, operations: int, check_every: int) -> None:
        """Run that many, with a full check now and then and at the end."""
        for step in range(operations):
            if step % 300 == 0:
                self._new_phase()
            self.step()
            if step % check_every == 0:
                self.model.check()
        self.model.check()

    def _new_phase(self) -> None:
        """More pressure or less; requests of both sensitivities or of one; now and then everything is freed before."""
        self.pressure = self.random.choice((0.4, 0.6, 0.8, 0.95))
        self.preferred = self.random.choice((REQUESTS, SENSITIVE_REQUESTS, NONSENSITIVE_REQUESTS))
        if self.random.random() < 0.5:
            while self.live:
                self.model.free(self.live.pop(), self.random.randrange(self.cpus))

    def step(self) -> None:
        """One operation."""
        dice, model = self.random, self.model
        cpu = dice.randrange(self.cpus)
        kind = dice.random()
        if kind < 0.03:
            model.drain(dice.choice((cpu, None)))
        elif kind < 0.08 and self.live:
            target = dice.choice(self.live)
            first = dice.randrange(len(target.frames))
            count = dice.randint(1, len(target.frames) - first)
            model.set_memory(dice.choice(ATTRIBUTES), target.pfn + first, count)
        elif dice.random() < self.pressure or not self.live:
            atomic = dice.random() < 0.1
            gfp = dice.choice(ATOMIC_REQUESTS if atomic else self.preferred)
            order = min(int(dice.expovariate(self.order_rate)), self.max_order)
            allocation = model.alloc(gfp, order, cpu)
            if allocation is not None:
                self.live.append(allocation)
        else:
            index = dice.randrange(len(self.live))
            self.live[index], self.live[-1] = self.live[-1], self.live[index]
            model.free(self.live.pop(), cpu)


def random_run(
    operations: int,
    *,
    seed: int = 0,
    check_every: int = 500,
    dice: dict[str, Any] | None = None,
    **rig: Any,  # noqa: ANN401 - the machine's own
) -> Model:
    """Run random operations on a machine of their own, and return the account of them."""
    model = Model(Rig(**rig))
    for pcps in model.allocator.pcp:
        for cpu, pcp in enumerate(pcps):
            # Larger than so small a machine would have them, and not the same for all.
            pcp.batch, pcp.high = 5 - 2 * cpu, 24 + cpu
    RandomRun(model, seed, **(dice or {})).run(operations, check_every)
    return model
