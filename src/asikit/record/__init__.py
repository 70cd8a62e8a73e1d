"""Recording a real Linux kernel: QEMU with our TCG plugin, the guest's files, symbols, what each page is."""

from __future__ import annotations

from asikit.record._build import MARK_HEADER, mark_command, mark_header
from asikit.record._qemu import qemu_version
from asikit.record._streams import Output, Streams
from asikit.record.errors import RecordError, WorkloadError
from asikit.record.kernel import KernelImage, find_kernel, kernel_here, read_release
from asikit.record.recording import Recorded, Recording, RecordingStatus, record, run_unrecorded

__all__ = [
    "MARK_HEADER",
    "KernelImage",
    "Output",
    "RecordError",
    "Recorded",
    "Recording",
    "RecordingStatus",
    "Streams",
    "WorkloadError",
    "find_kernel",
    "kernel_here",
    "mark_command",
    "mark_header",
    "qemu_version",
    "read_release",
    "record",
    "run_unrecorded",
]
