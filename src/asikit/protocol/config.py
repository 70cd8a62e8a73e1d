"""What decides the protocol: the CPU, the kernel's configuration and the policies of the classes."""

from __future__ import annotations

from dataclasses import dataclass, field

from asikit.protocol.classes import AsiClass
from asikit.protocol.cpu import CpuBug, CpuFeature
from asikit.protocol.effects import PRIMITIVES, EffectKind, FlushSide
from asikit.protocol.errors import ConfigError
from asikit.protocol.happenings import TLB_FLUSHES, Happening
from asikit.protocol.taints import DATA_MASK, ClassRegistry, Taint, TaintPolicy

VULNERABLE = frozenset({CpuBug.L1TF, CpuBug.MDS})


@dataclass(frozen=True, slots=True)
class ProtocolConfig:
    """Everything that the transitions depend on; every field has the published behaviour as default, or says not.

    :ivar asi: ASI on. Off, a transition asks for nothing (`asi=off`), but for what `blanket` or `pti` ask.
    :ivar blanket: The blanket mitigation instead of ASI: predictors flushed at each entry from untrusted code, data at
        each return; needs `smt=False`, and is complete only with `pti=True`.
    :ivar classes: The classes of untrusted domains that ASI handles.
    :ivar policies: Taint policies by class; a class without one here gets `default_policy()`.
    :ivar features: CPU features.
    :ivar bugs: CPU vulnerabilities. The default is a generic vulnerable CPU, so that data flushes exist to be counted.
    :ivar rsb_fill: A control flush also fills the return stack buffer.
    :ivar smt: Two hyperthreads run on the core, so the sibling is stunned while this one is unrestricted.
    :ivar pti: User mode runs on page tables of its own. With ASI this is not published (the RFCs turn PTI off).
    :ivar noflush: TLB entries survive transitions, kept right by generation counters (RFC of 2022); the RFCs since
        discard them at each CR3 write.
    :ivar exit_on_context_switch: Every context switch exits (RFC v2); else only one that changes the mm.
    :ivar exit_on_tlb_flush: The TLB flushes that exit first. The published code exits in `native_flush_tlb_local()`, in
        a full flush of user addresses. Not asked with `noflush`.
    :ivar kvm_protects_user_data: The guest may not sample its own VMM process (`USER_DATA` in KVM's policy).
    :ivar kvm_exit_on_user_return: The prototype's `asi_exit` at the end of the KVM_RUN ioctl.
    :ivar flush_data_on_exit: Experiment, one more data flush on the way to unrestricted, against injection of values.
    :ivar max_nest_depth: Nested entries beyond this raise; real stacks end long before.
    """

    asi: bool = True
    blanket: bool = False
    classes: frozenset[AsiClass] = frozenset({AsiClass.USERSPACE, AsiClass.KVM})
    policies: tuple[tuple[AsiClass, TaintPolicy], ...] = ()
    features: frozenset[CpuFeature] = frozenset({CpuFeature.IBPB})
    bugs: frozenset[CpuBug] = VULNERABLE
    rsb_fill: bool = True
    smt: bool = False
    pti: bool = False
    noflush: bool = False
    exit_on_context_switch: bool = True
    exit_on_tlb_flush: frozenset[Happening] = frozenset({Happening.TLB_FLUSH_USER})
    kvm_protects_user_data: bool = True
    kvm_exit_on_user_return: bool = False
    flush_data_on_exit: bool = False
    max_nest_depth: int = 15
    registry: ClassRegistry = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse contradictions.

        :raises ConfigError: Two settings contradict each other.
        :raises InvalidPolicyError: A policy never acts.
        """
        if self.blanket and self.asi:
            raise ConfigError("asi and blanket are alternatives; set one of them to False")
        if self.blanket and self.smt:
            raise ConfigError("the blanket mitigation disables SMT; set smt=False")
        if self.max_nest_depth < 1:
            raise ConfigError(f"max_nest_depth is {self.max_nest_depth}; an interrupt needs at least 1")
        strange = sorted(self.exit_on_tlb_flush - {*TLB_FLUSHES})
        if strange:
            raise ConfigError(f"exit_on_tlb_flush has {', '.join(strange)}; it takes only {', '.join(TLB_FLUSHES)}")
        registry = ClassRegistry()
        for asi_class in sorted(self.classes):
            registry = registry.register(
                asi_class, dict(self.policies).get(asi_class) or self.default_policy(asi_class)
            )
        unused = sorted(asi_class.name for asi_class, _ in self.policies if asi_class not in self.classes)
        if unused:
            raise ConfigError(f"policies given for classes that are not in classes: {', '.join(unused)}")
        object.__setattr__(self, "registry", registry)

    def default_policy(self, asi_class: AsiClass) -> TaintPolicy:
        """Return the published policy of a class, with what the prototype got wrong put right."""
        if asi_class is AsiClass.USERSPACE:
            return TaintPolicy(
                prevent_control=Taint.GUEST_CONTROL | Taint.OTHER_MM_CONTROL,
                # Not GUEST_DATA: the guest trusts its VMM.
                protect_data=Taint.KERNEL_DATA | Taint.OTHER_MM_DATA,
                set=Taint.USER_CONTROL | Taint.USER_DATA,
            )
        if asi_class is AsiClass.KVM:
            return self._kvm_policy()
        return TaintPolicy(
            prevent_control=Taint.OTHER_MM_CONTROL,
            # Idle itself samples nothing; the sibling, released while this CPU idles, does.
            protect_data=DATA_MASK,
            # For the same reason: only the sibling can train the predictors meanwhile.
            set=Taint.USER_CONTROL | Taint.GUEST_CONTROL,
        )

    def _kvm_policy(self) -> TaintPolicy:
        cleared_on_vmexit = {CpuFeature.IBPB_ON_VMEXIT, CpuFeature.RETPOLINE, CpuFeature.RSB_VMEXIT} <= self.features
        leaves = Taint.GUEST_DATA
        # The prototype has `=` here, which loses GUEST_DATA; `|=` is meant. And with SMT a clean predictor at the VM
        # exit says nothing about later: the sibling's guest goes on training it.
        if self.smt or not cleared_on_vmexit:
            leaves |= Taint.GUEST_CONTROL
        own = Taint.USER_DATA if self.kvm_protects_user_data else Taint(0)
        return TaintPolicy(
            prevent_control=Taint.OTHER_MM_CONTROL,
            protect_data=Taint.KERNEL_DATA | Taint.OTHER_MM_DATA | own,
            set=leaves,
        )

    @property
    def control_flush(self) -> tuple[EffectKind, ...]:
        """What a flush of the branch predictors consists of, in order."""
        return self._flush(FlushSide.CONTROL)

    @property
    def data_flush(self) -> tuple[EffectKind, ...]:
        """What a flush of the data side channels consists of, in order."""
        return self._flush(FlushSide.DATA)

    def _flush(self, side: FlushSide) -> tuple[EffectKind, ...]:
        return tuple(
            primitive.kind
            for primitive in PRIMITIVES
            if primitive.side is side
            and (primitive.feature is None or primitive.feature in self.features)
            and (not primitive.option or getattr(self, primitive.option))
            and (not primitive.bugs or primitive.bugs & self.bugs)
        )


def blanket_config(*, pti: bool = True) -> ProtocolConfig:
    """Return the blanket mitigation, the yardstick that ASI is compared with."""
    return ProtocolConfig(asi=False, blanket=True, pti=pti)
