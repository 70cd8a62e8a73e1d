"""Unicorn (QEMU's x86-64 emulation as a library) as a second opinion on translation.

It runs real instructions with paging on (`UC_TLB_CPU`): MOV from memory, MOV to memory, JMP. Every word of its memory
that is not part of a page table is an instruction that loads the word's own physical address, so that both a read and
a fetch say which physical address they reached.

What Unicorn 2.1 lacks, or does its own way, and how the comparison goes round it:

* Error codes: CR2 can be read, the error code cannot. Not compared; `test_access.py` has them.
* A fault sets the accessed flags of the present entries above the one at fault (SDM 3A 4.8 leaves that open; ours sets
  none). Pinned by `test_accessed_flags_of_a_fault`, compared but for that flag on faults.
* Which exception it was cannot be read either: a #GP is one that leaves CR2 alone (`test_non_canonical_addresses`).
* MAXPHYADDR is 40 for every CPU model that has SMAP, and no interface sets it. Ours is set to 40 here.
* A physical address without memory stops the emulation (ours is BusError). Never used as a target.
* It translates instructions ahead of those that it runs, and a page fault of one ahead is as good as one of the first.
  So what it fetches here ends with a jump.
* TLB entries live until the next flush, but without PCIDs and at no fixed size. It is flushed for each case; staleness
  is `test_tlb_model.py`'s.
* Control registers are written by its interface, which checks nothing (no #GP); the default CPU model has no SMAP.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, cast

import numpy as np
from unicorn import UC_ARCH_X86, UC_ERR_EXCEPTION, UC_MODE_64, UC_PROT_ALL, UC_TLB_CPU
from unicorn.unicorn_py3.unicorn import Uc, UcError
from unicorn.x86_const import (
    UC_CPU_X86_ICELAKE_SERVER,
    UC_X86_REG_CR0,
    UC_X86_REG_CR2,
    UC_X86_REG_CR3,
    UC_X86_REG_CR4,
    UC_X86_REG_EFLAGS,
    UC_X86_REG_GDTR,
    UC_X86_REG_RAX,
    UC_X86_REG_RBX,
    UC_X86_REG_RIP,
    UC_X86_REG_RSP,
)

from asikit.machine.x86 import Access, PagingMode

MEMORY_BYTES = 16 << 20
MAXPHYADDR = 40
FIRST_FREE = 0x20000
"""Physical memory below holds Unicorn's own tables, code, stack and GDT; a test's tables and pages are above."""

_WORD: Final = Struct("<Q")
_U32 = Struct("<I")
_PML4, _KERNEL_CODE, _USER_CODE, _STACK, _GDT = 0x1000, 0x10000, 0x11000, 0x12000, 0x13000
_TOP5 = 0x7000
_IRETQ = 0x100
_EFER = 0xC000_0080
_INSTRUCTION_BYTES = 5
# mov rax, [rbx]; mov [rbx], rax; jmp rbx
_CODE = bytes.fromhex("488b03 488903 ffe3")
_OFFSETS = {Access.READ: (0, 3), Access.WRITE: (3, 6), Access.FETCH: (6, 8)}
_STORED = 0x5A5A_5A5A_5A5A_5A5A


def instruction_at(paddr: int) -> bytes:
    """What every word of memory holds: `mov eax, PADDR; jmp .`, whose jump ends what Unicorn translates."""
    return b"\xb8" + _U32.pack(paddr) + b"\xeb\xfe\x90"


@dataclass(frozen=True)
class Seen:
    """What an access did: the physical address it reached, or None and the faulting address."""

    paddr: int | None
    cr2: int = 0


class UnicornMmu:
    """A Unicorn instance, and its memory (`words`, shared with it)."""

    def __init__(self, *, la57: bool = False) -> None:
        self._la57 = la57
        self._buffer = ctypes.create_string_buffer(MEMORY_BYTES + 4096)
        base = (ctypes.addressof(self._buffer) + 4095) & ~4095
        self.bytes = memoryview((ctypes.c_char * MEMORY_BYTES).from_address(base)).cast("B")
        words = np.frombuffer(self.bytes, dtype=np.dtype("<u8"))
        first = int.from_bytes(instruction_at(0), "little")
        words[FIRST_FREE // 8 :] = first | np.arange(FIRST_FREE, MEMORY_BYTES, 8, dtype=np.uint64) << np.uint64(8)
        # The binding has no types.
        self._uc = cast("Any", Uc)(UC_ARCH_X86, UC_MODE_64)
        # The default model (Haswell) has no SMAP.
        self._uc.ctl_set_cpu_model(UC_CPU_X86_ICELAKE_SERVER)
        self._uc.mem_map_ptr(0, MEMORY_BYTES, UC_PROT_ALL, base)
        self._boot()

    def write(self, paddr: int, value: int) -> None:
        """Write a word of physical memory."""
        self.bytes[paddr : paddr + 8] = _WORD.pack(value)

    def read(self, paddr: int) -> int:
        """Read a word of physical memory."""
        value: int = _WORD.unpack_from(self.bytes, paddr)[0]
        return value

    def restore(self, paddr: int) -> None:
        """Put the instruction back that a word began with."""
        self.bytes[paddr : paddr + 8] = instruction_at(paddr)

    def top(self) -> int:
        """The physical address of the topmost table; its first slot is Unicorn's own."""
        return _TOP5 if self._la57 else _PML4

    def access(self, vaddr: int, access: Access, mode: PagingMode, *, hint: int = 0) -> Seen:
        """Let an instruction access an address that is a multiple of 8.

        :param hint: Where to look first for what a write wrote.
        """
        uc = self._uc
        uc.context_restore(self._user if mode.user else self._kernel)
        uc.msr_write(_EFER, 0x500 | mode.nxe << 11)
        uc.reg_write(UC_X86_REG_CR0, 0x8001_0011 if mode.wp else 0x8000_0011)
        uc.reg_write(UC_X86_REG_CR4, 0x20 | mode.la57 << 12 | mode.smep << 20 | mode.smap << 21)
        uc.reg_write(UC_X86_REG_EFLAGS, 2 | mode.ac << 18)
        uc.reg_write(UC_X86_REG_CR3, self.top())
        uc.reg_write(UC_X86_REG_RBX, vaddr)
        uc.reg_write(UC_X86_REG_RAX, _STORED)
        code = _USER_CODE if mode.user else _KERNEL_CODE
        start, end = _OFFSETS[access]
        end = vaddr + _INSTRUCTION_BYTES if access == Access.FETCH else code + end
        try:
            uc.emu_start(code + start, 0, count=2 if access == Access.FETCH else 1)
        except UcError as error:
            if error.errno != UC_ERR_EXCEPTION or uc.reg_read(UC_X86_REG_RIP) == end:
                raise
            return Seen(None, uc.reg_read(UC_X86_REG_CR2))
        assert uc.reg_read(UC_X86_REG_RIP) == end, "neither an exception nor the access"
        if access == Access.WRITE:
            return Seen(hint if self.read(hint) == _STORED else self._find_stored(vaddr))
        rax = uc.reg_read(UC_X86_REG_RAX)
        return Seen((rax >> 8) & 0xFFFF_FFFF if access == Access.READ else rax)

    def _find_stored(self, vaddr: int) -> int:
        """Where a store went: the one word at the page offset of `vaddr` that holds what was stored."""
        for paddr in range(vaddr & 0xFFF, MEMORY_BYTES, 4096):
            if self.read(paddr) == _STORED:
                return paddr
        raise AssertionError(f"what was stored at {vaddr:#x} is nowhere")

    def _boot(self) -> None:
        """Identity-map the first 128 KiB, user code for user mode; go to CPL 3 and remember both privilege levels."""
        for table, entry in ((_TOP5, _PML4), (_PML4, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)):
            self.write(table, entry | 0x67)
        for page in range(0x10000, FIRST_FREE, 0x1000):
            self.write(0x4000 + (page >> 12) * 8, page | (0x67 if page == _USER_CODE else 0x63))
        descriptors = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00AFFB000000FFFF, 0x00CFF3000000FFFF)
        for number, descriptor in enumerate(descriptors):
            self.write(_GDT + number * 8, descriptor)
        for code in (_KERNEL_CODE, _USER_CODE):
            self.bytes[code : code + len(_CODE)] = _CODE
        self.bytes[_KERNEL_CODE + _IRETQ : _KERNEL_CODE + _IRETQ + 2] = b"\x48\xcf"
        uc = self._uc
        uc.ctl_set_tlb_mode(UC_TLB_CPU)
        uc.reg_write(UC_X86_REG_CR3, self.top())
        uc.reg_write(UC_X86_REG_CR4, 0x20 | self._la57 << 12)
        uc.msr_write(_EFER, 0xD00)
        uc.reg_write(UC_X86_REG_CR0, 0x8001_0011)
        uc.reg_write(UC_X86_REG_GDTR, (0, _GDT, 0x3F, 0))
        self._kernel = uc.context_save()
        frame = (_USER_CODE, 0x1B, 0x2, _STACK + 0xF00, 0x23)
        for number, value in enumerate(frame):
            self.write(_STACK + 0x800 + number * 8, value)
        uc.reg_write(UC_X86_REG_RSP, _STACK + 0x800)
        uc.emu_start(_KERNEL_CODE + _IRETQ, 0, count=1)
        assert uc.reg_read(UC_X86_REG_RIP) == _USER_CODE
        self._user = uc.context_save()
