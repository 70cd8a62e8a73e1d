"""The attacker of the proofs, on the machine: what the core speculates, and what untrusted code comes by (H1 to H4).

At every point of a run each hardware thread does transiently what it could: the kernel reads every secret that its page
tables, or stale entries of its TLB, still map; code whose predictors somebody trained who must not learn a secret in
its reach transmits it; untrusted code trains, reads past permissions, and samples what the core's structures hold.
Everything learnt so is written down, to be compared with what another run, with another secret, gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from asikit.machine.x86 import Datum
from asikit.protocol import HANDLER
from asikit.threat import DATA, KERNEL, PREDICTORS, Owner, left_behind, transient_address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.machine.kernel import Kernel
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.mm import MmStruct
    from asikit.machine.x86 import Recorder
    from asikit.proofs.model import World

LINE = 64
_BRANCH, _GADGET = 0x1000, 0x2000


class Learnt(NamedTuple):
    """Something that untrusted code came by: who, how, and the values."""

    who: Owner
    how: str
    values: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Secret:
    """Bytes that somebody must not learn.

    :ivar owner: Whose.
    :ivar paddr: Where they are in physical memory.
    :ivar addresses: Virtual addresses at which page tables may have them.
    """

    owner: Owner
    paddr: int
    addresses: tuple[int, ...]


@dataclass
class Eavesdropper:
    """Watches one machine.

    :ivar world: The model that the machine is of.
    :ivar kernel: The machine's.
    :ivar processes: Each process' mm.
    :ivar secrets: What is to stay hidden.
    :ivar learnt: What untrusted code came by.
    """

    world: World
    kernel: Kernel
    processes: dict[Owner, MmStruct]
    secrets: tuple[Secret, ...]
    learnt: list[Learnt] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Find out which structures the CPU leaks through: those that the protocol's flushes are for."""
        everybody = [KERNEL, *self.processes, *(process.guest for process in self.processes)]
        self._owners = {str(owner): owner for owner in everybody}  # as the processor records them
        config = self.kernel.protocol.config
        flushed = {*config.control_flush, *config.data_flush}
        self._data = {name: label for name, (kind, label) in DATA.items() if kind in flushed}
        self._predictors = {name: label for name, (kind, label) in PREDICTORS.items() if kind in flushed}

    def hidden_from(self, who: Owner, secret: Secret) -> bool:
        """Whether somebody must not learn a secret."""
        return self.world.must_not_learn(who, secret.owner)

    def look(self) -> None:
        """Let every hardware thread do what it could do here."""
        cpus = [cpu for cpu in self.kernel.cpus if cpu.hw.recorder is not None]
        for cpu in cpus:
            self._speculate(cpu)
        for cpu in cpus:
            self._observe(cpu)

    def _speculate(self, cpu: CpuContext) -> None:
        recorder, thread = _recorder(cpu), cpu.hw.thread
        who = self.who(cpu)
        runs_gadgets = who is not None or self.world.gadgets_anywhere or _in_ordinary_code(cpu)
        if cpu.in_guest:
            reach = [secret for secret in self.secrets if secret.owner == who]
        elif not runs_gadgets:
            reach = []
        else:
            reach = [secret for secret in self.secrets if self._mapped(cpu, secret)]
        if who is not None:
            self._train(recorder, thread, str(who))
            for secret in reach:
                if self.hidden_from(who, secret):
                    self._learn(
                        who,
                        f"its page tables on thread {thread} map it, whatever the permissions",
                        (self._bytes(secret),),
                    )
            reach = [secret for secret in reach if secret.owner == who]
        for secret in reach:
            recorder.load(thread, str(secret.owner), secret.paddr, self._bytes(secret))
        self._steer(cpu, reach)

    @staticmethod
    def _train(recorder: Recorder, thread: int, who: str) -> None:
        """Train every predictor, unless that is done."""
        if not any(entry.owner == who for entry in recorder.btb.visible(thread)):
            recorder.branch(thread, who, _BRANCH, _GADGET)
        if not any(entry.owner == who for entry in recorder.rsb.visible(thread)):
            recorder.call(thread, who, _BRANCH, _GADGET)

    def _steer(self, cpu: CpuContext, reach: Iterable[Secret]) -> None:
        """Let code with secrets in reach follow what was trained, and transmit them."""
        wanted = list(reach)
        if not wanted:
            return
        left = left_behind(_recorder(cpu), cpu.hw.thread, self._predictors)
        for name, label in self._predictors.items():
            trainers = {entry.owner for entry in left[name] if entry.owner}
            for trainer in (self._owners[each] for each in sorted(trainers)):
                for secret in wanted:
                    if self.hidden_from(trainer, secret):
                        how = f"code on thread {cpu.hw.thread} followed the {label} that it had trained"
                        self._learn(trainer, how, (self._bytes(secret),))

    def _observe(self, cpu: CpuContext) -> None:
        """Let untrusted code sample the data structures."""
        who = self.who(cpu)
        if who is None:
            return
        left = left_behind(_recorder(cpu), cpu.hw.thread, self._data)
        for name, label in self._data.items():
            values = tuple(entry.value for entry in left[name] if isinstance(entry, Datum))
            self._learn(who, f"on thread {cpu.hw.thread} it sampled the {label}", values)

    def who(self, cpu: CpuContext) -> Owner | None:
        """Return whose untrusted code a CPU runs, None for the kernel's own."""
        if not cpu.in_guest and not cpu.hw.cpl:
            return None
        process = next((one for one, mm in self.processes.items() if mm.pgd == cpu.loaded_mm.pgd), None)
        return process.guest if process is not None and cpu.in_guest else process

    def _learn(self, who: Owner, how: str, values: tuple[bytes, ...]) -> None:
        new = Learnt(who, how, values)
        if new not in self.learnt[-16:]:
            self.learnt.append(new)

    def _mapped(self, cpu: CpuContext, secret: Secret) -> bool:
        """Whether an access to a secret would find it: by the TLB, or by the page tables, permissions aside.

        What reaches it comes into more than the L1D, by H1; so this is not `transient_load`.
        """
        return any(
            transient_address(cpu.hw, vaddr, defer_permission=True) == secret.paddr for vaddr in secret.addresses
        )

    def _bytes(self, secret: Secret) -> bytes:
        return self.kernel.physical.read(secret.paddr, LINE)


def _in_ordinary_code(cpu: CpuContext) -> bool:
    """Whether a CPU runs ordinary kernel code or a handler's own, not entry or exit code."""
    frames = cpu.thread.frames
    return not cpu.core.state[cpu.who].untrusted and (not frames or frames[-1].program == HANDLER)


def _recorder(cpu: CpuContext) -> Recorder:
    recorder = cpu.hw.recorder
    assert recorder is not None  # only CPUs that are recorded are looked at
    return recorder
