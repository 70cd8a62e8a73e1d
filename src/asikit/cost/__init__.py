"""What ASI costs on a processor and a workload, against what people use today; calibration; comparison of runs.

>>> from asikit.cost import price
>>> from asikit.replay import load_policy
>>> from asikit.trace import Trace
>>> from asikit.machine.x86 import load_cpu
>>> result = price(  # doctest: +SKIP
...     Trace.open("fio.asitrace"),
...     [load_cpu("skylake-6600u")],
...     policies=[load_policy("denylist-2025")],
...     mitigations=["none", "linux", "blanket", "asi"],
... )

Every figure is a named :class:`Parameter` with a range and a source; every answer is a :class:`Range` whose ends are
reached (:mod:`asikit.cost.expression`).
"""

from __future__ import annotations

from asikit.cost.calibrate import (
    CALIBRATE_SCHEMA,
    Calibration,
    Measurement,
    base_model,
    calibrate,
    model_text,
)
from asikit.cost.compare import COMPARE_SCHEMA, Change, Comparison, Pair, compare
from asikit.cost.errors import CalibrationError, CompareError, CostError, HostError
from asikit.cost.expression import Range
from asikit.cost.host import HOST_SCHEMA, Host, HostVerdict, HostVulnerability, Identity, read_host, read_identity
from asikit.cost.parameters import Basis, Parameter, Unit, cpu_parameters, known_parameters
from asikit.cost.priced import priced_mitigation
from asikit.cost.pricing import BaseTime, mitigation_names, policy_on, price
from asikit.cost.result import SCHEMA, BreakEven, CostPart, CostResult, CostRow, EachRow, Influence, PartRow
from asikit.cost.steps import step_cycles
from asikit.cost.terms import CostTerm

__all__ = [
    "CALIBRATE_SCHEMA",
    "COMPARE_SCHEMA",
    "HOST_SCHEMA",
    "SCHEMA",
    "BaseTime",
    "Basis",
    "BreakEven",
    "Calibration",
    "CalibrationError",
    "Change",
    "CompareError",
    "Comparison",
    "CostError",
    "CostPart",
    "CostResult",
    "CostRow",
    "CostTerm",
    "EachRow",
    "Host",
    "HostError",
    "HostVerdict",
    "HostVulnerability",
    "Identity",
    "Influence",
    "Measurement",
    "Pair",
    "Parameter",
    "PartRow",
    "Range",
    "Unit",
    "base_model",
    "calibrate",
    "compare",
    "cpu_parameters",
    "known_parameters",
    "mitigation_names",
    "model_text",
    "policy_on",
    "price",
    "priced_mitigation",
    "read_host",
    "read_identity",
    "step_cycles",
]
