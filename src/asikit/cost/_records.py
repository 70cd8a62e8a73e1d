"""The JSON documents that can be compared, as records: what they are of, and their figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from asikit.cost.errors import CompareError
from asikit.cost.expression import Monomial, Range, Sum
from asikit.documents import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["FACETS", "RECORDING", "Record", "Site", "Target", "cause_text", "read_side"]

RECORDING = "recording"
FACETS = (
    "policy",
    "mitigation",
    "cpu",
    "kernel",
    "workload",
    RECORDING,
    "selection",
    "version",
    "classes",
    "smt",
    "base",
)
"""What two documents can differ in besides their figures."""

_EVERYTHING = "all of the recording"

_REPLAY_METRICS = (
    "exits",
    "round_trips",
    "round_trips_without_exit",
    "ephmap_operations",
    "cr3_writes",
    "tlb_flushes",
    "stuns",
)


class Target(NamedTuple):
    """Why there was an exit, and what was accessed; empty what there is not."""

    reason: str
    access: str
    kind: str
    cache: str
    region: str


class Site(NamedTuple):
    """Exits with one stack.

    :ivar stack: From the function that names the cause outwards: at least it and its caller.
    :ivar allocation: From the function that allocated the page outwards: at least it.
    """

    target: Target
    stack: tuple[str, ...]
    allocation: tuple[str, ...]
    exits: float


@dataclass(frozen=True)
class Record:
    """One result: a policy's replay, or a row of costs.

    :ivar file: Where it is from.
    :ivar facets: What it is of, by :data:`FACETS`; what a document does not say is not there.
    :ivar metrics: Figures by name; ``exits`` is the one that a gate looks at.
    :ivar causes: Parts that explain the figures: exits by cause, or overhead by source.
    :ivar sites: Of a replay: what the causes are made of.
    :ivar whole: All causes are there: the document was not cut off with ``--top``.
    :ivar shares: Of a cost: its overhead as a sum of products, else empty; ``ranges`` are the parameters'.
    :ivar counted: Names of the parameters that are the trace's own.
    """

    file: str
    facets: Mapping[str, str]
    metrics: Mapping[str, float]
    causes: Mapping[str, float]
    sites: tuple[Site, ...] = ()
    whole: bool = True
    shares: Sum = ()
    ranges: Mapping[str, Range] | None = None
    counted: frozenset[str] = frozenset()


def read_side(argument: str) -> list[list[Record]]:
    """Return the runs of one side: a list of records for each document.

    :param argument: A JSON file, a folder of them, or several of either with commas between.
    :raises CompareError: A file is not there, or not a replay or a cost.
    """
    files: list[Path] = []
    for part in argument.split(","):
        path = Path(part.strip())
        if path.is_dir():
            found = sorted(path.glob("*.json"))
            if not found:
                raise CompareError(f"{path}: no *.json in this folder")
            files += found
        else:
            files.append(path)
    return [_records(path) for path in files]


def _records(path: Path) -> list[Record]:
    document = read_json(path, "document", CompareError)
    schema = document.get("schema") if isinstance(document, dict) else None
    try:
        if schema == "asikit.replay/1":
            return [_of_replay(result, document, path) for result in document.get("results", [document])]
        if schema == "asikit.cost/1":
            return [_of_cost(row, document, path) for row in document["rows"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CompareError(f"{path}: not a whole {schema} document: {type(error).__name__}: {error}") from error
    shown = f"has the schema {schema!r}" if schema else "has no schema"
    raise CompareError(f"{path}: {shown}: give what `asi replay --json` or `asi cost --json` printed")


def _of_replay(result: Mapping[str, Any], document: Mapping[str, Any], path: Path) -> Record:
    metrics = {name: float(result[name]) for name in _REPLAY_METRICS}
    metrics |= {kind: float(count) for kind, count in result["flushes"].items()}
    causes: dict[str, float] = {}
    sites = tuple(site for cause in result["causes"] for site in _sites(cause))
    for site in sites:
        text = cause_text(site.target, [(site.stack[0], site.stack[1])], [site.allocation[0]])
        causes[text] = causes.get(text, 0) + site.exits
    facets = {
        "policy": str(result["policy"]),
        "classes": " and ".join(result["classes"]),
        "selection": result.get("selection") or _EVERYTHING,
        **_trace_facets(result.get("trace") or document.get("trace"), _version(document)),
    }
    whole = sum(causes.values()) == metrics["exits"]
    return Record(str(path), facets, metrics, causes, sites, whole)


def _of_cost(row: Mapping[str, Any], document: Mapping[str, Any], path: Path) -> Record:
    metrics = {
        "overhead": float(row["overhead"]["mid"]),
        "cycles_per_round_trip": float(row["cycles_per_round_trip"]["mid"]),
    }
    if row["exits"] is not None:
        metrics["exits"] = float(row["exits"])
    seconds = document["base"]["seconds"]
    facets = {
        "mitigation": str(row["mitigation"]),
        **({} if row["policy"] is None else {"policy": str(row["policy"])}),
        "cpu": str(row["cpu"]),
        "selection": document.get("selection") or _EVERYTHING,
        "smt": "yes" if document["smt"] else "no",
        "base": "cycles for each instruction" if seconds is None else f"{seconds:g} s",
        **_trace_facets(document["trace"], _version(document)),
    }
    parameters = row["parameters"]
    return Record(
        str(path),
        facets,
        metrics,
        {name: float(figures["mid"]) for name, figures in row["by_source"].items()},
        shares=tuple(Monomial(term["coefficient"], tuple(sorted(term["powers"].items()))) for term in row["shares"]),
        ranges={name: Range(one["low"], one["mid"], one["high"]) for name, one in parameters.items()},
        counted=frozenset(name for name, one in parameters.items() if one["basis"] == "trace"),
    )


def _version(document: Mapping[str, Any]) -> dict[str, str]:
    return {"version": str(document["asikit"])} if "asikit" in document else {}


def _trace_facets(trace: Mapping[str, Any] | None, version: dict[str, str]) -> dict[str, str]:
    if trace is None:
        return version
    return {
        "kernel": str(trace["kernel"]),
        "workload": " ".join(map(str, trace["workload"])),
        RECORDING: str(trace["content_hash"])[:12],
        **version,
    }


def _sites(cause: Mapping[str, Any]) -> Iterator[Site]:
    """Give a cause's exits by stack. Of what a document does not list, by its names: older ones list no stacks."""
    target = Target(cause["reason"], cause["access"], cause["kind"], cause["cache"], cause["region"])
    names, allocator = (cause["function"], cause["caller"]), cause["allocated_by"]
    rest = float(cause["exits"])
    for stack in cause.get("stacks", ()):
        functions, allocation, exits = tuple(stack["functions"]), tuple(stack["allocation"]), float(stack["exits"])
        rest -= exits
        yield Site(target, names + functions[2:], (allocator, *allocation[1:]), exits)
    if rest:
        yield Site(target, names, (allocator,), rest)


def cause_text(target: Target, names: Sequence[tuple[str, ...]], allocators: Sequence[str]) -> str:
    """Name a cause so that the same one in two documents has the same name.

    :param names: Function and caller; several if several kernels name it so.
    :param allocators: Who allocated the page, likewise.
    """
    cache = "" if target.cache == target.kind else target.cache
    region = "" if target.region == "direct_map" else target.region
    what = " ".join(word for word in (target.access, target.kind, cache, region) if word)
    known = [name for name in allocators if name not in {"", "?"}]
    by = f" ({' | '.join(known)})" if known else ""
    return f"{target.reason}: {_who(names)}: {what}{by}" if what else f"{target.reason}: {_who(names)}"


def _who(names: Sequence[tuple[str, ...]]) -> str:
    functions, callers = (list(dict.fromkeys(words)) for words in zip(*names, strict=True))
    if len(functions) == 1 or len(callers) == 1:
        return f"{' | '.join(functions)} <- {' | '.join(callers)}"
    return " | ".join(f"{function} <- {caller}" for function, caller in names)
