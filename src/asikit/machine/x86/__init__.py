"""A processor: physical memory, paging, TLB, control registers, cores with two hardware threads, and what they share.

The manual is the Intel SDM; volume and section are cited where a rule stands. `paging` translates, `tlb` caches, `mmu`
puts both behind loads, stores and fetches, `cpu` adds control registers and privileged instructions, `core` puts CPUs
together. `structures` are what code leaves behind in a core, recorded only if asked for; `model` reads what a CPU has
of them from `data/cpus`. Nothing here knows of a kernel.
"""

from __future__ import annotations

from asikit.machine.x86.apic import ApicBus, LocalApic
from asikit.machine.x86.core import Core, Processor, Uncore
from asikit.machine.x86.cpu import Cpu, Invpcid
from asikit.machine.x86.errors import BusError, CpuModelError, UnsupportedError
from asikit.machine.x86.memory import FRAME_BYTES, PhysicalMemory
from asikit.machine.x86.model import (
    Bug,
    CpuModel,
    Feature,
    Paging,
    Sharing,
    StructureModel,
    StructureName,
    cpu_names,
    load_cpu,
)
from asikit.machine.x86.paging import (
    Access,
    Entry,
    GeneralProtection,
    InvalidOpcode,
    PageFault,
    PfError,
    Pte,
    Translation,
    is_canonical,
    lookup,
    walk,
)
from asikit.machine.x86.recorder import Recorder
from asikit.machine.x86.registers import CR3_NOFLUSH, PCID_MASK, Cr0, Cr4, Efer, PagingMode
from asikit.machine.x86.structures import (
    Bhb,
    Btb,
    Datum,
    Divider,
    FillBuffer,
    L1d,
    LoadPort,
    Pht,
    Rsb,
    StagingBuffer,
    StoreBuffer,
    Structure,
    Training,
    VectorRegisters,
)
from asikit.machine.x86.tlb import Tlb, TlbEntry

__all__ = [
    "CR3_NOFLUSH",
    "FRAME_BYTES",
    "PCID_MASK",
    "Access",
    "ApicBus",
    "Bhb",
    "Btb",
    "Bug",
    "BusError",
    "Core",
    "Cpu",
    "CpuModel",
    "CpuModelError",
    "Cr0",
    "Cr4",
    "Datum",
    "Divider",
    "Efer",
    "Entry",
    "Feature",
    "FillBuffer",
    "GeneralProtection",
    "InvalidOpcode",
    "Invpcid",
    "L1d",
    "LoadPort",
    "LocalApic",
    "PageFault",
    "Paging",
    "PagingMode",
    "PfError",
    "Pht",
    "PhysicalMemory",
    "Processor",
    "Pte",
    "Recorder",
    "Rsb",
    "Sharing",
    "StagingBuffer",
    "StoreBuffer",
    "Structure",
    "StructureModel",
    "StructureName",
    "Tlb",
    "TlbEntry",
    "Training",
    "Translation",
    "Uncore",
    "UnsupportedError",
    "VectorRegisters",
    "cpu_names",
    "is_canonical",
    "load_cpu",
    "lookup",
    "walk",
]
