"""What several tests look at and takes long to make: made once in a run, though several processes run the tests."""

from __future__ import annotations

import fcntl
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Once:
    """Makes what is not there yet: the first that asks makes it, and whoever asks meanwhile waits.

    :ivar folder: A folder that all processes of a run share.
    """

    folder: Path

    def __call__(self, name: str, make: Callable[[Path], _Made]) -> _Made:
        """Make it, or read what was made.

        :param name: Its own among all that is made so.
        :param make: Makes it, given a folder that stays until the end of the run.
        """
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        done = place / "made.pickle"
        with (place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if done.exists():
                return cast("_Made", pickle.loads(done.read_bytes()))  # noqa: S301  (our own)
            (place / "files").mkdir(exist_ok=True)
            made = make(place / "files")
            done.write_bytes(pickle.dumps(made))
            return made
