"""Address spaces and files against the model: random histories of several processes, with and without ASI.

After every step page tables, reference counts and the announced top-level entries are compared as well, all found in
physical memory by the rig's own walk; at the end every page frame must be free again.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asikit.machine.mm.errors import OutOfMemoryError
from asikit.machine.mm.fault import UserFaultError
from asikit.machine.mm.fork import dup_mm
from asikit.machine.mm.inode import TMPFS, Inode, filesystem
from asikit.machine.mm.mmstruct import MapFlags, MmStruct, NotMappedError, Prot
from asikit.machine.mm.pagecache import UserCopyError
from asikit.trace import PageKind
from tests.machine.mm.user.model import ModelFile, ModelProcess, Refused
from tests.machine.mm.user.rig import NOT_EXECUTABLE, PAGE, WRITABLE, Rig, mapped_pages

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_PAGES = 12
WINDOW = ((3 << 39) >> 12) - WINDOW_PAGES // 2
"""First page of the addresses used: both sides of a border between two top-level entries."""
BRK = (1 << 30) - 2 * PAGE
FRAME_BITS = (1 << 40) - 1
DISK = bytes(range(1, 256)) * 50

pages = st.integers(0, WINDOW_PAGES - 1)
counts = st.integers(1, 5)
protections = st.sampled_from(
    [Prot.READ | Prot.WRITE] * 4 + [Prot.READ, Prot.READ | Prot.EXEC, Prot.READ | Prot.WRITE | Prot.EXEC, Prot.NONE]
)
offsets = st.integers(0, 3 * PAGE)
contents = st.binary(min_size=1, max_size=12)


class Histories(RuleBasedStateMachine):
    """Up to four processes and two files."""

    @initialize(asi=st.booleans(), levels=st.sampled_from([4, 5]))
    def boot(self, asi: bool, levels: int) -> None:
        """Start with one empty process."""
        self.rig = Rig(2048, asi=asi, levels=levels, pageblock_order=5)
        self.free = self.rig.free_frames()
        self.files: list[tuple[Inode, ModelFile]] = []
        for name, kind, content in (("t", TMPFS, b""), ("d", filesystem("ext4", "ext4"), DISK)):
            inode, model = self.rig.cache.new_inode(name, kind, content), ModelFile()
            model.write(0, content)
            self.files.append((inode, model))
        self.roots: dict[int, dict[int, int]] = {}
        self.processes: list[tuple[MmStruct, ModelProcess]] = []
        mm = MmStruct(self.rig.services, self.rig.cache, 1, on_pgd_change=[self._announced(1)])
        mm.init_brk(BRK)
        model_process = ModelProcess()
        model_process.brk = model_process.start_brk = BRK
        self.processes.append((mm, model_process))

    def _announced(self, number: int) -> Callable[[int, int], None]:
        return self.roots.setdefault(number, {}).__setitem__

    def _process(self, which: int) -> tuple[MmStruct, ModelProcess]:
        return self.processes[which % len(self.processes)]

    @rule(who=st.integers(0, 3), first=pages, count=counts, prot=protections, what=st.integers(0, 5), at=counts)
    def mmap(self, who: int, first: int, count: int, prot: Prot, what: int, at: int) -> None:
        """Map memory or a file at a fixed place."""
        mm, model = self._process(who)
        shared = bool(what & 1)
        inode, file = self.files[what // 2] if what // 2 < len(self.files) else (None, None)
        flags = MapFlags.FIXED | (MapFlags.SHARED if shared else MapFlags.PRIVATE)
        flags |= MapFlags.ANONYMOUS if inode is None else MapFlags(0)
        index = at - 1 if inode is not None else 0
        address = (WINDOW + first) * PAGE
        assert mm.mmap(count * PAGE, prot, flags, inode, index * PAGE, address=address) == address
        model.map(WINDOW + first, count, prot, shared=shared, file=file, index=index)

    @rule(who=st.integers(0, 3), first=pages, count=counts)
    def munmap(self, who: int, first: int, count: int) -> None:
        """Unmap a range, whatever is there."""
        mm, model = self._process(who)
        mm.munmap((WINDOW + first) * PAGE, count * PAGE)
        model.unmap(WINDOW + first, count)

    @rule(who=st.integers(0, 3), first=pages, count=counts, prot=protections)
    def mprotect(self, who: int, first: int, count: int, prot: Prot) -> None:
        """Protect a range, up to the first hole."""
        mm, model = self._process(who)
        whole = model.protect(WINDOW + first, count, prot)
        with nullcontext() if whole else pytest.raises(NotMappedError):
            mm.mprotect((WINDOW + first) * PAGE, count * PAGE, prot)

    @rule(who=st.integers(0, 3), delta=st.integers(-2 * PAGE, 3 * PAGE))
    def brk(self, who: int, delta: int) -> None:
        """Move the heap's end."""
        mm, model = self._process(who)
        wanted = model.brk + delta
        if wanted >= model.start_brk:
            old, new = -(-model.brk // PAGE), -(-wanted // PAGE)
            model.unmap(new, max(old - new, 0))
            model.map(old, max(new - old, 0), Prot.READ | Prot.WRITE, shared=False, file=None)
            model.brk = wanted
        assert mm.set_brk(wanted) == model.brk

    @rule(who=st.integers(0, 3), page=pages, offset=st.integers(0, PAGE - 1), data=contents, heap=st.booleans())
    def store(self, who: int, page: int, offset: int, data: bytes, heap: bool) -> None:
        """Write memory, also where that is refused."""
        mm, model = self._process(who)
        vaddr = (BRK // PAGE + page if heap else WINDOW + page) * PAGE + offset
        with self._refusals(lambda: model.store(vaddr, data)):
            self.rig.store(mm, vaddr, data)

    @rule(who=st.integers(0, 3), page=pages, offset=st.integers(0, PAGE - 1), fetch=st.booleans())
    def load(self, who: int, page: int, offset: int, fetch: bool) -> None:
        """Read memory or execute it, also where that is refused."""
        mm, model = self._process(who)
        vaddr = (WINDOW + page) * PAGE + offset
        with self._refusals(lambda: model.load(vaddr, 1, fetch=fetch)):
            self.rig.fetch(mm, vaddr) if fetch else self.rig.load(mm, vaddr, 1)

    def _refusals(self, expected: Callable[[], object]) -> AbstractContextManager[object]:
        try:
            expected()
        except Refused as refused:
            signal = refused.signal
            return pytest.raises(UserFaultError, check=lambda error: error.signal == signal)
        return nullcontext()

    @precondition(lambda self: len(self.processes) < 4)
    @rule(who=st.integers(0, 3))
    def fork(self, who: int) -> None:
        """Copy a process."""
        mm, model = self._process(who)
        number = self.rig.new_id()
        self.processes.append((dup_mm(mm, number, on_pgd_change=[self._announced(number)]), model.fork()))

    @rule(who=st.integers(0, 3), after=st.integers(0, 6))
    def fork_without_memory(self, who: int, after: int) -> None:
        """Fail to copy a process: nothing is left of it."""
        mm, _ = self._process(who)
        before = self.rig.free_frames()
        with self.rig.fail_at(after) as failing:
            try:
                dup_mm(mm, self.rig.new_id()).put()
            except OutOfMemoryError:
                assert failing.reached
        assert self.rig.free_frames() == before

    @rule(who=st.integers(0, 3), page=pages, after=st.integers(0, 4))
    def store_without_memory(self, who: int, page: int, after: int) -> None:
        """Write memory when there is none: it happens or it does not."""
        mm, model = self._process(who)
        vaddr = (WINDOW + page) * PAGE
        with self.rig.fail_at(after):
            try:
                self.rig.store(mm, vaddr, b"!")
            except (OutOfMemoryError, UserFaultError):
                return
        model.store(vaddr, b"!")

    @precondition(lambda self: len(self.processes) > 1)
    @rule(who=st.integers(0, 3))
    def exit(self, who: int) -> None:
        """End a process."""
        mm, _ = self.processes.pop(who % len(self.processes))
        mm.put()
        del self.roots[mm.id]

    @rule(who=st.integers(0, 3), which=st.integers(0, 1), pos=offsets, page=pages, offset=offsets, count=offsets)
    def read(self, who: int, which: int, pos: int, page: int, offset: int, count: int) -> None:
        """Read a file, possibly to where memory cannot be written."""
        mm, model = self._process(who)
        inode, file = self.files[which]
        uaddr = WINDOW * PAGE + page * PAGE + offset

        def copy_to_user(uaddr: int, data: bytes) -> int:
            for done, byte in enumerate(data):
                try:
                    self.rig.store(mm, uaddr + done, bytes([byte]))
                except UserFaultError:
                    return len(data) - done
            return 0

        done = 0
        try:
            for byte in file.read(pos, count):
                model.store(uaddr + done, bytes([byte]))
                done += 1
        except Refused:
            if not done:
                with pytest.raises(UserCopyError):
                    self.rig.cache.read_iter(inode, pos, uaddr, count, copy_to_user)
                return
        assert self.rig.cache.read_iter(inode, pos, uaddr, count, copy_to_user) == done

    @rule(who=st.integers(0, 3), which=st.integers(0, 1), pos=offsets, page=pages, offset=offsets, count=offsets)
    def write(self, who: int, which: int, pos: int, page: int, offset: int, count: int) -> None:
        """Write a file, possibly from where memory cannot be read."""
        mm, model = self._process(who)
        inode, file = self.files[which]
        uaddr = WINDOW * PAGE + page * PAGE + offset

        def copy_from_user(uaddr: int, size: int) -> bytes:
            for done in range(size):
                try:
                    self.rig.load(mm, uaddr + done, 1)
                except UserFaultError:
                    return self.rig.load(mm, uaddr, done)
            return self.rig.load(mm, uaddr, size)

        done = 0
        try:
            while done < count:  # page by page, as a source may be what is written to
                size = min(PAGE - (pos + done) % PAGE, count - done)
                data = bytearray()
                try:
                    for at in range(size):
                        data += model.load(uaddr + done + at, 1)
                finally:
                    file.write(pos + done, data)
                    done += len(data)
        except Refused:
            if not done:
                with pytest.raises(UserCopyError):
                    self.rig.cache.write_iter(inode, pos, uaddr, count, copy_from_user)
                return
        assert self.rig.cache.write_iter(inode, pos, uaddr, count, copy_from_user) == done

    @rule(which=st.integers(0, 1), size=offsets)
    def truncate(self, which: int, size: int) -> None:
        """ftruncate(2)."""
        inode, file = self.files[which]
        shrinks = size < file.size
        file.truncate(size)
        if shrinks:
            for _, model in self.processes:
                model.forget_file(file)
        self.rig.cache.truncate(inode, size)

    @invariant()
    def page_tables_agree(self) -> None:
        """What is mapped is what the model has, and may be written only if nobody else would notice.

        The same of what TLBs hold: a change that takes something away has flushed it.
        """
        mappings = Counter[int]()
        writable = dict[int, set[tuple[int, int]]]()
        cached = {pfn for inode, _ in self.files for pfn in inode.pages.values()}
        for mm, model in self.processes:
            mm.vmas.check()
            tables = mapped_pages(self.rig.memory, mm.pgd, self.rig.layout.levels)
            tlb = {vaddr: entry for (space, vaddr), entry in self.rig.tlb.entries.items() if space == mm.id}
            mappings.update(entry >> 12 & FRAME_BITS for entry in tables.values())
            for vaddr, entry in [*tables.items(), *tlb.items()]:
                page = model.pages[vaddr // PAGE]
                pfn = entry >> 12 & FRAME_BITS
                assert self.rig.memory.read(pfn << 12, PAGE) == page.readable()
                assert bool(entry & NOT_EXECUTABLE) or page.prot & Prot.EXEC
                assert page.prot
                if entry & WRITABLE:
                    assert page.prot & Prot.WRITE
                    if not page.shared:
                        writable.setdefault(pfn, set()).add((mm.id, vaddr))
                        assert pfn not in cached
        mappings.pop(self.rig.services.zero_page, None)
        for pfn, where in writable.items():
            assert len(where) == mappings[pfn] == 1, f"frame {pfn:#x} is private and writable in {where}"
        self._check_counts(mappings, cached)

    def _check_counts(self, mappings: Counter[int], cached: set[int]) -> None:
        """References and mappings of each page; PROT_NONE's entries count as mappings, the processor sees none."""
        for pfn in mappings | Counter(cached):
            page = self.rig.allocator.page(pfn)
            shmem = page.kind is PageKind.SHMEM and pfn not in cached
            assert page.refcount == page.mapcount + (pfn in cached or shmem)
            assert page.mapcount >= mappings[pfn]

    @invariant()
    def roots_agree(self) -> None:
        """The announced entries are those of the top-level table, whose kernel half is init_mm's."""
        init = self.rig.memory.read((self.rig.services.init_pgd << 12) + PAGE // 2, PAGE // 2)
        for mm, _ in self.processes:
            table = self.rig.memory.read(mm.pgd << 12, PAGE)
            assert table[PAGE // 2 :] == init
            entries = {index: int.from_bytes(table[8 * index : 8 * index + 8], "little") for index in range(256)}
            announced = self.roots.get(mm.id, {})
            assert {k: v for k, v in entries.items() if v} == {k: v for k, v in announced.items() if v}

    def teardown(self) -> None:
        """Everything is read back, ended and free."""
        if not hasattr(self, "rig"):
            return
        for inode, file in self.files:
            assert self.rig.cache.content(inode) == file.read(0, file.size)
        for mm, _ in self.processes:
            mm.put()
        for inode, _ in self.files:
            inode.put()
        assert not self.rig.cache.users
        assert self.rig.free_frames() == self.free
        assert not self.rig.access.stack


Histories.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
test_histories = Histories.TestCase
