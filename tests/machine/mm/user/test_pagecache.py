"""Reading and writing files: who touches pages, through which mapping, and what is left after faults."""

from __future__ import annotations

import pytest

from asikit.machine.mm.ephmap import SLOTS, EphmapError
from asikit.machine.mm.inode import TMPFS, FileSystem, filesystem
from asikit.machine.mm.mmstruct import MapFlags, Prot
from asikit.machine.mm.pagecache import UserCopyError
from asikit.trace import PageKind
from tests.machine.mm.user.rig import PAGE, Rig, walk

RW = Prot.READ | Prot.WRITE
CONTENT = bytes(range(1, 256)) * 40
BOTH = (PageKind.PAGE_CACHE, PageKind.SHMEM)
UADDR = 0x40_0000


class Sink:
    """User memory that takes so many bytes."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.data = bytearray()
        self.limit = limit

    def __call__(self, uaddr: int, data: bytes) -> int:
        """copy_to_user()."""
        assert uaddr == UADDR + len(self.data)
        taken = data[: self.limit - len(self.data)]
        self.data += taken
        return len(data) - len(taken)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "overlay"])
@pytest.mark.parametrize("through", ["direct map", "ephmap"])
@pytest.mark.parametrize(
    ("pos", "count"),
    [(0, 1), (0, PAGE), (5, 2 * PAGE), (PAGE - 1, 2), (10_000, 5000), (10_200, 9), (99_999, 1)],
)
def test_read(kind: str, through: str, pos: int, count: int) -> None:
    """Any part of a file, in pieces of at most a page."""
    rig = Rig(2048, asi=True, ephmap_kinds=BOTH if through == "ephmap" else ())
    inode = rig.cache.new_inode("f", filesystem(kind))
    rig.cache.populate(inode, CONTENT)
    sink = Sink()
    assert rig.cache.read_iter(inode, pos, UADDR, count, sink) == len(sink.data)
    assert bytes(sink.data) == CONTENT[pos : pos + count]
    assert not rig.access.stack


@pytest.mark.parametrize(
    ("file_system", "stack"),
    [
        (TMPFS, ("shmem_file_read_iter",)),
        (filesystem("ext4"), ("ext4_file_read_iter", "generic_file_read_iter", "filemap_read")),
        (
            filesystem("overlay", "overlay"),
            ("ovl_read_iter [overlay]", "generic_file_read_iter", "filemap_read"),
        ),
    ],
)
def test_who_reads(file_system: FileSystem, stack: tuple[str, ...]) -> None:
    """The page is touched by `_copy_to_iter`, below functions in the text of the file system's module if it is one."""
    rig = Rig(2048, asi=True)
    inode = rig.cache.new_inode("f", file_system)
    rig.cache.populate(inode, CONTENT)
    rig.access.recording = True
    rig.cache.read_iter(inode, 0, UADDR, 2 * PAGE, Sink())
    virt = rig.layout.virt
    assert rig.access.touched == [
        ("read", virt(inode.pages[index] << 12), (*stack, "copy_page_to_iter", "_copy_to_iter")) for index in (0, 1)
    ]


def test_who_writes() -> None:
    """The page is touched by `copy_page_from_iter_atomic`; a new one not wholly overwritten is cleared first."""
    rig = Rig(2048, asi=True)
    inode = rig.cache.new_inode("f")
    rig.access.recording = True
    assert rig.cache.write_iter(inode, 0, UADDR, PAGE + 7, lambda _, size: b"w" * size) == PAGE + 7
    top = ("generic_file_write_iter", "__generic_file_write_iter", "generic_perform_write")
    first, second = (rig.layout.virt(inode.pages[index] << 12) for index in (0, 1))
    written = [touch for touch in rig.access.touched if first <= touch[1] < first + PAGE]
    assert written == [("write", first, (*top, "copy_page_from_iter_atomic"))]
    written = [touch for touch in rig.access.touched if touch[1] == second]
    assert written == [
        ("write", second, (*top, "shmem_write_begin", "__alloc_pages", "clear_page_erms")),
        ("write", second, (*top, "copy_page_from_iter_atomic")),
    ]


def test_pages_are_sensitive() -> None:
    """`mapping_gfp_mask` is GFP_HIGHUSER_MOVABLE."""
    rig = Rig(2048, asi=True)
    for kind, page_kind in (("tmpfs", PageKind.SHMEM), ("ext4", PageKind.PAGE_CACHE)):
        inode = rig.cache.new_inode("f", filesystem(kind))
        rig.cache.populate(inode, CONTENT)
        for index, pfn in inode.pages.items():
            page = rig.allocator.page(pfn)
            assert (page.kind, page.owner, page.index) == (page_kind, inode, index)
            assert rig.allocator.pageblocks.sensitive(pfn)


