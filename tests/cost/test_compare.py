"""Two sides of replays or costs: what counts as a difference, what is refused, and the gate."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from asikit.cost import CompareError, compare, price
from asikit.replay import load_policy, replay
from asikit.trace import Trace
from tests.cost.running import cpu, exact, ranged, round_trips
from tests.cost.test_pricing import SAMPLES

if TYPE_CHECKING:
    from pathlib import Path


def replayed(path: Path, exits: int, *, policy: str = "denylist-2025", **changed: Any) -> str:  # noqa: ANN401
    """Write the document of a replay with so many exits, half of them for each of two causes."""
    cause = {
        "reason": "page_fault",
        "function": "_copy_to_iter",
        "caller": "copy_page_to_iter",
        "access": "read",
        "region": "direct_map",
        "kind": "shmem",
        "cache": "",
        "allocated_by": "?",
    }
    document = {
        "schema": "asikit.replay/1",
        "asikit": "1",
        "trace": {"content_hash": "0" * 64, "kernel": "6.1", "workload": ["fio"]},
        "policy": policy,
        "classes": ["kvm", "userspace"],
        "exits": exits,
        "round_trips": 1000,
        "round_trips_without_exit": 1000 - exits,
        "ephmap_operations": 0,
        "cr3_writes": 2 * exits,
        "tlb_flushes": 2 * exits,
        "stuns": 0,
        "flushes": {"ibpb": exits},
        "causes": [
            cause | {"exits": exits - 10},
            cause | {"function": "clear_page_erms", "caller": "get_page_from_freelist", "exits": 10},
        ],
    }
    document |= changed
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


TRACE = {"content_hash": "0" * 64, "kernel": "6.1", "workload": ["fio"]}


def test_two_policies(tmp_path: Path) -> None:
    """One run a side: the difference is what it is, and the most changed cause stands first."""
    a = replayed(tmp_path / "a.json", 500)
    b = replayed(tmp_path / "b.json", 200, policy="ephmap")
    comparison = compare(a, b, factors=["policy"])
    assert comparison.differs == {"policy": ("denylist-2025", "ephmap")}
    (pair,) = comparison.pairs
    exits = pair.metric("exits")
    assert exits is not None
    assert (exits.by.shift, exits.percent, exits.by.is_real) == (-300, -60, True)
    assert [(change.by.shift, change.by.is_real) for change in pair.causes] == [(-300, True), (0, False)]
    assert pair.causes[0].name == "page_fault: _copy_to_iter <- copy_page_to_iter: read shmem"


def test_several_runs(tmp_path: Path) -> None:
    """Runs that scatter alike differ in nothing; runs that do not overlap do, with an interval."""
    for number, exits in enumerate((500, 510, 490, 505, 495)):
        document = TRACE | {"content_hash": f"{number:064}"}
        replayed(tmp_path / f"a/{number}.json", exits, trace=document)
        replayed(tmp_path / f"b/{number}.json", exits + 3, trace=document)
        replayed(tmp_path / f"c/{number}.json", exits + 100, trace=document)
    same = compare(str(tmp_path / "a"), str(tmp_path / "b")).pairs[0].metric("exits")
    assert same is not None
    assert (same.first.median, same.second.median, same.by.is_real) == (500, 503, False)
    assert not compare(str(tmp_path / "a"), str(tmp_path / "b")).regressions(0)
    assert compare(str(tmp_path / "a"), str(tmp_path / "c")).regressions(0)
    more = compare(str(tmp_path / "a"), str(tmp_path / "c")).pairs[0].metric("exits")
    assert more is not None
    assert more.by.is_real
    assert more.by.low is not None
    assert more.by.high is not None
    assert more.by.low <= 100 <= more.by.high
    few = compare(f"{tmp_path}/a/0.json,{tmp_path}/a/1.json", f"{tmp_path}/c/0.json,{tmp_path}/c/1.json")
    change = few.pairs[0].metric("exits")
    assert change is not None
    assert not change.by.is_real
    assert few.runs == (2, 2)


def test_refuses_what_differs_in_more(tmp_path: Path) -> None:
    """Two policies on two kernels say nothing about either, unless one insists."""
    a = replayed(tmp_path / "a.json", 500)
    b = replayed(tmp_path / "b.json", 200, policy="ephmap", trace=TRACE | {"kernel": "6.9"})
    with pytest.raises(CompareError) as caught:
        compare(a, b, factors=["policy"])
    assert str(caught.value) == (
        "the sides differ not only in policy: kernel is 6.1 and 6.9; name it with --factor, or compare with --anyway"
    )
    with pytest.raises(CompareError, match="not only in policy: kernel is"):
        compare(a, b)
    assert compare(a, b, factors=["policy", "kernel"]).pairs
    assert compare(a, b, anyway=True).differs.keys() == {"policy", "kernel"}


def test_recordings(tmp_path: Path) -> None:
    """Another recording of the same is a difference of its own; of another kernel or in several runs it has to be."""
    a = replayed(tmp_path / "a.json", 500)
    other = replayed(tmp_path / "b.json", 500, policy="ephmap", trace=TRACE | {"content_hash": "1" * 64})
    with pytest.raises(CompareError, match="not only in policy: recording is 000000000000 and 111111111111"):
        compare(a, other, factors=["policy"])
    newer = replayed(tmp_path / "c.json", 500, trace=TRACE | {"content_hash": "1" * 64, "kernel": "6.9"})
    assert compare(a, newer, factors=["kernel"]).pairs
    assert compare(a, newer).differs.keys() == {"kernel", "recording"}


@pytest.mark.parametrize(
    ("second", "percent", "worse"), [(104, 5, False), (106, 5, True), (106, 6, False), (90, 0, False), (101, 0, True)]
)
def test_gate(second: int, percent: float, *, worse: bool, tmp_path: Path) -> None:
    """The gate closes when exits grow by more than the limit."""
    a = replayed(tmp_path / "a.json", 100)
    b = replayed(tmp_path / "b.json", second, asikit="2")
    assert bool(compare(a, b, factors=["version"]).regressions(percent)) is worse


def test_gate_from_nothing(tmp_path: Path) -> None:
    """Any exit where there was none is more than any limit."""
    a, b = replayed(tmp_path / "a.json", 0), replayed(tmp_path / "b.json", 1)
    assert compare(a, b).regressions(1000)
    assert not compare(a, a).regressions(0)


def test_refusals(tmp_path: Path) -> None:
    """Each file that cannot be compared is named, with what is wrong."""
    a = replayed(tmp_path / "a.json", 1)
    for name, text, message in (
        ("none.json", None, "cannot read the document: No such file or directory"),
        ("text.json", "{", "not a JSON document"),
        ("list.json", "[]", "has no schema: give what `asi replay --json`"),
        ("info.json", '{"schema": "asikit.info/1"}', "has the schema 'asikit.info/1'"),
        ("part.json", '{"schema": "asikit.replay/1", "exits": 1}', "not a whole asikit.replay/1 document"),
        ("rows.json", '{"schema": "asikit.cost/1"}', "not a whole asikit.cost/1 document"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(CompareError) as caught:
            compare(a, str(tmp_path / name))
        assert str(caught.value).startswith(f"{tmp_path / name}: "), name
        assert message in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompareError, match=r"no \*.json in this folder"):
        compare(a, str(tmp_path / "empty"))
    with pytest.raises(CompareError, match='no factor "polcy"'):
        compare(a, a, factors=["polcy"])


def test_results_that_are_alike_but_for_the_factor_are_refused(tmp_path: Path) -> None:
    """A document with two policies cannot be a side of a comparison of policies: nobody says which of them."""
    path = tmp_path / "a.json"
    replayed(path, 500)
    document = json.loads(path.read_text(encoding="utf-8"))
    both = {"schema": document["schema"], "results": [document, document | {"policy": "ephmap"}]}
    path.write_text(json.dumps(both), encoding="utf-8")
    b = replayed(tmp_path / "b.json", 200, policy="off")
    with pytest.raises(CompareError, match="several results are alike in all but policy"):
        compare(str(path), b, factors=["policy"])


def cost_document(path: Path, row_policy: str, costs: dict[str, Any], tmp_path: Path) -> str:
    """Price a built trace and write the document."""
    trace = Trace.open(tmp_path / "t.asitrace")
    result = price(trace, [cpu(costs)], policies=[load_policy(row_policy)], mitigations=["asi", "blanket"])
    path.write_text(json.dumps(result.to_dict()), encoding="utf-8")
    return str(path)


def test_costs_share_their_unknowns(tmp_path: Path) -> None:
    """Each policy's cost is a wide range, but on one processor an IBPB costs what it costs: the fewer are cheaper."""
    round_trips(10, exiting=5).write(tmp_path / "t.asitrace")
    costs = exact() | ranged(ibpb=(100, 1000, 7000), cpi=(0.5, 1, 2))
    a = cost_document(tmp_path / "a.json", "denylist-2025", costs, tmp_path)
    allow = cost_document(tmp_path / "b.json", "allowlist-2022", costs, tmp_path)
    comparison = compare(a, allow, factors=["policy"])
    pair = next(pair for pair in comparison.pairs if pair.what["mitigation"] == "asi")
    overhead, exits = pair.metric("overhead"), pair.metric("exits")
    assert overhead is not None
    assert exits is not None
    more = exits.by.shift
    assert more > 0
    instructions = price(
        Trace.open(tmp_path / "t.asitrace"), [cpu(costs)], policies=[], mitigations=["none"]
    ).instructions
    assert overhead.by.low == pytest.approx(more * 100 / 2 / instructions)
    assert overhead.by.high == pytest.approx(more * 7000 / 0.5 / instructions)
    same = next(pair for pair in comparison.pairs if pair.what["mitigation"] == "blanket").metric("overhead")
    assert same is not None
    assert not same.by.is_real


