"""Domains and their life: one for each class in an mm, made on first use, gone with the last user.

A value; the kernel that keeps it holds `mm->asi_init_lock` while it replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from asikit.protocol.errors import DomainError, DomainInUseError, DomainOutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Collection

    from asikit.protocol.taints import ClassRegistry
    from asikit.protocol.tlb import DomainId


@dataclass(frozen=True, slots=True)
class Domain:
    """`struct asi`: whose it is, its page tables' root (a frame or an address, as the kernel likes), and its users."""

    id: DomainId
    pgd: int
    ref_count: int = 1


@dataclass(frozen=True, slots=True)
class Domains:
    """All domains of all mm's."""

    registry: ClassRegistry
    asi: bool = True
    table: tuple[Domain, ...] = ()

    def find(self, domain_id: DomainId) -> Domain | None:
        """Return a domain, None if it was not made."""
        return next((domain for domain in self.table if domain.id == domain_id), None)

    def init(self, domain_id: DomainId, pgd: int | None) -> Domains:
        """Make a domain, or count one more user of it: `asi_init()`. With ASI off nothing is made.

        An error changes nothing: the prototype goes on after a failed allocation, and copies the kernel's entries
        through a NULL pgd.

        :param pgd: The root of new page tables, None if the allocation failed; not used when the domain exists.
        :raises ClassNotRegisteredError: There is no such class (-EINVAL).
        :raises DomainOutOfMemoryError: The allocation failed (-ENOMEM).
        """
        if not self.asi:
            return self
        self.registry.policy(domain_id.asi_class)
        domain = self.find(domain_id)
        if domain is not None:
            return self._with(replace(domain, ref_count=domain.ref_count + 1))
        if pgd is None:
            raise DomainOutOfMemoryError(f"no memory for page tables of {_name(domain_id)}")
        return self._with(Domain(domain_id, pgd))

    def destroy(self, domain_id: DomainId, entered: Collection[DomainId]) -> Domains:
        """Count one user less, and remove the domain with the last one: `asi_destroy()`, once for each `init`.

        :param entered: The domains that some CPU's `curr_asi` names.
        :raises DomainInUseError: The last user goes while a CPU is still in the domain.
        :raises DomainError: There is no such domain.
        """
        if not self.asi:
            return self
        domain = self.find(domain_id)
        if domain is None:
            raise DomainError(f"{_name(domain_id)} was never made, or is destroyed already")
        if domain.ref_count > 1:
            return self._with(replace(domain, ref_count=domain.ref_count - 1))
        if domain_id in entered:
            raise DomainInUseError(f"{_name(domain_id)} is still some CPU's curr_asi; exit it there first")
        return replace(self, table=tuple(other for other in self.table if other.id != domain_id))

    def _with(self, domain: Domain) -> Domains:
        rest = tuple(other for other in self.table if other.id != domain.id)
        return replace(self, table=tuple(sorted((*rest, domain), key=lambda entry: entry.id)))


def _name(domain_id: DomainId) -> str:
    return f"domain {domain_id.asi_class.name.lower()} of mm {domain_id.mm}"
