"""Whose bytes lie where on the machine: the secrets, of which one is another one in the second run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.mm import PAGE_SIZE, MapFlags, Prot
from asikit.proofs.stage.eavesdropper import LINE, Secret
from asikit.protocol import AsiClass
from asikit.threat import KERNEL, Code, Owner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from asikit.machine.kernel import Kernel
    from asikit.machine.mm import MmStruct
    from asikit.proofs.model import World

__all__ = ["ATTACKER", "VICTIM", "content_of", "owners", "process_secrets"]

ATTACKER, VICTIM = Owner(Code.USER, "the process"), Owner(Code.USER, "another process")
_CONTENT = {KERNEL: b"K", ATTACKER: b"P", VICTIM: b"V", ATTACKER.guest: b"p", VICTIM.guest: b"v"}
_CHANGED = b"!"


def owners(world: World) -> tuple[Owner, ...]:
    """Return who has secrets on a world's machine."""
    guests = AsiClass.KVM in world.config.classes
    return tuple(owner for owner in _CONTENT if guests or owner.code is not Code.GUEST)


def content_of(owner: Owner, changed: Owner | None) -> bytes:
    """Return somebody's secret, a cache line.

    :param changed: Whose secret is another one, if anybody's is.
    """
    return (_CHANGED if owner == changed else _CONTENT[owner]) * LINE


def process_secrets(kernel: Kernel, mms: Mapping[Owner, MmStruct], changed: Owner | None) -> Iterator[Secret]:
    """Put each process' secret into its memory, and its guest's where there are guests; yields what they are."""
    for process, mm in mms.items():
        having = [process]
        if AsiClass.KVM in kernel.protocol.config.classes:
            kernel.domains.init(kernel.contexts.of(mm), AsiClass.KVM)
            having.append(process.guest)  # a guest's memory is its process'
        for owner in having:
            vaddr = mm.mmap(PAGE_SIZE, Prot.READ | Prot.WRITE, MapFlags.PRIVATE | MapFlags.ANONYMOUS)
            mm.handle_mm_fault(vaddr, write=True)
            found = mm.translate(vaddr)
            assert found is not None  # it was just mapped
            paddr = found[0] * PAGE_SIZE
            kernel.physical.write(paddr, content_of(owner, changed))
            yield Secret(owner, paddr, (vaddr, kernel.layout.virt(paddr)))
