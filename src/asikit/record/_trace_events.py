"""What the recorder must know of the trace events ``kmem:mm_page_alloc`` and ``mm_page_free``: their tracefs format."""

from __future__ import annotations

import ast
import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["event_fields", "gfp_flags"]

_FIELDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "alloc": MappingProxyType({"pfn": "pfn", "order": "order", "gfp": "gfp_flags", "migratetype": "migratetype"}),
        "free": MappingProxyType({"pfn": "pfn", "order": "order"}),
    }
)
_BITS = 0xFFFF_FFFF


def event_fields(event: str, text: str) -> dict[str, int]:
    """Find the fields of an event.

    :param event: ``alloc`` or ``free``.
    :param text: Its ``format`` file.
    :raises RecordError: A field is missing.
    """
    values = {}
    for key, field in _FIELDS[event].items():
        found = re.search(rf"\b{field};\s*offset:(\d+);\s*size:(\d+);", text)
        if found is None:
            raise RecordError(f"the guest's trace event mm_page_{event} has no field {field!r}; give another --kernel")
        values[f"{event}_{key}"] = int(found[1])
        if key == "gfp":
            values[f"{event}_gfp_bytes"] = int(found[2])
    return values


def gfp_flags(text: str) -> dict[str, int]:
    """Read the names of the gfp flags and their bits from the ``print fmt`` of ``mm_page_alloc``.

    Single-bit ``__GFP_*`` flags and the combinations alike: everything that is spelt out there. Older kernels write the
    bits as numbers, newer ones as shifts (772dd0342727, 6.9: the bits are an enum).
    """
    flags: dict[str, int] = {}
    for expression, name in re.findall(r"\{([^{}\"]*), \"(\w+)\"\}", text):
        plain = re.sub(r"\(\s*(?:__force\s+)?(?:unsigned long|gfp_t)\s*\)", "", expression)
        value = _evaluate(re.sub(r"\b(0x[0-9a-fA-F]+|\d+)[uUlL]+\b", r"\1", plain))
        if value is not None:
            flags[name] = value & _BITS
    return flags


def _evaluate(expression: str) -> int | None:
    """Evaluate a C expression of numbers, ``|``, ``&``, ``<<``, ``~`` and parentheses; None if it is not one.

    Python's grammar gives these the precedence that C gives them.
    """
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return None


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_value(operand)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _value(left) | _value(right)
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _value(left) & _value(right)
        case ast.BinOp(left=left, op=ast.LShift(), right=right):
            return _value(left) << min(_value(right), 64)
    raise ValueError(ast.dump(node))
