"""The leak matrix: every vulnerability from every position against every mitigation, on several processes."""

from __future__ import annotations

import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from os import sched_getaffinity
from typing import TYPE_CHECKING, Final

from asikit.attacks.reading import load_vulnerability, vulnerability_names
from asikit.attacks.vectors import Vector, vector_named
from asikit.attacks.verdict import Cell, Finding, attack
from asikit.machine.x86 import cpu_names, load_cpu
from asikit.mitigations import mitigation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asikit.attacks.vulnerability import Vulnerability

__all__ = ["NO_VECTOR", "cells", "cpu_for", "matrix"]

NO_VECTOR = "-"
"""The vector of a vulnerability that cannot be expressed."""
_FEW = 4
"""Cells that are not worth another process."""
_PREFERRED: Final = (
    "skylake-6600u",
    "cascade-lake-4210r",
    "ice-lake-10351g1",
    "broadwell-e5-2640v4",
    "ice-lake-6354",
    "zen2-7452",
    "zen3-5600x",
    "zen-1200",
)
"""CPU models by preference: of a vendor's those first on which most of its vulnerabilities can be tried.

A list, and not a count of their bugs: one bug more in a model must not take the others' vulnerabilities away from where
they have been tried.
"""
_HYBRID: Final = ("alder-lake-12900k", "raptor-lake-13900k")
"""CPU models on which nothing is tried unasked: Linux takes the whole processor for vulnerable where its Atom cores are
(RFDS), and the model is of the performance cores, which have sibling threads as the others have not."""


def cpu_for(vulnerability: Vulnerability) -> str:
    """Return the shipped CPU model that a vulnerability is tried on unless one is named.

    Of those that have it the first in a fixed order; if none does, a file that it names, or `generic`, as if it had it.
    """
    having = (name for name in _order() if vulnerability.concerns(load_cpu(name)))
    return next(having, next(iter(vulnerability.own_cpus), "generic"))


@cache
def _order() -> tuple[str, ...]:
    """Return the shipped models, those without a preference last; no hybrid ones."""
    return (*_PREFERRED, *(name for name in cpu_names() if name not in {*_PREFERRED, *_HYBRID}))


def cells(
    mitigations: Sequence[str], *, cpu: str | None = None, vulnerability: str | None = None, vector: str | None = None
) -> list[Cell]:
    """Return the cells of a matrix, row by row: for each vulnerability the vectors from which there is an attack.

    A vector that is named is tried whether there is one or not. Raises LeakError, MitigationError and
    CpuModelError for wrong names.
    """
    for name in mitigations:
        mitigation(name)
    chosen = None if vector is None else vector_named(vector)
    model = None if cpu is None else load_cpu(cpu)
    rows: list[Cell] = []
    for name in vulnerability_names() if vulnerability is None else (vulnerability,):
        described = load_vulnerability(name)
        on = cpu or cpu_for(described)
        of = model or load_cpu(on)
        ways = described.on(of) or described.ways
        vectors = [str(each) for each in Vector if any(each.suits(way, of) for way in ways)]
        if chosen is not None:
            vectors = [str(chosen)] if str(chosen) in vectors or vulnerability is not None else []
        elif described.not_modelled:
            vectors = [NO_VECTOR]
        rows += [Cell(name, each, on, column) for each in vectors for column in mitigations]
    return rows


def matrix(wanted: Sequence[Cell]) -> Iterator[Finding]:
    """Attack each cell, in order; several at a time if there are several processors.

    Raises as `attack`.
    """
    workers = min(len(sched_getaffinity(0)), len(wanted) // _FEW)
    if workers < 2:  # noqa: PLR2004 - one is this process
        yield from map(_attack, wanted)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        with _without_interrupts():
            findings = pool.map(_attack, wanted, chunksize=_FEW)
        yield from findings
    finally:  # of what is interrupted the rest is not wanted any more
        pool.shutdown(cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: it is this process' to end them, and each would say so at length."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _attack(cell: Cell) -> Finding:
    return attack(cell)
