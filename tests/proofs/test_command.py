"""``asi verify`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asikit.proofs import method_for, mutant, world_for

ASI = str(Path(sys.executable).with_name("asi"))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run([ASI, "verify", *words], capture_output=True, text=True, check=False)


def document(*words: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the JSON document."""
    done = run(*words, "--json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_proved() -> None:
    """Exit code 0, and a document with the verdict, what was explored and what it rests on."""
    code, found = document("--threads", "1")
    assert code == 0
    expected = {
        "schema": "asikit.verify/1",
        "verdict": "PROVED",
        "method": "explore",
        "states": 18_958,
        "transitions": 21_539,
        "threads": 1,
        "mutant": None,
        "counterexample": None,
        "leaks_on_machine": None,
    }
    assert {key: found[key] for key in expected} == expected
    assert [item["holds"] for item in found["properties"]] == [True] * len(found["properties"])
    assert [line[:2] for line in found["assumptions"]] == ["H1", "H2", "H3", "H4", "K1", "K2"]
    assert found["not_proved"]


def test_refuted() -> None:
    """Exit code 10, and a counterexample as data."""
    code, found = document("--mutant", "no-data-flush", "--threads", "1")
    assert (code, found["verdict"], found["steps"]) == (10, "REFUTED", 9)
    assert found["counterexample"]["steps"][0] == {
        "thread": 0,
        "verb": "begins",
        "name": "vm_entry",
        "effect": None,
        "loads": None,
    }
    assert found["counterexample"]["kind"] == "leak"
    assert found["leaks_on_machine"] is True
    assert found["on_machine"]["missed"] == 0


def test_text() -> None:
    """The text has the verdict first, the story, and what is assumed and not proved."""
    done = run("--mitigation", "blanket")
    assert done.returncode == 10
    lines = done.stdout.splitlines()
    assert lines[0] == "REFUTED: blanket, 1 hardware thread, domains: kvm, userspace"
    assert "Assumed" in lines
    assert "Not proved" in lines
    assert max(map(len, lines)) <= 120


def test_induction(tmp_path: Path) -> None:
    """By the other method: the invariant's clauses in the document, all questions in a file."""
    file = tmp_path / "questions.smt2"
    code, found = document("--threads", "1", "--nesting", "0", "--method", "induction", "--smtlib", str(file))
    assert (code, found["verdict"], found["method"]) == (0, "PROVED", "induction")
    assert file.read_text(encoding="utf-8").count("(check-sat)") == found["obligations"]
    assert {"name", "says"} == set(found["invariant"][0])


@pytest.mark.slow
def test_too_many_states_to_explore() -> None:
    """Handlers inside handlers on two threads: the answer comes by induction."""
    code, found = document("--nesting", "2")
    assert (code, found["verdict"], found["method"], found["threads"]) == (0, "PROVED", "induction", 2)


def test_methods() -> None:
    """Exploring is left only where there are too many states for it, and never for a mutant."""
    large = world_for(threads=2, nesting=2)
    assert (method_for(large), method_for(large, mutant("no-stun-check"))) == ("induction", "explore")
    assert [method_for(world_for(threads=threads, nesting=3 - threads)) for threads in (1, 2)] == ["explore"] * 2


@pytest.mark.slow
def test_a_mutant_with_too_many_states_is_explored() -> None:
    """Handlers inside handlers on two threads: the way to a mutant's leak is found before all states are."""
    code, found = document("--nesting", "2", "--threads", "2", "--mutant", "no-stun-check", "--class", "userspace")
    assert (code, found["verdict"], found["method"]) == (10, "REFUTED", "explore")


def test_not_proved_by_induction() -> None:
    """Exit code 11: what cannot be proved is not refuted."""
    code, found = document("--threads", "1", "--nesting", "0", "--method", "induction", "--mutant", "no-data-flush")
    assert (code, found["verdict"]) == (11, "UNKNOWN")
    assert "does not keep" in found["reason"]


def test_equivalence() -> None:
    """ASI and the blanket mitigation, situation by situation."""
    code, found = document("--equivalence")
    assert code == 0
    rows = {row["situation"]: (row["asi"], row["blanket"]) for row in found["equivalence"]}
    both, only_asi, only_blanket = ("PROVED", "PROVED"), ("REFUTED", "PROVED"), ("PROVED", "REFUTED")
    assert rows == {
        "all capabilities": both,
        "train": both,
        "sample": both,
        "deferred": both,
        "more structures": both,
        "NMI": only_blanket,
        "gadget at the return": only_blanket,
        "no PTI": only_blanket,
        "declared nonsensitive": only_asi,
        "stale translation": only_asi,
    }


def test_list() -> None:
    """The catalogue, a line each."""
    done = run("--list-mutants")
    assert done.returncode == 0
    assert done.stdout.startswith("Mutants\n  no-stun ")
    assert "\nAlternatives\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mutant", "no-stunt"), "no mutant 'no-stunt'; the nearest is \"no-stun\" (asi verify --list-mutants)"),
        (
            ("--mitigation", "blanket", "--mutant", "no-verw"),
            "no-verw is a mutant of ASI: use it with --mitigation asi",
        ),
        (("--mitigation", "blankt"), "no mitigation 'blankt': there are asi and blanket"),
        (
            ("--mitigation", "blanket", "--threads", "2"),
            "the blanket mitigation switches SMT off: use --threads 1",
        ),
    ],
)
def test_mistakes(words: tuple[str, ...], message: str) -> None:
    """One line, exit code 2."""
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"asi: error: {message}\n")


@pytest.mark.parametrize(
    "words",
    [
        ("--threads", "3"),
        ("--class", "user"),
        ("--mutant", "all", "--class", "kvm"),
        ("--smtlib", "x"),
        ("--class", "idle,userspace"),
        ("--method", "induction", "--equivalence"),
        ("--method", "induction", "--mitigation", "blanket"),
    ],
)
def test_usage(words: tuple[str, ...]) -> None:
    """Options that make no sense: one line, exit code 2."""
    done = run(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("asi: error: ")
