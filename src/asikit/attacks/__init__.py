"""Attacks on the model machine: vulnerabilities as data, attack programs, and verdicts by non-interference.

from asikit.attacks import Cell, attack

attack(Cell("mds", "user_kernel", "skylake-6600u", "asi")).verdict
"""

from __future__ import annotations

from asikit.attacks.errors import LeakError
from asikit.attacks.evidence import Observation
from asikit.attacks.matrix import NO_VECTOR, cells, cpu_for, matrix
from asikit.attacks.reading import load_vulnerability, vulnerability_names
from asikit.attacks.saving import scenario_text
from asikit.attacks.vectors import Vector
from asikit.attacks.verdict import SECRETS, AttackVerdict, Cell, Divergence, Finding, attack, machine_config, put_on
from asikit.attacks.vulnerability import Vulnerability, Way

__all__ = [
    "NO_VECTOR",
    "SECRETS",
    "AttackVerdict",
    "Cell",
    "Divergence",
    "Finding",
    "LeakError",
    "Observation",
    "Vector",
    "Vulnerability",
    "Way",
    "attack",
    "cells",
    "cpu_for",
    "load_vulnerability",
    "machine_config",
    "matrix",
    "put_on",
    "scenario_text",
    "vulnerability_names",
]
