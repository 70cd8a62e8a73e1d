"""Two kernels that inline other functions: what is read as one cause, what is not, and that nothing gets lost."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asikit.cost import compare
from asikit.cost._inlining import causes_of_kernels
from asikit.cost._records import Site, Target, cause_text, read_side
from tests.cost.test_compare import TRACE, replayed

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
OLD, NEW = str(EXAMPLES / "ls-6.1.json"), str(EXAMPLES / "ls-6.12.json")

ANON = Target("page_fault", "write", "anon", "", "direct_map")
SHMEM = Target("page_fault", "read", "shmem", "shmem", "direct_map")


def site(stack: str, exits: float, *, by: str = "?", target: Target = ANON) -> Site:
    """Give exits with a stack, its functions from the innermost one outwards."""
    return Site(target, (*stack.split(), "?")[: max(2, len(stack.split()))], tuple(by.split()), exits)


def read(first: list[Site], second: list[Site]) -> dict[str, tuple[float, float]]:
    """Give the exits of both sides by what stands before the colon of a cause of anonymous memory."""
    (one, two), _ = causes_of_kernels([first], [second])
    return {
        name.split(": ")[1]: (one[0].get(name, 0.0), two[0].get(name, 0.0))
        for name in dict.fromkeys([*one[0], *two[0]])
    }


def test_recorded_kernels() -> None:
    """Of the same work on two kernels, what is named differently is one cause each: 2 exits fewer, not 48."""
    pair = compare(OLD, NEW, factors=["kernel"]).pairs[0]
    found = {change.name: (change.first.median, change.second.median) for change in pair.causes}
    cleared = "page_fault: clear_page_erms <- get_page_from_freelist | prep_new_page: write anon"
    renamed = {
        f"{cleared} (__handle_mm_fault | do_anonymous_page)": (48, 46),
        f"{cleared} (wp_page_copy | do_wp_page)": (7, 7),
        "page_fault: wp_page_copy | do_wp_page <- __handle_mm_fault: read shmem rootfs": (20, 20),
        "page_fault: copy_page <- do_fault | do_fault <- __handle_mm_fault: read shmem rootfs": (11, 11),
        "page_fault: getname_flags.part.0 <- user_path_at_empty | do_readlinkat": (5, 5),
    }
    assert {name: exits for name, exits in found.items() if "|" in name} == renamed
    assert pair.read_as_one == 5
    assert sum(abs(first - second) for first, second in found.values()) == 6
    assert sum(first for first, _ in found.values()) == 111
    assert sum(second for _, second in found.values()) == 107


ONE: dict[str, tuple[list[Site], list[Site], dict[str, tuple[float, float]]]] = {
    "a caller is inlined": (
        [site("clear alloc top", 98)],
        [site("clear post alloc top", 100)],
        {"clear <- alloc | post": (98, 100)},
    ),
    "the innermost function is inlined": (
        [site("copy fault top", 11)],
        [site("fault top", 12)],
        {"copy <- fault | fault <- top": (11, 12)},
    ),
    "both are": (
        [site("copy post alloc top", 3)],
        [site("alloc top", 3)],
        {"copy <- post | alloc <- top": (3, 3)},
    ),
    "at some places only": (
        [site("clear alloc top", 150)],
        [site("clear alloc top", 100), site("clear post alloc top", 50)],
        {"clear <- alloc | post": (150, 150)},
    ),
    "two of one side have one name on the other": (
        [site("clear alloc top", 60), site("clear bulk top", 5), site("clear top sys", 1)],
        [site("clear post alloc top", 61), site("clear post bulk top", 4), site("clear top sys", 1)],
        {"clear <- alloc | post": (60, 61), "clear <- bulk | post": (5, 4), "clear <- top": (1, 1)},
    ),
    "each side has inlined what the other shows": (
        [site("copy fault top", 20)],
        [site("wp fault top", 21)],
        {"copy | wp <- fault": (20, 21)},
    ),
    "the same of the caller": (
        [site("clear copy fault top", 20)],
        [site("clear wp fault top", 21)],
        {"clear <- copy | wp": (20, 21)},
    ),
    "the compiler made a copy of the function": (
        [site("clear.isra.0 alloc", 20)],
        [site("clear alloc.constprop.2", 21)],
        {"clear.isra.0 <- alloc | clear <- alloc.constprop.2": (20, 21)},
    ),
    "a piece of the inlined function is called there": (
        [site("clear alloc top", 9), site("free post.part.0 alloc", 1, target=SHMEM)],
        [site("clear post alloc top", 9)],
        {"clear <- alloc | post": (9, 9), "free <- post.part.0": (1, 0)},
    ),
    "the allocating function is inlined": (
        [site("clear alloc", 46, by="fault top")],
        [site("clear alloc", 48, by="anon fault top")],
        {"clear <- alloc": (46, 48)},
    ),
}


@pytest.mark.parametrize("case", ONE)
def test_one_change(case: str) -> None:
    """A cause that inlining named differently is one, under all its names, whichever side it is on."""
    first, second, wanted = ONE[case]
    assert read(first, second) == wanted
    assert sorted(read(second, first).values()) == sorted((two, one) for one, two in wanted.values())


def test_names_of_allocations() -> None:
    """Who allocated the page may be inlined too, or be a twin that an access has made known."""
    first = [site("clear alloc", 46, by="fault top"), site("clear alloc", 7, by="copy fault top")]
    second = [site("clear post alloc", 48, by="anon fault top"), site("clear post alloc", 7, by="wp fault top")]
    twins = [site("copy fault top", 20, target=SHMEM)], [site("wp fault top", 20, target=SHMEM)]
    (one, two), renamed = causes_of_kernels([first + twins[0]], [second + twins[1]])
    assert one == [
        {
            "page_fault: clear <- alloc | post: write anon (fault | anon)": 46,
            "page_fault: clear <- alloc | post: write anon (copy | wp)": 7,
            "page_fault: copy | wp <- fault: read shmem": 20,
        }
    ]
    assert [sorted(run.values()) for run in two] == [[7, 20, 48]]
    assert renamed == 3
    # Without the access nothing says which of the two the older kernel has inlined.
    assert causes_of_kernels([first], [second])[1] == 0


TWO: dict[str, tuple[list[Site], list[Site]]] = {
    "the other side has the function called there": (
        [site("clear alloc top", 98)],
        [site("clear post alloc top", 100), site("free post alloc top", 1, target=SHMEM)],
    ),
    "the stack may have two names": (
        [site("clear alloc x", 98), site("clear top y", 3)],
        [site("clear post alloc top", 100)],
    ),
    "another function of the other side may be the same": (
        [site("clear alloc top", 46), site("clear copy alloc top", 7)],
        [site("clear post alloc top", 48), site("clear wp alloc top", 7)],
    ),
    "two functions may be the twin": (
        [site("copy fault top", 20)],
        [site("wp fault top", 14), site("anon fault top", 6)],
    ),
    "two functions apart": (
        [site("clear one two top", 20)],
        [site("clear three four top", 20)],
    ),
    "the function is known to both": (
        [site("copy fault top", 20), site("wp other", 1, target=SHMEM)],
        [site("wp fault top", 20)],
    ),
    "both sides have both names": (
        [site("clear post alloc top", 60), site("clear alloc top", 100)],
        [site("clear post top", 50), site("clear alloc top", 110)],
    ),
    "each side tells apart what the other does not": (
        [site("clear post alloc top", 5), site("clear alloc top", 1), site("free hook x", 1, target=SHMEM)],
        [site("clear hook alloc top", 7), site("clear alloc top", 2), site("free post x", 1, target=SHMEM)],
    ),
    "inlined, or a twin": (
        [site("copy fault top", 7), site("fault top", 40)],
        [site("anon fault top", 47)],
    ),
    "too far": (
        [site("syscall entry", 3972)],
        [site("wake futex sys syscall entry", 3)],
    ),
    "a function between is not known": (
        [site("clear alloc top", 98)],
        [site("clear ? alloc top", 98)],
    ),
    "what called them is not known": (
        [site("copy ? top", 20)],
        [site("wp ? top", 20)],
    ),
    "other memory": (
        [site("clear alloc top", 98)],
        [site("clear post alloc top", 100, target=SHMEM)],
    ),
    "other allocation": (
        [site("clear alloc top", 98, by="fault top")],
        [site("clear post alloc top", 100, by="exec top")],
    ),
    "only names are known": (
        [site("clear alloc", 98)],
        [site("clear post", 100)],
    ),
}


@pytest.mark.parametrize("case", TWO)
def test_two_changes(case: str) -> None:
    """What could be something else is left as it is."""
    first, second = TWO[case]
    if case == "the other side has the function called there":
        first = [*first, site("free post alloc top", 1, target=SHMEM)]
    (one, two), renamed = causes_of_kernels([first], [second])
    assert renamed == 0
    assert (one, two) == ([plainly(first)], [plainly(second)])


def plainly(sites: list[Site]) -> dict[str, float]:
    """Give the exits by cause as one side names it."""
    found: dict[str, float] = defaultdict(float)
    for one in sites:
        found[cause_text(one.target, [one.stack[:2]], [one.allocation[0]])] += one.exits
    return found


def documents(tmp_path: Path, kernel: str) -> tuple[str, str]:
    """Write two documents, the second with another kernel and another caller of the clearing."""
    base: dict[str, Any] = {"reason": "page_fault", "function": "clear_page_erms", "access": "write", "exits": 10}
    base |= {"region": "direct_map", "kind": "anon", "cache": "", "allocated_by": "?"}
    stack = ["clear_page_erms", "post_alloc_hook", "get_page_from_freelist"]
    one = base | {"caller": "get_page_from_freelist"}
    two = base | {"caller": "post_alloc_hook", "stacks": [{"functions": stack, "allocation": [], "exits": 10}]}
    a = replayed(tmp_path / "a.json", 10, causes=[one])
    return a, replayed(tmp_path / "b.json", 10, causes=[two], trace=TRACE | {"kernel": kernel}, asikit="2")


def test_on_one_kernel_two_causes_are_two(tmp_path: Path) -> None:
    """A caller that is new on the same kernel is news; on another kernel it is not. The gate sees the same."""
    (same,) = compare(*documents(tmp_path, "6.1"), factors=["version"]).pairs
    assert [change.by.shift for change in same.causes] == [-10, 10]
    assert same.read_as_one == 0
    comparison = compare(*documents(tmp_path, "6.12"), factors=["version", "kernel"])
    (other,) = comparison.pairs
    assert [change.name for change in other.causes] == [
        "page_fault: clear_page_erms <- get_page_from_freelist | post_alloc_hook: write anon"
    ]
    assert [change.by.shift for change in other.causes] == [0]
    assert comparison.to_dict()["pairs"][0]["causes_read_as_one"] == 1
    assert not comparison.regressions(0)


def test_cut_off(tmp_path: Path) -> None:
    """If a document lacks causes, a sum of some of a row's would be no row's: nothing is joined."""
    a, b = documents(tmp_path, "6.12")
    document = json.loads(Path(b).read_text(encoding="utf-8"))
    Path(b).write_text(json.dumps(document | {"exits": 30}), encoding="utf-8")
    (pair,) = compare(a, b, anyway=True).pairs
    assert (pair.cut, pair.read_as_one, pair.causes) == (True, 0, ())


def test_several_runs(tmp_path: Path) -> None:
    """All runs of a side count for what its kernel's names are, and each keeps its own figures."""
    a, b = documents(tmp_path, "6.12")
    more = replayed(tmp_path / "c.json", 30, causes=[json.loads(Path(a).read_text())["causes"][0] | {"exits": 30}])
    (pair,) = compare(f"{a},{more}", b, anyway=True).pairs
    (change,) = pair.causes
    assert (change.first.median, change.second.median) == (20, 10)


