"""A second statement of the paging rules, for whole arrays of cases at once.

Written from the Intel SDM volume 3A, sections 4.5 (what is reserved), 4.6.1 (what each kind of access needs), 4.7 (the
error code) and 4.8 (accessed and dirty flags), as one declarative formula for each sentence there; it shares nothing
with `asikit.machine.x86`, not even constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

READ, WRITE, FETCH = 0, 1, 2
NO_FAULT = -1


@dataclass(frozen=True)
class Machine:
    """The settings that a whole array of cases shares."""

    user: bool
    access: int
    nxe: bool
    wp: bool = False
    smep: bool = False
    smap: bool = False
    ac: bool = False
    maxphyaddr: int = 36
    gib_pages: bool = True


@dataclass(frozen=True)
class Verdict:
    """What is to come out: the error code or NO_FAULT, and the entries afterwards, from the top level down."""

    code: npt.NDArray[np.int64]
    after: Words


def bit(words: Words, number: int) -> Bits:
    """One bit of each word."""
    result: Bits = (words >> np.uint64(number)) & np.uint64(1) == 1
    return result


def any_bit(words: Words, low: int, high: int) -> Bits:
    """Whether any of the bits low..high is set."""
    result: Bits = (words >> np.uint64(low)) & np.uint64((1 << (high - low + 1)) - 1) != 0
    return result


def reserved(words: Words, level: int, machine: Machine) -> Bits:
    """Tables 4-14 to 4-20: the bits that must be 0 in a present entry."""
    ps = bit(words, 7)
    wrong = any_bit(words, machine.maxphyaddr, 51)
    if not machine.nxe:
        wrong = wrong | bit(words, 63)
    if level >= 4:
        wrong = wrong | ps
    if level == 3:
        wrong = wrong | (ps & any_bit(words, 13, 29) if machine.gib_pages else ps)
    if level == 2:
        wrong = wrong | (ps & any_bit(words, 13, 20))
    return wrong


def allowed(machine: Machine, rw: Bits, us: Bits, xd: Bits) -> Bits:
    """4.6.1, by kind of access: rw, us: of every entry; xd: of any."""
    user_address, supervisor_address = us, ~us
    executable = ~xd if machine.nxe else np.ones_like(xd)
    if machine.user:
        return user_address & {READ: np.ones_like(rw), WRITE: rw, FETCH: executable}[machine.access]
    if machine.access == FETCH:
        from_user = np.zeros_like(us) if machine.smep else executable
        return np.where(user_address, from_user, executable)
    reachable = supervisor_address | (not machine.smap) | machine.ac
    if machine.access == READ:
        return reachable
    return reachable & (rw | (not machine.wp))


def judge(entries: Words, machine: Machine) -> Verdict:
    """Say what each case comes to.

    :param entries: One row for each case, with the entries of its path from the top level (column 0) to the PTE. Those
        below an entry that maps a large page do not count.
    """
    levels = range(entries.shape[1], 0, -1)
    columns = {level: entries[:, entries.shape[1] - level] for level in levels}
    leaf = {level: bit(columns[level], 7) if level in (2, 3) else np.full(len(entries), level == 1) for level in levels}
    used = {}
    reached = np.ones(len(entries), dtype=np.bool_)
    for level in levels:
        used[level] = reached
        reached = reached & ~leaf[level]

    def over_path(pick: int) -> dict[int, Bits]:
        return {level: bit(columns[level], pick) for level in levels}

    rw = np.logical_and.reduce([flag | ~used[level] for level, flag in over_path(1).items()])
    us = np.logical_and.reduce([flag | ~used[level] for level, flag in over_path(2).items()])
    xd = np.logical_or.reduce([flag & used[level] for level, flag in over_path(63).items()])

    # 4.7: the walk ends at the first entry that is not present or has a reserved bit set; then come the rights.
    conditions, causes = [], []
    for level in levels:
        conditions += [used[level] & ~bit(columns[level], 0), used[level] & reserved(columns[level], level, machine)]
        causes += [0, 0b1001]
    conditions.append(~allowed(machine, rw, us, xd))
    causes.append(0b0001)
    cause = np.select(conditions, [np.int64(value) for value in causes], default=np.int64(NO_FAULT))
    fault = cause != NO_FAULT
    kind = (
        0b00010 * (machine.access == WRITE)
        | 0b00100 * machine.user
        | 0b10000 * (machine.access == FETCH and (machine.smep or machine.nxe))
    )
    code = np.where(fault, cause | kind, NO_FAULT)

    after = entries.copy()
    for level in levels:
        column = entries.shape[1] - level
        accessed = used[level] & ~fault
        dirty = accessed & leaf[level] & (machine.access == WRITE)
        after[:, column] |= accessed.astype(np.uint64) << np.uint64(5) | dirty.astype(np.uint64) << np.uint64(6)
    return Verdict(code.astype(np.int64), after)
