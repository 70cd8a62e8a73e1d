"""The language of --where: what it means, what it refuses and how, and that it counts what it says."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asikit.replay import By, Selection, SelectionError, load_policy, replay
from asikit.replay._chosen import entry_names
from asikit.replay.where import Where, WhereField, WhereTerm
from asikit.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def phases() -> Iterator[Trace]:
    """Open the recording that has phases."""
    with as_file(files("asikit.data") / "samples/phases.asitrace") as path:
        yield Trace.open(path)


def expressions() -> st.SearchStrategy[str]:
    """Make expressions of Python that are expressions of the language, too."""
    comparisons = st.builds(
        lambda name, sign, value: f"{name} {sign} {value}",
        st.sampled_from(["cpu", "pid"]),
        st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
        st.integers(0, 3),
    )
    return st.recursive(
        comparisons,
        lambda inner: (
            st.builds("({} and {})".format, inner, inner)
            | st.builds("{} or {}".format, inner, inner)
            | st.builds("not ({})".format, inner)
        ),
        max_leaves=12,
    )


@given(expressions(), st.integers(0, 3), st.integers(0, 3))
def test_it_means_what_python_means(text: str, cpu: int, pid: int) -> None:
    """On numbers an expression has Python's value, with its precedences."""
    where = Where.parse(text)
    values = {WhereField.CPU: cpu, WhereField.PID: pid}
    found = where.true(lambda number: where.comparisons[number].holds(values[where.comparisons[number].field]))
    assert found is bool(eval(text, {"cpu": cpu, "pid": pid}))  # noqa: S307  (of our own making)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "at the end of '': a field is missing"),
        ("task", "at the end of 'task': a comparison (== != < <= > >= ~ !~) is missing"),
        ("task ==", "at the end of 'task ==': a value is missing"),
        ("taks == a", "no field 'taks'; the nearest is \"task\""),
        ("task < a", "task has no order"),
        ("pid == a", "pid is a number, not 'a'"),
        ("(pid == 1", "')' is missing"),
        ("pid == 1 pid == 2", "before 'pid == 2' in 'pid == 1 pid == 2': 'and' or 'or' is missing"),
        ("pid = 1", "before '= 1' in 'pid = 1': cannot read this"),
        (" or ".join(["pid == 1"] * 61), "61 comparisons are more than 60"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    """A fault says where it is and what is wrong."""
    with pytest.raises(SelectionError, match=r"^--where: ") as caught:
        Where.parse(text)
    assert says in str(caught.value)


def test_what_is_known_too_late() -> None:
    """A replay cannot choose by what is known only at a round trip's end, and says so."""
    with pytest.raises(SelectionError, match="it is known only when a round trip is over"):
        Where.parse("exits > 1", frozenset({WhereField.TASK}))


def test_names() -> None:
    """An entry goes by its label, its kind, its number and its name; quotes and globs are read; tasks have 15 bytes."""
    assert set(entry_names("interrupt 236 apic timer")) >= {
        "interrupt",
        "236",
        "apic timer",
        "interrupt 236 apic timer",
    }
    assert set(entry_names("syscall pread64")) == {"syscall pread64", "syscall", "pread64"}
    assert entry_names("nmi") == ("nmi",)
    assert entry_names("vm exit 120 hlt")[1] == "vm exit"
    (comparison,) = Where.parse("entry == 'vm exit 120 hlt'").comparisons
    assert comparison == WhereTerm(WhereField.ENTRY, "==", "vm exit 120 hlt")
    (comparison,) = Where.parse("task == a-very-long-name-of-a-task").comparisons
    assert comparison.value == "a-very-long-nam"
    assert WhereTerm(WhereField.TASK, "~", "redis*").holds("redis-server")
    assert not WhereTerm(WhereField.PHASE, "!=", "load").holds_of_any(("load", "steady"))


@pytest.mark.parametrize("task", ["phases", "init"])
def test_it_chooses_as_the_options_do(phases: Trace, task: str) -> None:
    """What a task, a CPU or a phase is is the same in both ways to say it."""
    under = [load_policy("denylist-2025")]
    if task not in phases.table("tasks")["comm"].to_list():
        pytest.fail(f"the sample has no task {task}")
    names = phases.table("phases")["name"].to_list()
    for one, other in (
        (Selection(tasks=(task,)), Selection(where=f"task == {task}")),
        (Selection(cpus=(0,)), Selection(where="cpu == 0")),
        (Selection(phases=(names[0],)), Selection(where=f"phase == '{names[0]}'")),
        (Selection(tasks=(task,), phases=(names[0],)), Selection(where=f"phase == '{names[0]}' and task == {task}")),
    ):
        (first,), (second,) = (replay(phases, under, selection=each) for each in (one, other))
        ours, theirs = first.to_dict(), second.to_dict()
        assert ours.pop("selection") != theirs.pop("selection")
        assert ours == theirs


def test_entries_divide_the_whole(phases: Trace) -> None:
    """The round trips and exits of an entry are those in the whole's table, and the entries add up to the whole."""
    under = [load_policy("denylist-2025")]
    (whole,) = replay(phases, under)
    for row in whole.by_entry[:6]:
        (part,) = replay(phases, under, selection=Selection(where=f"entry == '{row.entry}'"))
        assert (part.round_trips, part.exits, part.round_trips_without_exit) == (
            row.round_trips,
            row.exits,
            row.without_exit,
        )
    kinds = [
        replay(phases, under, selection=Selection(where=text))[0] for text in ("entry == syscall", "entry != syscall")
    ]
    assert sum(part.exits for part in kinds) == whole.exits
    assert sum(part.round_trips for part in kinds) == whole.round_trips


def test_divided_too(phases: Trace) -> None:
    """What an expression chooses is divided as anything else is."""
    under = [load_policy("denylist-2025")]
    selection = Selection(where="entry == syscall")
    (whole,) = replay(phases, under, selection=selection)
    (divided,) = replay(phases, under, selection=selection, by=By.TASK)
    assert sum(part.exits for part in divided.parts) == whole.exits > 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task == phaess", 'no task phaess in the recording; the nearest is "phases"'),
        ("not task != phaess", "no task phaess"),
        ("entry == raed", "no entry raed in the recording; the nearest is"),
        ("cpu == 1", "no cpu 1 in the recording"),
        ("pid == 99999", "no pid 99999 in the recording"),
    ],
)
def test_what_is_not_there_is_said(phases: Trace, text: str, says: str) -> None:
    """Nothing is counted as none that is only misspelt."""
    with pytest.raises(SelectionError) as caught:
        replay(phases, [load_policy("denylist-2025")], selection=Selection(where=text))
    assert says in str(caught.value)
