"""Advice about recordings of a real kernel: it is kept by a replay, and no published policy is better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asikit.advise import USER_DATA, AdviseError, Study, advise, policy_text
from asikit.cli import main
from asikit.replay import DeclaredBy, ExitOn, MemorySite, Stretches, load_policy, replay
from asikit.trace import Trace
from tests.builders import TraceBuilder

SAMPLES = Path(__file__).parents[2] / "src/asikit/data/samples"
CHANGES: dict[str, dict[str, Any]] = {
    'exit_on = "mm_switch"': {"exit_on": ExitOn.MM_SWITCH},
    "noflush = true": {"noflush": True},
    'exit_on = "mm_switch", noflush = true': {"exit_on": ExitOn.MM_SWITCH, "noflush": True},
}
KVM, PHASES = str(SAMPLES / "kvm-guest.asitrace"), str(SAMPLES / "phases.asitrace")


def asi(*words: str) -> int:
    """Run the command and give its exit status."""
    with pytest.raises(SystemExit) as end:
        main(["advise", *words])
    assert isinstance(end.value.code, int)
    return end.value.code


def document(capsys: pytest.CaptureFixture[str], *words: str) -> Any:  # noqa: ANN401  (JSON)
    """Give what the command prints as JSON."""
    assert asi(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "sample", ["phases", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kvm-guest", "page-cache"))]
)
def test_files_keep_what_they_promise(sample: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each choice as a policy file has exactly the exits that it promises."""
    trace = str(SAMPLES / f"{sample}.asitrace")
    advice = document(capsys, trace, "--must-protect", "none", "-o", str(tmp_path / "choices"))
    files = sorted((tmp_path / "choices").iterdir())
    assert len(files) == len(advice["choices"])
    replayed = [result.exits for result in replay(Trace.open(trace), [load_policy(str(file)) for file in files])]
    assert replayed == [choice["exits"] for choice in advice["choices"]]
    assert [choice["exits"] for choice in advice["choices"]] == sorted(replayed)
    assert replayed[0] == advice["forced"]
    assert replayed[-1] == advice["most"]


@pytest.mark.parametrize("sample", ["kvm-guest", "phases", pytest.param("page-cache", marks=pytest.mark.slow)])
def test_no_published_policy_is_better(sample: str) -> None:
    """At the exposure of each there are no more exits, and at its exits there is no more exposure."""
    subject = Study({sample: Trace.open(SAMPLES / f"{sample}.asitrace")}, load_policy("ephmap"), protect=())
    names = ("denylist-2025", "ephmap", "no-boot-memory")
    found = advise(subject, [load_policy(name) for name in names], points=2)
    for row in found.beside:
        assert row.least is not None
        assert row.fewest.exits <= row.exits
        assert row.least.exposure < row.exposure


def test_user_data_stays_sensitive(capsys: pytest.CaptureFixture[str]) -> None:
    """Unless it is asked for, no choice declares what has a page of user data, whoever allocated it."""
    advice = document(capsys, PHASES)
    sites = Stretches.of(Trace.open(PHASES), load_policy("ephmap")).sites
    user = {str(site) for site, kinds in zip(sites.sites, sites.kinds, strict=True) if kinds & set(USER_DATA)}
    assert user
    assert set(advice["protected"]) == user
    assert not [choice for choice in advice["choices"] if user & set(choice["sites"])]


def test_protected_site(capsys: pytest.CaptureFixture[str]) -> None:
    """A site may be protected by its name, or by a glob."""
    advice = document(capsys, PHASES, "--must-protect", "caches filp, caches kmalloc-*")
    assert "caches filp" in advice["protected"]
    assert all(name.startswith(("caches filp", "caches kmalloc-")) for name in advice["protected"])
    assert not [choice for choice in advice["choices"] if set(choice["sites"]) & set(advice["protected"])]


def test_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """What exposes nothing is declared in each choice that it helps; what exposes much is declared last."""
    (first, *_) = document(capsys, KVM, "--weight", "*=0")["choices"]
    assert first["exposure"] == 0
    choices = document(capsys, KVM, "--weight", "caches filp=100000")["choices"]
    without = [choice for choice in choices if "caches filp" not in choice["sites"]]
    assert min(choice["exits"] for choice in without) > choices[0]["exits"]
    assert max(choice["exposure"] for choice in without) < 100_000


def test_several_recordings(capsys: pytest.CaptureFixture[str]) -> None:
    """One policy for both: its exits and its exposure are the sums; nobody is better off than alone."""
    both = document(capsys, KVM, PHASES, "--points", "4")
    assert both["recordings"] == ["kvm-guest", "phases"]
    for choice in both["choices"]:
        parts = choice["parts"]
        assert sum(part["exits"] for part in parts) == choice["exits"]
        assert sum(part["exposure"] for part in parts) == choice["exposure"]
        assert all(part["own_best"] <= part["exits"] for part in parts)


