"""A scenario's program, and the ways in which it stops other than by returning."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.user.user import User

__all__ = ["Program", "ProgramExit", "ProgramReplaced"]

Program: TypeAlias = "Callable[[User], object]"
"""What a thread runs in user mode. An integer that it returns is the exit code, anything else stands for 0."""


class ProgramEnd(BaseException):
    """Unwinds a program. Not an `Exception`: a program that catches errors does not catch its own end."""


class ProgramExit(ProgramEnd):
    """The program called exit()."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class ProgramReplaced(ProgramEnd):
    """The program was replaced by execve()."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.program = program
