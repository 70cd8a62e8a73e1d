"""What an ELF file asks the dynamic loader for, read from the file itself: nothing of it is run."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

__all__ = ["HEAD_BYTES", "Linked", "machine_of", "read_linked"]

HEAD_BYTES: Final = 20
"""Of a file's beginning, enough for :func:`machine_of`."""

_X86: Final = {3, 62}
"""``EM_386`` and ``EM_X86_64``: what the guest can run."""

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29


@dataclass(frozen=True, slots=True)
class _Form:
    """The layouts of one ELF class: its header's rest, a program header, an entry of the dynamic section.

    :ivar places: Where a program header has its type, offset, address and size in the file.
    """

    header: str
    segment: str
    places: tuple[int, int, int, int]
    entry: str


_FORMS: Final = {
    1: _Form("<HHIIIIIHHHHHH", "<IIIIIIII", (0, 1, 2, 4), "<iI"),
    2: _Form("<HHIQQQIHHHHHH", "<IIQQQQQQ", (0, 2, 3, 5), "<qQ"),
}


@dataclass(frozen=True, slots=True)
class Linked:
    """An x86 program or library that the dynamic loader has work with.

    :ivar machine: What :func:`machine_of` says of it, and of each library that fits.
    :ivar interpreter: The loader's path, empty for a library.
    :ivar needed: The libraries' names.
    :ivar rpath: ``DT_RPATH`` as it stands: folders for this file's libraries and for theirs.
    :ivar runpath: ``DT_RUNPATH`` as it stands: folders for this file's libraries. With it ``rpath`` does not count.
    """

    machine: tuple[int, int]
    interpreter: str
    needed: tuple[str, ...]
    rpath: str
    runpath: str


def machine_of(head: bytes) -> tuple[int, int] | None:
    """Give the ELF class and machine of a file from its beginning; None if it is no little-endian x86 ELF file."""
    if len(head) < HEAD_BYTES or not head.startswith(b"\x7fELF") or head[4] not in _FORMS or head[5] != 1:
        return None
    machine = int.from_bytes(head[18:20], "little")
    return (head[4], machine) if machine in _X86 else None


def read_linked(content: bytes) -> Linked | None:
    """Read an ELF file; None if it is none, is not dynamically linked, or is damaged."""
    machine = machine_of(content)
    if machine is None:
        return None
    try:
        return _read(content, machine, _FORMS[machine[0]])
    except (struct.error, IndexError, OverflowError, StopIteration):
        return None


def _read(content: bytes, machine: tuple[int, int], form: _Form) -> Linked | None:
    _, _, _, _, first, _, _, _, step, count, _, _, _ = struct.unpack_from(form.header, content, 16)
    segments = [_segment(content, form, first + step * number) for number in range(count)]
    dynamic = next((segment for segment in segments if segment[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return None
    _, at, _, length = dynamic
    step = struct.calcsize(form.entry)
    entries = [struct.unpack_from(form.entry, content, place) for place in range(at, at + length - step + 1, step)]
    tags = [tag for tag, _ in entries]
    entries = entries[: tags.index(0)] if 0 in tags else entries
    table = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if table is None:
        return None
    loaded = [segment[1:] for segment in segments if segment[0] == _PT_LOAD]
    strings = next(offset + table - address for offset, address, size in loaded if address <= table < address + size)

    def texts(wanted: int) -> list[str]:
        return [_text(content, strings + value) for tag, value in entries if tag == wanted]

    interpreter = next((_text(content, offset) for kind, offset, _, _ in segments if kind == _PT_INTERP), "")
    return Linked(
        machine,
        interpreter,
        tuple(texts(_DT_NEEDED)),
        ":".join(texts(_DT_RPATH)),
        ":".join(texts(_DT_RUNPATH)),
    )


def _segment(content: bytes, form: _Form, at: int) -> tuple[int, int, int, int]:
    """Give a program header's type, offset in the file, address, and size in the file."""
    fields = struct.unpack_from(form.segment, content, at)
    # type, offset, vaddr, paddr, filesz, memsz, flags, align; the 64-bit class has flags in second place.
    kind, offset, address, size = (fields[place] for place in form.places)
    return kind, offset, address, size


def _text(content: bytes, at: int) -> str:
    end = content.find(b"\0", at)
    if at >= len(content) or end < 0:
        raise IndexError(at)
    return os.fsdecode(content[at:end])