def test_price(capsys: pytest.CaptureFixture[str]) -> None:
    """More exits cost more, as `asi cost` says of the same policy."""
    choices = document(capsys, KVM, "--points", "2", "--cpu", "zen2-7452")["choices"]
    best = [choice["overhead"]["zen2-7452"]["best"] for choice in choices]
    assert best[0] < best[-1]


@pytest.mark.parametrize("base", ["ephmap", "allowlist-2022"])
def test_variants(base: str) -> None:
    """What another mechanism has is what a replay under it has, with all declared that may be."""
    trace, policy = Trace.open(KVM), load_policy(base)
    found = {row.words: row for row in Study({"kvm-guest": trace}, policy, protect=()).variants()}
    assert set(found) == ({"", *CHANGES} if base == "ephmap" else {""})
    for words, row in found.items():
        under = replace(policy, mechanism=replace(policy.mechanism, **CHANGES.get(words, {})))
        stretches = Stretches.of(trace, under)
        declared = stretches.sites.policy(under, stretches.sites.sites, name="all")
        assert row.forced == row.fewest == replay(trace, [declared])[0].exits


def test_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """The one choice for an exposure has no more exits than any of the frontier with as little."""
    whole = document(capsys, KVM)["choices"]
    (one,) = document(capsys, KVM, "--budget", "100")["choices"]
    assert one["exposure"] <= 100
    assert one["exits"] == min(choice["exits"] for choice in whole if choice["exposure"] <= 100)


def test_functions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fewest functions for each number of exits; as policy files they have just these."""
    words = (PHASES, "--ephemeral", "-o", str(tmp_path / "choices"))
    choices = document(capsys, *words)["ephemeral"]
    files = sorted((tmp_path / "choices").iterdir())
    replayed = replay(Trace.open(PHASES), [load_policy(str(file)) for file in files])
    assert [result.exits for result in replayed] == [choice["exits"] for choice in choices]
    sizes = [len(choice["functions"]) for choice in choices]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0
    assert choices[0]["exits"] == document(capsys, PHASES)["forced"]


def test_functions_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """They are named, from the most to none."""
    assert asi(PHASES, "--ephemeral") == 0
    assert "_copy_to_iter" in capsys.readouterr().out


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    """Who needs a site is shown by a replay under which it alone is sensitive."""
    assert asi(KVM, "--explain", "caches kvm_vcpu", "--top", "1") == 0
    out = capsys.readouterr().out
    assert out.startswith("caches kvm_vcpu: exposes ")
    assert "slab kvm_vcpu" in out


def test_text_of_a_policy_is_the_policy(tmp_path: Path) -> None:
    """Whatever the names are."""
    names = ['a "quoted" name', "back\\slash", "ümlaut", "tab\t"]
    subject = Study({"kvm-guest": Trace.open(KVM)}, load_policy("denylist-2025"))
    sites = [*subject.sites, *(MemorySite(DeclaredBy.CACHES, name) for name in names)]
    stretches = Stretches.of(Trace.open(KVM), subject.base)
    policy = stretches.sites.policy(subject.base, sites[::2], name="p", title='a "title"', known=sites)
    (tmp_path / "p.toml").write_text(policy_text(policy, "Two\nlines."), encoding="utf-8")
    assert load_policy(str(tmp_path / "p.toml")) == policy


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: does not exist"),
        ([KVM, "--policy", "blanket"], "policy blanket is no ASI"),
        ([KVM, "--must-protect", "annon"], '--must-protect annon: no such kind or site; the nearest is "anon"'),
        ([KVM, "--weight", "caches flip=3"], '--weight caches flip: no such site; the nearest is "caches filp"'),
        ([KVM, "--weight", "filp"], "invalid value for '--weight'"),
        ([KVM, "--explain", "caches flip"], "--explain caches flip: no such site"),
        ([KVM, PHASES, "--cpu", "zen2-7452"], "--cpu prices one recording"),
        ([KVM, "-o", "."], "."),
        ([KVM, PHASES, "--ephemeral"], "--ephemeral looks at one recording"),
        ([], "missing argument 'TRACE...'"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:  # noqa: ANN401  (pytest's)
    """What a user can cause ends in one line."""
    monkeypatch.chdir(tmp_path)
    assert asi(*words) in {1, 2}
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"asi: error: {message}")


def test_nothing_to_choose(tmp_path: Path) -> None:
    """A recording that touches nothing has one choice."""
    trace = TraceBuilder().return_user().entry_syscall(0).return_user().write(tmp_path / "t.asitrace")
    found = advise(Study({"t": trace}, load_policy("denylist-2025"), protect=()))
    assert [(choice.exits, choice.exposure, choice.sites) for choice in found.choices] == [(0, 0, ())]


def test_replay_that_differs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise that a replay does not keep is an error, never an answer."""
    subject = Study({"phases": Trace.open(PHASES)}, load_policy("ephmap"))
    monkeypatch.setattr("asikit.advise.advice.replay", lambda trace, policies: replay(trace, policies[::-1]))
    with pytest.raises(AdviseError, match=r"promises [\d,]+ exits, its replay has"):
        advise(subject)
