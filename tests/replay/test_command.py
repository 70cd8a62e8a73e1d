"""``asi replay``: what it prints and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from asikit.cli import main
from tests.builders import TraceBuilder, small_trace
from tests.replay.running import GFP_USER, written

if TYPE_CHECKING:
    from pathlib import Path


def asi(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run ``asi replay`` and give exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as end:
        main(["replay", *map(str, words)])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Three file reads by system call, one page fault that zeroes a page."""
    b = TraceBuilder()
    copy = ("copy_user_generic_unrolled", "_copy_to_iter", "copy_page_to_iter")
    for number in range(3):
        b.entry_syscall(17).touch_read(kind="shmem", cache="shmem", gfp=GFP_USER, stack=copy, label=str(number))
        b.return_user()
    zero = ("clear_page_erms", "get_page_from_freelist")
    fault = ("__alloc_pages", "vma_alloc_folio", "do_anonymous_page")
    b.entry_exception(14).touch_write(kind="anon", gfp=GFP_USER, stack=zero, allocated_by=fault).return_user()
    b.entry_syscall(39).return_user()
    return b.write(tmp_path / "t.asitrace").path


def test_text(trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One policy is shown in detail, as wide as it may be."""
    monkeypatch.setenv("COLUMNS", "85")
    code, out, err = asi(capsys, trace)
    assert (code, err) == (0, "")
    words = {" ".join(line.split()) for line in out.splitlines()}
    assert "Policy denylist-2025: everything that the kernel allocates for user data is sensitive" in words
    assert "round trips 5 kernel entry to return; domains: kvm and userspace" in words
    assert "without an exit 1 20.0%: ran restricted to the end, no flush" in words
    assert "exits 4 0.800 a round trip" in words
    assert "syscall pread64 3 0 3" in words
    assert "75.0% 3 _copy_to_iter <- copy_page_to_iter read shmem" in words
    assert "25.0% 1 clear_page_erms <- write anon (do_anonymous_page)" in words
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100


def test_side_by_side(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several policies are columns of one table; a comma list and the option repeated are the same."""
    code, out, _ = asi(capsys, trace, "--policy", "denylist-2025,ephmap", "--policy", "blanket")
    assert code == 0
    words = {" ".join(line.split()) for line in out.splitlines()}
    assert "denylist-2025 ephmap blanket" in words
    assert "round trips into the kernel 5 5 5" in words
    assert "exits 4 1 -" in words
    assert "ephemeral mappings instead 0 3 0" in words
    assert "branch predictor barriers (IBPB) 4 1 5" in words
    assert "75.0% _copy_to_iter <- copy_page_to_iter: read shmem" in words
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100
    assert asi(capsys, trace, "--policy", "denylist-2025, ephmap,blanket")[1] == out


def test_all_policies_fit(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six columns need no more than 120 columns, and no name is cut."""
    names = "denylist-2025,allowlist-2022,no-boot-memory,no-module-text,blanket,off"
    _, out, _ = asi(capsys, trace, "--policy", names)
    assert all(name in out for name in names.split(","))
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 120


def test_json(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has one result at the top, several in a list; --top limits causes."""
    document = json.loads(asi(capsys, trace, "--json")[1])
    assert (document["schema"], document["policy"], document["exits"]) == ("asikit.replay/1", "denylist-2025", 4)
    assert [cause["function"] for cause in document["causes"]] == ["_copy_to_iter", "clear_page_erms"]
    assert len(json.loads(asi(capsys, trace, "--json", "--top", 1)[1])["causes"]) == 1
    several = json.loads(asi(capsys, trace, "--json", "--policy", "off,blanket")[1])
    assert several["schema"] == "asikit.replay/1"
    assert [result["policy"] for result in several["results"]] == ["off", "blanket"]


def test_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same trace gives the same output, byte for byte."""
    path = small_trace().write(tmp_path / "t.asitrace").path
    assert len({asi(capsys, path, "--json", "--policy", "allowlist-2022,ephmap")[1] for _ in range(3)}) == 1


def test_class(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Round trips of classes that are not chosen are counted apart."""
    document = json.loads(asi(capsys, trace, "--json", "--class", "kvm")[1])
    assert (document["round_trips"], document["unprotected_round_trips"], document["exits"]) == (0, 5, 0)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    """--list-policies needs no trace."""
    code, out, _ = asi(capsys, "--list-policies")
    assert code == 0
    assert "denylist-2025   everything that the kernel allocates for user data is sensitive\n" in out
    assert "no-boot-memory  the denylist, and memory handed out at boot is not mapped\n" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "asi: error: missing argument 'TRACE' (see asi replay --help)\n"),
        (
            ["--class", "kmv"],
            2,
            (
                "asi: error: invalid value for '--class': no class 'kmv': there are kvm, userspace"
                " (see asi replay --help)\n"
            ),
        ),
        (
            ["--policy", "of"],
            2,
            (
                'asi: error: no policy "of"; the nearest is "off" (shipped: allowlist-2022, blanket, denylist-2025, '
                "ephmap, no-boot-memory, no-module-text, off; a file of your own ends in .toml)\n"
            ),
        ),
        (["--policy", "no.toml"], 2, "asi: error: no.toml: cannot read the policy: No such file or directory\n"),
    ],
)
def test_refused(words: list[str], code: int, message: str, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a user can do wrong is one line on stderr, nothing on stdout."""
    assert asi(capsys, *([trace] if words else []), *words) == (code, "", message)


def test_own_policy(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of the user's is a policy like the shipped ones."""
    path = written('title = "mine"\n[memory.sensitive]\nkinds = ["anon"]\n', tmp_path)
    document = json.loads(asi(capsys, trace, "--json", "--policy", path)[1])
    assert (document["policy"], document["exits"]) == ("mine", 1)


def test_policies_of_one_name(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files that would be columns of the same name are refused in one line."""
    (tmp_path / "other").mkdir()
    both = f"{written('', tmp_path)},{written('', tmp_path / 'other')}"
    message = 'two policies are called "mine": rename one of the files (see asi replay --help)'
    assert asi(capsys, trace, "--policy", both) == (2, "", f"asi: error: invalid value for '--policy': {message}\n")


def test_top_0(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--top 0 leaves out the tables of entries and causes, headings and all, for one policy and for several."""
    _, out, _ = asi(capsys, trace, "--top", 0)
    assert "exits" in out
    assert not any(word in out for word in ("Why it exited", "How the kernel was entered", "more"))
    assert "Main causes" not in asi(capsys, trace, "--top", 0, "--policy", "ephmap,denylist-2025")[1]
