"""One row a primitive: what else must know of a new one, and that whoever forgets it is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asikit
from asikit.cost import CostError, known_parameters
from asikit.cost.pricing import unit_of
from asikit.cost.terms import CostTerm
from asikit.machine.x86 import cpu_names, load_cpu
from asikit.machine.x86.model import Structures
from asikit.mitigations import Source
from asikit.protocol import PRIMITIVES, Primitive
from asikit.threat import STRUCTURES

REPOSITORY = Path(__file__).parents[1]
DOCUMENT = Path("docs/verify.md")


def faults(repository: Path = REPOSITORY) -> list[str]:
    """Return what does not know of a primitive yet: the place, and what to write there."""
    document = (repository / DOCUMENT).read_text(encoding="utf-8")
    return [fault for primitive in PRIMITIVES for fault in faults_of(primitive, document)]


def faults_of(primitive: Primitive, document: str) -> list[str]:
    """Return what does not know of one."""
    name, structures = primitive.kind.value, dict(primitive.empties)
    strange = sorted(structures.keys() - set(Structures.__struct_fields__))
    found = [f"protocol/effects.py: {name} empties {each}, which is no structure of a CPU model" for each in strange]
    if name not in known_parameters():
        found.append(f"data/costs.toml: no [{name}]: write what {name} costs")
    models = [load_cpu(model) for model in cpu_names()]
    for model in models:
        clears = any(name in getattr(model.structures, structure).cleared_by for structure in structures)
        if primitive.bugs & model.protocol_bugs and not clears:
            found.append(
                f"data/cpus/{model.name}.toml: {name} is called for there and clears nothing: "
                f"write it into cleared_by of {' or '.join(structures)}"
            )
    holds = next(each.holds for each in STRUCTURES if each.cleared_by is primitive.kind)
    if f"| {primitive.channel} | {holds} |" not in document:
        found.append(f"{DOCUMENT}: no row for {primitive.channel!r} in the table of assumptions")
    return found


def test_all_places_know_all_primitives() -> None:
    """Prices, CPU models and the documented assumptions have every primitive."""
    assert faults() == []


def test_a_price_that_nobody_knows() -> None:
    """A term whose parameter is in no file is refused, and the message says where it belongs."""
    with pytest.raises(CostError) as caught:
        unit_of(CostTerm(Source.PREDICTOR_FLUSH, "pht clear", 1, ("pht_clear",)), known_parameters())
    assert str(caught.value) == (
        "data/costs.toml has no [pht_clear], which 'pht clear' costs: add it, with unit, basis, source and figures"
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and of the document, to be changed."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(
        Path(asikit.__file__).parent,
        root / "src" / "asikit",
        ignore=shutil.ignore_patterns("samples", "__pycache__"),
    )
    (root / "docs").mkdir()
    shutil.copy(REPOSITORY / DOCUMENT, root / DOCUMENT)
    return root


def asked(copy: Path, code: str) -> str:
    """Run code with the changed package; returns the last line of what it says."""
    paths = os.pathsep.join([str(copy / "src"), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return (done.stderr or done.stdout).strip().splitlines()[-1]


def change(copy: Path, file: str, old: str, new: str) -> None:
    """Replace the first of a text in a file of the copy."""
    path = copy / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


FAULTS = """
from pathlib import Path
from tests.test_primitives import faults
print("; ".join(faults(Path({root!r}))) or "none")
"""
EFFECTS = "src/asikit/protocol/effects.py"
USED = """
from collections import Counter
from dataclasses import replace
from asikit.cost.terms import effect_terms
from asikit.machine.kernel import Machine, MachineConfig
from asikit.machine.x86 import load_cpu
from asikit.proofs import Verdict, verify, world_for
from asikit.threat.edits import without_flush
from asikit.protocol import Effect, EffectKind, Protocol, ProtocolConfig, Routine
from asikit.report._words import FLUSH_WORDS

kind = EffectKind("pht_clear")
cpu = load_cpu("zen-1200")
config = ProtocolConfig(features=cpu.protocol_features, bugs=cpu.protocol_bugs)
assert config.control_flush[-1] is kind
world = replace(world_for(threads=1, nesting=0), protocol=Protocol(config))
assert "pattern history table" in {each.name for each in world.layout.structures}
assert verify(world).verdict is Verdict.PROVED
routines = (Routine.FLUSH_CONTROL_FOR_EXIT, Routine.FLUSH_CONTROL_FOR_ENTER)
assert verify(without_flush(kind, *routines)(world)).verdict is Verdict.REFUTED
[term] = effect_terms(Counter({Effect(kind): 2}))
assert (term.source.value, term.count, term.price) == ("predictor_flush", 2, ("pht_clear",))

kernel = Machine(MachineConfig(cpu="zen-1200", protocol=config)).kernel
kernel.sched.switch_mm(kernel.contexts.of(kernel.contexts.new()))
for transition in ("asi_enter_userspace", "asi_relax", "asi_exit"):
    kernel.asi.run(transition)
assert kernel.cpu.hw.core.done[kind.value] == 1
print(FLUSH_WORDS[kind.value])
"""


def test_a_new_primitive_needs_four_places(copy: Path) -> None:
    """A member, its row, a price, a CPU that it clears something on, a line of a document: whoever forgets is told."""
    check = FAULTS.format(root=str(copy))

    change(copy, EFFECTS, '    STUN = "stun"', '    PHT_CLEAR = "pht_clear"\n    STUN = "stun"')
    assert asked(copy, check) == (
        "asikit.protocol.errors.PrimitivesError: protocol/effects.py: pht_clear has 0 rows in PRIMITIVES and is not in "
        "OTHER_EFFECTS; it must be in one of them, once"
    )

    row = """    Primitive(
        kind=EffectKind.PHT_CLEAR,
        side=FlushSide.CONTROL,
        words="direction clears",
        channel="pattern history table",
        empties=(("pht", "pattern history table"),),
        bugs=frozenset({CpuBug.DIV0}),
    ),
"""
    change(
        copy,
        EFFECTS,
        "    Primitive(\n        kind=EffectKind.L1D_FLUSH",
        f"{row}    Primitive(\n        kind=EffectKind.L1D_FLUSH",
    )
    price = "data/costs.toml: no [pht_clear]: write what pht_clear costs"
    cpu = "; ".join(
        f"data/cpus/{name}.toml: pht_clear is called for there and clears nothing: write it into cleared_by of pht"
        for name in ("zen-1200", "zen-plus-2600x")
    )
    line = "docs/verify.md: no row for 'pattern history table' in the table of assumptions"
    assert asked(copy, check) == f"{price}; {cpu}; {line}"

    change(
        copy,
        str(DOCUMENT),
        "| branch history buffer |",
        "| pattern history table | training | |\n| branch history buffer |",
    )
    assert asked(copy, check) == f"{price}; {cpu}"

    for name in ("zen-1200", "zen-plus-2600x"):
        model = copy / f"src/asikit/data/cpus/{name}.toml"
        text = model.read_text(encoding="utf-8")
        text = re.sub(r"(?s)(\[structures\.pht\].*?cleared_by = \[)\]", r'\1"pht_clear"]', text, count=1)
        model.write_text(text, encoding="utf-8")
    assert asked(copy, check) == price

    change(
        copy,
        "src/asikit/data/costs.toml",
        "[verw]",
        '[pht_clear]\nunit = "cycles"\nvalue = 1\nbasis = "estimate"\nsource = "none"\n\n[verw]',
    )
    assert asked(copy, check) == "none"
    assert asked(copy, USED) == "direction clears"
