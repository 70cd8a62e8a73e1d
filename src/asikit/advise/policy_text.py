"""A policy as the text of a file."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING

from asikit.replay import Rules, Sensitivity

if TYPE_CHECKING:
    from asikit.replay import Policy

__all__ = ["policy_text"]


def policy_text(policy: Policy, comment: str = "") -> str:
    """Return a policy file: what a policy says of memory and ephemeral mappings; it inherits all else.

    :param comment: What stands above.
    """
    lines = [*(f"# {line}".rstrip() for line in comment.splitlines()), ""] if comment else []
    lines += [f"title = {_text(policy.title)}", f"inherits = {_text(policy.inherits)}", ""]
    lines += ["[memory]", f"default = {_text(policy.memory.default.value)}"]
    for sensitivity in Sensitivity:
        rules: Rules = getattr(policy.memory, sensitivity)
        lines += ["", f"[memory.{sensitivity}]"]
        for rule in fields(Rules):
            lines += _list(rule.name, getattr(rules, rule.name))
    ephmap = policy.ephmap
    lines += ["", "[ephmap]", *(line for key in fields(ephmap) for line in _list(key.name, getattr(ephmap, key.name)))]
    return "\n".join(lines) + "\n"


def _list(key: str, values: tuple[object, ...]) -> list[str]:
    """Return every list, an empty one too: what a file does not give it inherits."""
    return [f"{key} = [", *(f"    {_text(str(value))}," for value in values), "]"] if values else [f"{key} = []"]


def _text(value: str) -> str:
    """Return a basic string of TOML, whose escapes are JSON's but for the delete character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
