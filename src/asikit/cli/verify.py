"""``asi verify``: proofs about the protocol, and counterexamples to its mutants."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from asikit.cli._html import html_option, write_html
from asikit.cli._output import show, write_json
from asikit.cli._progress import progress

if TYPE_CHECKING:
    from asikit.proofs import Capability, Verdict, Verification, World
    from asikit.protocol import AsiClass

_Value = TypeVar("_Value")

_EXIT_REFUTED, _EXIT_UNKNOWN = 10, 11
_ALL = "all"


@click.command()
@click.option("--mitigation", metavar="asi|blanket", default="asi", show_default=True, help="What to verify.")
@click.option(
    "--mutant", metavar="NAME|all", help="With one element removed or moved (--list-mutants); `all` is every mutant."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 2),
    help="Hardware threads of the core. [default: 2; blanket: 1; mutants: 1, then 2]",
)
@click.option(
    "--nesting",
    type=click.IntRange(0, 3),
    default=1,
    show_default=True,
    help="NMIs and other handlers inside one another, on each thread; 0 is none at all.",
)
@click.option(
    "--class",
    "classes",
    metavar="CLASS[,CLASS]",
    help="Untrusted domains: userspace, kvm. [default: both]",
)
@click.option(
    "--attacker",
    metavar="CAN[,CAN]",
    default="train,sample,deferred",
    show_default=True,
    help="What the attacker can do: train predictors, sample data structures, read what is mapped (deferred checks).",
)
@click.option(
    "--method",
    type=click.Choice(["explore", "induction"]),
    help="Visit every state, or prove by induction with an SMT solver. [default: explore; where two threads with "
    "handlers in handlers are too many states for that: induction]",
)
@click.option(
    "--smtlib",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write the induction's questions to FILE, as SMT-LIB 2.",
)
@click.option("--equivalence", is_flag=True, help="Compare ASI with the blanket mitigation, situation by situation.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.verify/1).")
@html_option
@click.option("--list-mutants", is_flag=True, help="List mutants and alternatives, and stop.")
@click.pass_context
def command(
    context: click.Context,
    *,
    mitigation: str,
    mutant: str | None,
    threads: int | None,
    nesting: int,
    classes: str | None,
    attacker: str,
    method: str | None,
    smtlib: str | None,
    equivalence: bool,
    as_json: bool,
    html: Path | None,
    list_mutants: bool,
) -> None:
    """Prove that ASI leaks nothing, or show how a mutant of it does.

    Explores every interleaving of one or two hardware threads with NMIs between any two micro-operations, or proves the
    same by induction. The exit code is 0 for PROVED, 10 for REFUTED, 11 for UNKNOWN (docs/verify.md).
    """
    if list_mutants:
        _list_mutants()
        return
    if smtlib is not None and method != "induction":
        raise click.UsageError("--smtlib goes with --method induction", context)
    if method == "induction" and (equivalence or mutant == _ALL):
        raise click.UsageError("--method induction is for one verdict", context)
    if equivalence:
        verdict = _compare(html, as_json=as_json)
    elif mutant == _ALL:
        if mitigation != "asi" or classes is not None:
            raise click.UsageError("--mutant all is for --mitigation asi, and goes without --class", context)
        verdict = _verify_all(threads, nesting, html, as_json=as_json)
    else:
        if threads is None:
            threads = 1 if mitigation == "blanket" else 2
        from asikit.proofs import world_for

        world = world_for(
            mitigation,
            threads=threads,
            nesting=nesting,
            classes=_classes(classes),
            capabilities=_capabilities(attacker),
        )
        result = _verify_one(world, mutant, method, smtlib)
        verdict = _shown(result, html, as_json=as_json)
    context.exit({"PROVED": 0, "REFUTED": _EXIT_REFUTED}.get(str(verdict), _EXIT_UNKNOWN))


def _verify_one(world: World, mutant: str | None, method: str | None, smtlib: str | None) -> Verification:
    from asikit.proofs import method_for, prove, verify
    from asikit.proofs import mutant as find_mutant

    changed = None if mutant is None else find_mutant(mutant)
    if (method or method_for(world, changed)) == "explore":
        line = progress()
        return verify(world, changed, costs=True, on_machine=True, progress=lambda states: line.at(states, "states"))
    if smtlib is None:
        return prove(world, changed)
    with Path(smtlib).open("w", encoding="utf-8") as file:
        return prove(world, changed, smtlib=file)


def _shown(result: Verification, html: Path | None, *, as_json: bool) -> Verdict:
    from asikit.report.verify import verification_report

    write_html(html, lambda: verification_report(result))
    if as_json:
        write_json("verify", result.to_dict())
    else:
        show(verification_report(result))
    return result.verdict


def _verify_all(threads: int | None, nesting: int, html: Path | None, *, as_json: bool) -> Verdict:
    from asikit.proofs import CATALOGUE, Verdict, verify_mutants
    from asikit.report.verify import mutants_report

    rows = []
    for row in verify_mutants(threads=threads, nesting=nesting, on_machine=True):
        rows.append(row)
        progress().at(len(rows), "mutants", total=len(CATALOGUE))
    verdicts = {row.verdict for row in rows}
    verdict = next(v for v in (Verdict.REFUTED, Verdict.UNKNOWN, Verdict.PROVED) if v in verdicts)
    write_html(html, lambda: mutants_report(rows))
    if as_json:
        write_json(
            "verify",
            {
                "mitigation": "asi",
                "mutant": _ALL,
                "method": "explore",
                "verdict": str(verdict),
                "states": sum(row.states for row in rows),
                "rows": [row.to_dict() for row in rows],
            },
        )
    else:
        show(mutants_report(rows))
    return verdict


def _compare(html: Path | None, *, as_json: bool) -> Verdict:
    from asikit.proofs import compare, equivalence_verdict
    from asikit.report.verify import equivalence_report

    rows = list(compare())
    verdict = equivalence_verdict(rows)
    write_html(html, lambda: equivalence_report(rows))
    if as_json:
        write_json(
            "verify",
            {
                "mitigation": "asi",
                "mutant": None,
                "method": "explore",
                "verdict": str(verdict),
                "states": sum(row.asi.states + row.blanket.states for row in rows),
                "equivalence": [row.to_dict() for row in rows],
            },
        )
    else:
        show(equivalence_report(rows))
    return verdict


def _classes(text: str | None) -> frozenset[AsiClass] | None:
    if text is None:
        return None
    from asikit.protocol import AsiClass

    return frozenset(_known("--class", text, {asi_class.name.lower(): asi_class for asi_class in AsiClass}))


def _capabilities(text: str) -> Capability:
    from asikit.proofs import Capability

    able = Capability(0)
    for one in _known("--attacker", text, {str(one.name).lower(): one for one in Capability}):
        able |= one
    return able


def _known(option: str, text: str, known: dict[str, _Value]) -> list[_Value]:
    """Return the values of a comma list of names."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"no {name!r}: there are {', '.join(sorted(known))}", param_hint=f"'{option}'")
    return [known[name] for name in names]


def _list_mutants() -> None:
    from asikit.proofs import ALTERNATIVES, CATALOGUE
    from asikit.report.verify import mutant_names

    show(mutant_names(CATALOGUE, ALTERNATIVES))
