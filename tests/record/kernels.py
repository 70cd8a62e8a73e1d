"""Debian's kernels, and made-up ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_TOOL = Path(__file__).parents[2] / "tools/debian-kernel"


def debian_kernel(name: str) -> Path:
    """Give the image of a kernel of Debian's: ``6.12``, ``7.2-rt``; downloaded if it is not in the cache.

    A test that uses it is marked ``needs_apt``.
    """
    done = subprocess.run([_TOOL, name], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"tools/debian-kernel {name}: {done.stderr.splitlines()[-1]}", pytrace=False)
    return Path(done.stdout.strip())


def bzimage(path: Path, release: str, *, wide: bool = True) -> Path:
    """Write what looks like a bzImage from outside."""
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x400).to_bytes(2, "little")
    head[0x236] = wide
    text = f"{release} (somebody@somewhere) #1 SMP".encode() if release else b""
    head[0x600 : 0x600 + len(text)] = text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head)
    return path


def module(folder: Path, name: str, more: bytes = b"", *, depends: str = "") -> bytes:
    """Write a module that has nothing but a ``.modinfo``."""
    content = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0" + more + b"name=" + name.encode() + b"\0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ko").write_bytes(content)
    return content