def test_stacks_of_a_document_are_its_causes() -> None:
    """What a document lists by stack sums up to its causes, and no cause has lost its name."""
    ((record,),) = read_side(OLD)
    assert plainly(list(record.sites)) == record.causes
    assert sum(record.causes.values()) == record.metrics["exits"]
    assert max(len(one.stack) for one in record.sites) == 6


FUNCTIONS = st.sampled_from(["a", "b", "b.isra.0", "c", "d", "e", "f.part.0", "g", "?"])
PLACES = st.tuples(
    st.sampled_from([ANON, SHMEM]),
    st.lists(FUNCTIONS, min_size=2, max_size=5).map(tuple),
    st.lists(FUNCTIONS, min_size=1, max_size=3).map(tuple),
)
SIDES = st.lists(PLACES, max_size=8, unique=True)


def counted(places: list[tuple[Target, tuple[str, ...], tuple[str, ...]]]) -> list[Site]:
    """Give each place a number of exits by which any sum of them says what it is the sum of."""
    return [Site(*place, float(1 << number)) for number, place in enumerate(places)]


def parts(exits: float, sites: list[Site]) -> list[Site]:
    """Give the sites that a sum is of."""
    return [one for one in sites if int(exits) & int(one.exits)]


@given(SIDES, SIDES)
def test_nothing_gets_lost(one: Any, two: Any) -> None:  # noqa: ANN401
    """Each side's exits stay what they were, in all and for each target, and changes get no larger."""
    first, second = counted(one), counted(two)
    (a, b), _ = causes_of_kernels([first], [second])
    assert sum(a[0].values()) == sum(one.exits for one in first)
    assert sum(b[0].values()) == sum(one.exits for one in second)
    for target in (ANON, SHMEM):
        for run, sites in ((a[0], first), (b[0], second)):
            found = sum(exits for name, exits in run.items() if (": read shmem" in name) == (target is SHMEM))
            assert found == sum(one.exits for one in sites if one.target is target)
    plain = plainly(first), plainly(second)
    assert changes(a[0], b[0]) <= changes(*plain)


