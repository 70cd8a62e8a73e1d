"""Futexes (kernel/futex): sleeping until somebody says that a word in user memory has changed.

A waiter is found by what it waits at: a file and an offset if the memory is a shared mapping, an address space and an
address otherwise. The word is compared under the lock of the hash bucket that waiters queue in, so that no wakeup comes
unnoticed between looking and sleeping.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from asikit.machine.kernel.core.uaccess import UserAccessError
from asikit.machine.kernel.core.waiting import fatal_signal_pending
from asikit.machine.kernel.objects.kernel_object import KernelObject
from asikit.machine.kernel.objects.process import mm_of
from asikit.machine.mm import PAGE_SIZE, OutOfMemoryError, SegvError, kernel_function
from asikit.machine.uapi.errno import Errno, SyscallError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.core.task import Task

__all__ = ["FutexTable", "futex_wait", "futex_wake"]

_WORD: Final = 4
_BUCKETS: Final = 64
_BUCKET_BYTES: Final = 64

Key: TypeAlias = tuple[object, int]


class FutexHash(KernelObject):
    """`futex_queues`: each bucket's first word is how many wait in it, `hb->waiters`."""

    cache_name = "futex_hash"
    size = _BUCKETS * _BUCKET_BYTES


@dataclass(eq=False, slots=True)
class FutexWaiter:
    """`struct futex_q`: a task in a bucket; `woken` once it is none any more."""

    task: Task
    key: Key
    woken: bool = False


@dataclass(eq=False, slots=True)
class FutexBucket:
    """`struct futex_hash_bucket`.

    :ivar lock: A spin lock in Linux, where the comparison must not fault and is tried again if it would. A sleeping one
        here.
    """

    address: int
    lock: AbstractContextManager[None]
    waiters: list[FutexWaiter] = field(default_factory=list)


class FutexTable:
    """All futexes of a machine."""

    def __init__(self, kernel: Kernel) -> None:
        table = FutexHash(kernel)
        self._buckets = [
            FutexBucket(table.address + _BUCKET_BYTES * index, kernel.mutex("a futex hash bucket"))
            for index in range(_BUCKETS)
        ]

    def bucket(self, key: Key) -> FutexBucket:
        """Return the bucket of a key, `futex_hash()`."""
        owner, place = key
        return self._buckets[
            (place // _WORD + place // PAGE_SIZE + (owner if isinstance(owner, int) else 1)) % _BUCKETS
        ]


@kernel_function()
def get_futex_key(kernel: Kernel, task: Task, address: int, *, private: bool) -> Key:
    """Return what is waited at. Raises SyscallError EINVAL or EFAULT."""
    if address % _WORD:
        raise SyscallError(Errno.EINVAL)
    if not kernel.uaccess.access_ok(address, _WORD):
        raise SyscallError(Errno.EFAULT)
    mm = mm_of(task)
    if private:
        return mm.id, address
    try:
        mm.put_user_page(mm.get_user_page(address))
    except (SegvError, OutOfMemoryError) as error:
        raise SyscallError(Errno.EFAULT) from error
    area = mm.vmas.lookup(address)
    if area is None or area.file is None or not area.shared:
        return mm.id, address
    return area.file, area.linear_page_index(address) * PAGE_SIZE + address % PAGE_SIZE


@kernel_function()
def futex_wait(kernel: Kernel, task: Task, address: int, value: int, *, private: bool = False) -> None:
    """Sleep until woken, if the word at an address is `value`. Raises SyscallError EAGAIN if it is not, EINTR."""
    waiter = FutexWaiter(task, get_futex_key(kernel, task, address, private=private))
    bucket = kernel.userland.futexes.bucket(waiter.key)
    with bucket.lock:
        # Queued before the comparison: who has changed the word after it then does not find the bucket empty.
        _set_waiters(kernel, bucket, [*bucket.waiters, waiter])
        try:
            current = kernel.uaccess.get_u32(address)
        except UserAccessError:
            current = None
        if current != value:
            _set_waiters(kernel, bucket, [other for other in bucket.waiters if other is not waiter])
            raise SyscallError(Errno.EFAULT if current is None else Errno.EAGAIN)
    while not waiter.woken:
        if fatal_signal_pending(task):
            _unqueue(kernel, bucket, waiter)
            raise SyscallError(Errno.EINTR)
        kernel.sched.block(f"the futex at {address:#x}")


def _unqueue(kernel: Kernel, bucket: FutexBucket, waiter: FutexWaiter) -> None:
    with bucket.lock:
        _set_waiters(kernel, bucket, [other for other in bucket.waiters if other is not waiter])


def _set_waiters(kernel: Kernel, bucket: FutexBucket, waiters: list[FutexWaiter]) -> None:
    bucket.waiters = waiters
    kernel.access.store_u64(bucket.address, len(waiters))


@kernel_function()
def futex_wake(kernel: Kernel, task: Task, address: int, count: int, *, private: bool = False) -> int:
    """Wake those who wait at an address, up to `count` but at least one, as Linux has it; returns how many."""
    key = get_futex_key(kernel, task, address, private=private)
    bucket = kernel.userland.futexes.bucket(key)
    if not kernel.access.load_u64(bucket.address):
        return 0
    with bucket.lock:
        woken = [waiter for waiter in bucket.waiters if waiter.key == key][: max(count, 1)]
        _set_waiters(kernel, bucket, [waiter for waiter in bucket.waiters if waiter not in woken])
    for waiter in woken:
        waiter.woken = True
        kernel.sched.wake(waiter.task)
    return len(woken)