def test_replay_documents_are_readable(tmp_path: Path) -> None:
    """What the replay of a sample writes is taken as it is."""
    trace = Trace.open(SAMPLES / "kvm-guest.asitrace")
    for result in replay(trace, [load_policy("denylist-2025"), load_policy("blanket")]):
        (tmp_path / f"{result.policy}.json").write_text(json.dumps(result.to_dict()), encoding="utf-8")
    comparison = compare(str(tmp_path / "denylist-2025.json"), str(tmp_path / "blanket.json"))
    exits = comparison.pairs[0].metric("exits")
    assert exits is not None
    assert exits.by.shift == -65


def test_documents_cut_off(tmp_path: Path) -> None:
    """A cause that a cut-off document does not list is not one that did not happen."""
    a = replayed(tmp_path / "a.json", 500)
    path = tmp_path / "b.json"
    document = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | {"policy": "ephmap", "causes": document["causes"][:1]}), encoding="utf-8")
    (pair,) = compare(a, str(path)).pairs
    assert pair.cut
    assert [(change.name.split(" <- ")[0], change.by.shift) for change in pair.causes] == [
        ("page_fault: _copy_to_iter", 0)
    ]


def test_document_is_plain(tmp_path: Path) -> None:
    """The JSON form has no infinities, and says what differs."""
    a, b = replayed(tmp_path / "a.json", 0), replayed(tmp_path / "b.json", 20, policy="ephmap")
    document = compare(f"{a},{a}", f"{b},{b}").to_dict(top=1)
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["pairs"][0]["metrics"][0]["percent"] is None
    assert len(document["pairs"][0]["causes"]) == 1
    assert document["differs"] == {"policy": {"a": "denylist-2025", "b": "ephmap"}}