def changes(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Sum up what a comparison would show as changed."""
    return sum(abs(first.get(name, 0) - second.get(name, 0)) for name in {*first, *second})


@given(SIDES, SIDES)
def test_sides_are_alike(one: Any, two: Any) -> None:  # noqa: ANN401
    """Comparing B with A joins what comparing A with B joins."""
    first, second = counted(one), counted(two)
    (a, b), forward = causes_of_kernels([first], [second])
    (d, c), backward = causes_of_kernels([second], [first])
    joined = {(a[0].get(name, 0), b[0].get(name, 0)) for name in {*a[0], *b[0]}}
    assert joined == {(c[0].get(name, 0), d[0].get(name, 0)) for name in {*c[0], *d[0]}}
    assert forward == backward


@given(SIDES, SIDES)
def test_what_both_tell_apart_stays_apart(one: Any, two: Any) -> None:  # noqa: ANN401
    """No row has several causes of both sides, and a name that both sides have is in one row."""
    first, second = counted(one), counted(two)
    (a, b), _ = causes_of_kernels([first], [second])
    rows = [(parts(a[0].get(name, 0), first), parts(b[0].get(name, 0), second)) for name in {*a[0], *b[0]}]
    for sides in rows:
        assert min(len(plainly(side)) for side in sides) <= 1
        assert len({one.target for side in sides for one in side}) == 1
    for name in plainly(first).keys() & plainly(second).keys():
        assert any(name in plainly(mine) and name in plainly(theirs) for mine, theirs in rows)


@given(SIDES)
def test_one_kernel_is_like_itself(one: Any) -> None:  # noqa: ANN401
    """Where both sides have the same stacks every cause keeps its name."""
    sites = counted(one)
    sides, renamed = causes_of_kernels([sites], [sites])
    assert sides == ([plainly(sites)], [plainly(sites)])
    assert renamed == 0
