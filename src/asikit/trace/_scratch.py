"""Folders for the time of a block. Who is killed in it leaves one; the next to make one clears it away."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ScratchFolder"]

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ScratchFolder:
    """A folder under a name that no other has; a context manager that removes it at the end.

    While its maker lives the folder is locked (``flock(2)``), which ends with the process, whatever ends that. So a
    folder of such a name without a lock is a dead process's, and is removed before another one is made beside it. Those
    of other users are left alone, and all of them where the file system has no such locks.
    """

    def __init__(self, parent: Path, form: str, *, name: str = "", mode: int = 0o777) -> None:
        """Prepare; nothing is made before the block begins.

        :param form: The folder's name, with ``{token}`` for what makes it unlike others, and perhaps ``{name}``. All of
            this form are cleared away, whatever their ``name``.
        """
        self._parent = parent
        self._form = form
        self._name = name
        self._mode = mode
        self._lock: int | None = None
        self._at_exit: weakref.finalize[..., ScratchFolder] | None = None

    @classmethod
    def temporary(cls) -> Self:
        """Give one among the temporary files (in ``TMPDIR``), for this user's eyes only."""
        return cls(Path(tempfile.gettempdir()), "asi-{token}", mode=0o700)

    def __enter__(self) -> Path:
        """Clear away what dead processes have left, and make the folder.

        :raises OSError: It cannot be made.
        """
        self._clear()
        try:
            while True:
                path = self._parent / self._form.format(name=self._name, token=secrets.token_hex(8))
                # A signal's exception may come before the block has begun, or in the middle of its end.
                self._at_exit = weakref.finalize(self, _remove, path)
                path.mkdir(self._mode)
                if self._take(path):
                    return path
                self._at_exit.detach()
        except BaseException:
            self._remove()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the folder, if it still has its name."""
        self._remove()

    def _take(self, path: Path) -> bool:
        """Lock the folder; tell whether it is ours: before it is locked it looks like a dead process's."""
        try:
            self._lock = os.open(path, _OPEN)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):  # cleared away, or just about to be
            self._unlock()
            return False
        except OSError:  # no locks here, so that nobody clears anything away
            return True
        if path.exists():
            return True
        self._unlock()
        return False

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _remove(self) -> None:
        if self._at_exit is not None:
            self._at_exit()
        self._unlock()

    def _clear(self) -> None:
        words = {r"\{token\}": "[0-9a-f]{16}", r"\{name\}": ".+"}
        pattern = re.escape(self._form)
        for word, meaning in words.items():
            pattern = pattern.replace(word, meaning)
        with suppress(OSError):  # who may not list the folder cannot clear it
            for path in self._parent.iterdir():
                if re.fullmatch(pattern, path.name, re.DOTALL):
                    _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    with suppress(OSError):
        folder = os.open(path, _OPEN)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(folder).st_uid == os.geteuid():
                _remove(path)
        finally:
            os.close(folder)


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path, ignore_errors=True)
    except BaseException:  # Ctrl-C again
        shutil.rmtree(path, ignore_errors=True)
        raise