def test_disk() -> None:
    """Pages are read from the disk once, with zeroes after its end."""
    rig = Rig(2048)
    inode = rig.cache.new_inode("f", filesystem("ext4"), CONTENT)
    assert not inode.pages
    sink = Sink()
    rig.cache.read_iter(inode, PAGE, UADDR, 10, sink)
    assert (bytes(sink.data), list(inode.pages)) == (CONTENT[PAGE : PAGE + 10], [1])
    frame = inode.pages[1]
    rig.cache.read_iter(inode, PAGE, UADDR, 10, Sink())
    assert inode.pages[1] == frame
    rig.cache.write_iter(inode, 10_300, UADDR, 1, lambda _, __: b"!")
    assert rig.cache.content(inode) == CONTENT + bytes(100) + b"!"


def test_holes() -> None:
    """A hole in tmpfs reads as zeroes and stays a hole."""
    rig = Rig(2048)
    inode = rig.cache.new_inode("f")
    rig.cache.write_iter(inode, 2 * PAGE, UADDR, 1, lambda _, __: b"!")
    sink = Sink()
    assert rig.cache.read_iter(inode, 0, UADDR, 3 * PAGE, sink) == 2 * PAGE + 1
    assert bytes(sink.data) == bytes(2 * PAGE) + b"!"
    assert list(inode.pages) == [2]


def test_faults_half_way() -> None:
    """What could be copied counts; nothing at all is an error, and the file does not grow."""
    rig = Rig(2048)
    inode = rig.cache.new_inode("f")
    rig.cache.populate(inode, CONTENT)
    assert rig.cache.read_iter(inode, 0, UADDR, 9000, Sink(5000)) == 5000
    with pytest.raises(UserCopyError, match="user address 0x400000"):
        rig.cache.read_iter(inode, 0, UADDR, 9000, Sink(0))
    assert rig.cache.write_iter(inode, len(CONTENT), UADDR, 9000, lambda at, _: b"abc"[: UADDR + 3 - at]) == 3
    assert inode.size == len(CONTENT) + 3
    with pytest.raises(UserCopyError):
        rig.cache.write_iter(inode, 50_000, UADDR, 9000, lambda _, __: b"")
    assert rig.cache.content(inode) == CONTENT + b"abc"


def test_a_reader_keeps_its_page() -> None:
    """A file whose last user goes, or that is truncated, while a page is copied: the reader still has the page."""
    rig = Rig(2048)
    inode = rig.cache.new_inode("f")
    free = rig.free_frames()
    rig.cache.populate(inode, CONTENT[:PAGE])
    seen = []

    def copy_to_user(_: int, data: bytes) -> int:
        rig.cache.truncate(inode, 0)
        inode.put()
        seen.append((data, rig.free_frames()))
        return 0

    assert rig.cache.read_iter(inode, 0, UADDR, PAGE, copy_to_user) == PAGE
    assert seen == [(CONTENT[:PAGE], free - 1)]
    assert rig.free_frames() == free


def test_two_readers_find_one_page() -> None:
    """Whoever is slower to read from the disk uses the faster one's page, and frees its own."""
    rig = Rig(2048)
    inode = rig.cache.new_inode("f", filesystem("ext4"), CONTENT)
    free = rig.free_frames()
    store, raced = rig.access.store, list[int]()

    def store_and_race(vaddr: int, data: bytes) -> None:
        store(vaddr, data)
        if not raced:
            raced.append(vaddr)
            rig.cache.read_iter(inode, 0, UADDR, 1, Sink())

    rig.access.store = store_and_race  # type: ignore[method-assign]
    sink = Sink()
    rig.cache.read_iter(inode, 0, UADDR, 1, sink)
    assert (bytes(sink.data), list(inode.pages)) == (CONTENT[:1], [0])
    assert rig.free_frames() == free - 1


def test_truncated_while_it_is_read() -> None:
    """What was read from the disk before a truncation does not come back with the next extension."""
    rig = Rig(2048)
    inode = rig.cache.new_inode("f", filesystem("ext4"), CONTENT)
    store, raced = rig.access.store, list[int]()

    def store_and_truncate(vaddr: int, data: bytes) -> None:
        store(vaddr, data)
        if not raced:
            raced.append(vaddr)
            rig.cache.truncate(inode, 5)

    rig.access.store = store_and_truncate  # type: ignore[method-assign]
    rig.cache.read_iter(inode, 0, UADDR, 3 * PAGE, Sink())
    assert raced
    rig.cache.truncate(inode, 3 * PAGE)
    assert rig.cache.content(inode) == CONTENT[:5] + bytes(3 * PAGE - 5)


