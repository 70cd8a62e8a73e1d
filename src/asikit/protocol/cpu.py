"""What the protocol asks of a CPU: its features and its vulnerabilities."""

from __future__ import annotations

from enum import StrEnum


class CpuFeature(StrEnum):
    """CPU and kernel features that the protocol asks about, `X86_FEATURE_*`."""

    IBPB = "ibpb"
    IBPB_ON_VMEXIT = "ibpb_on_vmexit"
    RETPOLINE = "retpoline"
    RSB_VMEXIT = "rsb_vmexit"


class CpuBug(StrEnum):
    """CPU vulnerabilities that decide what a flush consists of, `X86_BUG_*`."""

    L1TF = "l1tf"
    MDS = "mds"
    TAA = "taa"
    MMIO_STALE_DATA = "mmio_stale_data"
    RFDS = "rfds"
    TSA = "tsa"
    DIV0 = "div0"
    BHI = "bhi"
    VRS_L1DES = "vrs_l1des"