def test_ephmap() -> None:
    """Sensitive pages of the configured kinds are reached through a slot, which is gone and flushed afterwards."""
    rig = Rig(2048, asi=True, ephmap_kinds=(PageKind.SHMEM,))
    assert rig.ephmap is not None
    window, root = rig.ephmap.address(0), rig.services.init_pgd
    for kind, through in (("tmpfs", True), ("ext4", False)):
        inode = rig.cache.new_inode("f", filesystem(kind))
        rig.cache.populate(inode, CONTENT)
        rig.access.recording = True
        rig.access.touched.clear()
        rig.cache.read_iter(inode, 7, UADDR, PAGE, Sink())
        rig.cache.write_iter(inode, 7, UADDR, 3, lambda _, __: b"abc")
        frames = set(inode.pages.values())
        direct = {touch for touch in rig.access.touched if rig.layout.direct_map.start <= touch[1] < window}
        pages = {(vaddr - rig.layout.direct_map.start) >> 12 for _, vaddr, _ in direct}
        mapped = [(what, vaddr) for what, vaddr, _ in rig.access.touched if vaddr >= window]
        assert bool(pages & frames) != through
        assert mapped == ([("read", window + 7), ("read", window), ("write", window + 7)] if through else [])
        assert rig.cache.content(inode)[7:10] == b"abc"
    assert not walk(rig.memory, root, window)
    assert not [page for space, page in rig.tlb.entries if space == 0 and page == window]
    assert rig.cpu.own_doings >= 2


def test_ephmap_nests() -> None:
    """An interrupt handler's mapping is in the next slot, another CPU's elsewhere; a read cannot write."""
    rig = Rig(2048, asi=True, ephmap_kinds=BOTH)
    inode = rig.cache.new_inode("f")
    rig.cache.populate(inode, CONTENT)
    ephmap = rig.ephmap
    assert ephmap is not None
    one, two = inode.pages[0], inode.pages[1]
    with ephmap.mapped(one) as first:
        with ephmap.mapped(two, writable=True) as second:
            assert second == first + PAGE
            assert rig.access.load(first, 4) + rig.access.load(second, 4) == CONTENT[:4] + CONTENT[PAGE : PAGE + 4]
            rig.access.store(second, b"new")
        rig.cpu.cpu_number = 1
        with ephmap.mapped(two) as other:
            assert other == first + SLOTS * PAGE
            assert rig.access.load(other, 3) == b"new"
        rig.cpu.cpu_number = 0
        assert not walk(rig.memory, rig.services.init_pgd, first) & 2
        assert rig.access.load(first, 4) == CONTENT[:4]
    with pytest.raises(EphmapError, match="cpu 0 has 16 ephemeral mappings already"):
        _nest(rig, one)
    with ephmap.mapped(one) as again:
        assert again == first


def _nest(rig: Rig, pfn: int) -> None:
    assert rig.ephmap is not None
    with rig.ephmap.mapped(pfn):
        _nest(rig, pfn)


def test_ephmap_with_asi_off() -> None:
    """Nothing is sensitive, so nothing needs it."""
    rig = Rig(2048, asi=False, ephmap_kinds=BOTH)
    inode = rig.cache.new_inode("f")
    rig.cache.populate(inode, CONTENT)
    assert rig.ephmap is not None
    assert not rig.ephmap.serves_read(inode.pages[0])
    assert not rig.ephmap.serves_write(inode.pages[0])


def test_truncate_unmaps() -> None:
    """Pages of a truncated file are unmapped before they are freed, wherever they are mapped; the rest stays."""
    rig = Rig(2048)
    inode = rig.cache.new_inode("f")
    rig.cache.populate(inode, CONTENT)
    free = rig.free_frames()
    mms = [rig.new_mm() for _ in range(2)]
    addresses = [
        mm.mmap(3 * PAGE, RW, flags, inode) for mm, flags in zip(mms, (MapFlags.SHARED, MapFlags.PRIVATE), strict=True)
    ]
    for mm, address in zip(mms, addresses, strict=True):
        rig.store(mm, address + 2 * PAGE, b"x")
        rig.load(mm, address, 1)
    rig.cache.truncate(inode, PAGE + 1)
    for mm, address in zip(mms, addresses, strict=True):
        assert mm.translate(address) is not None
        assert mm.translate(address + 2 * PAGE) is None
        assert rig.load(mm, address + PAGE, 2) == CONTENT[PAGE : PAGE + 1] + b"\0"
        mm.put()
    assert rig.free_frames() == free + 1
    rig.cache.truncate(inode, 2 * PAGE)
    assert rig.cache.content(inode) == CONTENT[: PAGE + 1] + bytes(PAGE - 1)
