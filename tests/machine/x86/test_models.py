"""CPU models: the shipped ones, and what is refused in which words."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from asikit.machine.x86 import Bug, CpuModelError, Feature, Sharing, cpu_names, load_cpu
from asikit.machine.x86.model import Clearing
from asikit.protocol import CpuBug, CpuFeature, EffectKind, ProtocolConfig

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = (
    "alder-lake-12900k",
    "broadwell-e5-2640v4",
    "cascade-lake-4210r",
    "emerald-rapids-8592",
    "generic",
    "granite-rapids-6972p",
    "ice-lake-10351g1",
    "ice-lake-6354",
    "raptor-lake-13900k",
    "sapphire-rapids-8480",
    "sierra-forest-6780e",
    "skylake-6600u",
    "zen-1200",
    "zen-plus-2600x",
    "zen2-7452",
    "zen3-5600x",
    "zen4-9654",
    "zen5-9755",
)

LISTED = {Bug.MMIO, Bug.RETBLEED, Bug.GDS, Bug.SRBDS, Bug.ITS, Bug.ITS_GUEST_HOST, Bug.SRSO, Bug.TSA, Bug.VMSCAPE}
"""What the kernel knows by family and model, and not by a bit of the processor's."""
BLACKLIST = {
    # Linux 7.1, arch/x86/kernel/cpu/common.c, cpu_vuln_blacklist: the line of each model's. ITS without ITS_NATIVE_ONLY
    # is its_guest_host besides; MMIO_SBDS counts as SRBDS (cpu_set_bug_bits).
    "broadwell-e5-2640v4": {Bug.MMIO, Bug.VMSCAPE},
    "skylake-6600u": {Bug.MMIO, Bug.RETBLEED, Bug.GDS, Bug.SRBDS, Bug.VMSCAPE},
    "cascade-lake-4210r": {Bug.MMIO, Bug.RETBLEED, Bug.GDS, Bug.ITS, Bug.ITS_GUEST_HOST, Bug.VMSCAPE},
    "ice-lake-10351g1": {Bug.MMIO, Bug.SRBDS, Bug.RETBLEED, Bug.GDS, Bug.ITS},
    "ice-lake-6354": {Bug.MMIO, Bug.GDS, Bug.ITS},
    # The table has SRSO; srso_select_mitigation() excepts Zen and Zen 2 without SMT.
    "zen-1200": {Bug.RETBLEED, Bug.VMSCAPE},
    "zen2-7452": {Bug.RETBLEED, Bug.SRSO, Bug.VMSCAPE},
    "zen3-5600x": {Bug.SRSO, Bug.TSA, Bug.VMSCAPE},
    "sapphire-rapids-8480": {Bug.VMSCAPE},
    "emerald-rapids-8592": {Bug.VMSCAPE},
    "granite-rapids-6972p": {Bug.VMSCAPE},
    "sierra-forest-6780e": {Bug.VMSCAPE},
    "alder-lake-12900k": {Bug.VMSCAPE},
    "raptor-lake-13900k": {Bug.VMSCAPE},
    "zen-plus-2600x": {Bug.RETBLEED, Bug.SRSO, Bug.VMSCAPE},
    "zen4-9654": {Bug.SRSO, Bug.TSA, Bug.VMSCAPE},
    # The table has TSA; a bit of the processor's says that Zen 5 is free of it.
    "zen5-9755": {Bug.SRSO, Bug.VMSCAPE},
}

NO_KEY_LIKE_IT = (
    'my.toml: a CPU model has no key "zz" (its keys: bugs, costs, features, microarchitecture, paging, structures,'
    " threads, title, vendor)"
)
NO_SUCH_BUG = (
    'my.toml: bugs: "l1tff" is not one of bhi, contention, div0, gds, ibrs_scope, itlb, its, its_guest_host, l1tf,'
    " lvi, mds, meltdown, mmio, mmio_sbds, pbrsb, reptar_etc, retbleed, rfds, sls_misc, spectre_v1, spectre_v2,"
    " spectre_v2_user, srbds, srso, ssb, swapgs, taa, topstack, tsa, v3a_lazyfp, vmscape, vrs_l1des, zenbleed; the"
    ' nearest is "l1tf"'
)
NO_SUCH_PRIMITIVE = (
    'my.toml: structures.divider.cleared_by: "dumy_divide" is not one of bhb_clear, dummy_divide, ibpb, l1d_flush,'
    ' rsb_fill, verw; the nearest is "dummy_divide"'
)


def text(name: str = "generic") -> str:
    """The text of a shipped model."""
    return (files("asikit") / "data" / "cpus" / f"{name}.toml").read_text(encoding="utf-8")


def refusal(folder: Path, content: str) -> str:
    """The message with which a model file is refused, without the folder's name."""
    path = folder / "my.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CpuModelError) as caught:
        load_cpu(path)
    return str(caught.value).replace(f"{folder}/", "")


def test_shipped() -> None:
    """One for each row of the published cost table, newer ones, and the generic one; each has its file's name."""
    assert cpu_names() == SHIPPED
    assert [load_cpu(name).name for name in SHIPPED] == list(SHIPPED)


def test_generic_is_the_protocols_default() -> None:
    """What `ProtocolConfig()` assumes."""
    generic = load_cpu("generic")
    assert generic.protocol_features == ProtocolConfig().features == {CpuFeature.IBPB}
    assert generic.protocol_bugs == ProtocolConfig().bugs == {CpuBug.L1TF, CpuBug.MDS}


def test_clearing_primitives_are_the_protocols() -> None:
    """The names are values of EffectKind, and all of those that clear anything."""
    clearing = {"ibpb", "rsb_fill", "bhb_clear", "l1d_flush", "verw", "dummy_divide"}
    assert {primitive.value for primitive in Clearing} == clearing <= {kind.value for kind in EffectKind}


@pytest.mark.parametrize("name", SHIPPED)
def test_models_are_consistent(name: str) -> None:
    """What a vulnerability needs, and what its vendor never has."""
    model = load_cpu(name)
    assert (Bug.TAA not in model.bugs) or (Feature.TSX in model.features)
    assert (Bug.BHI not in model.bugs and Bug.PBRSB not in model.bugs) or (Feature.EIBRS in model.features)
    assert not (Bug.MDS in model.bugs and Feature.EIBRS in model.features)
    if model.vendor == "amd":
        assert not model.bugs & {Bug.MELTDOWN, Bug.L1TF, Bug.MDS, Bug.TAA, Bug.MMIO, Bug.GDS, Bug.SWAPGS, Bug.BHI}
        assert not model.bugs & {Bug.ITS, Bug.ITS_GUEST_HOST}
        # IBPB_RET, flush_l1d and AutoIBRS came with Zen 4.
        newer = name.startswith(("zen4", "zen5"))
        assert (EffectKind.IBPB.value in model.structures.rsb.cleared_by) == newer
        assert (model.structures.l1d.cleared_by == ("l1d_flush",)) == newer == (Feature.FLUSH_L1D in model.features)
        assert (Feature.EIBRS in model.features) == newer
    if model.vendor == "intel":
        assert not model.bugs & {Bug.SRSO, Bug.DIV0, Bug.ZENBLEED, Bug.TSA}
        assert (not model.bugs & {Bug.ITS, Bug.ITS_GUEST_HOST}) or (Feature.EIBRS in model.features)
        assert (EffectKind.L1D_FLUSH.value in model.structures.l1d.cleared_by) == (Feature.FLUSH_L1D in model.features)
        assert (EffectKind.VERW.value in model.structures.fill_buffer.cleared_by) == (
            Feature.MD_CLEAR in model.features
        )
    assert model.structures.staging_buffer.sharing is Sharing.UNCORE
    assert model.structures.pht.cleared_by == ()
    assert model.paging.invpcid <= model.paging.pcid


@pytest.mark.parametrize("name", BLACKLIST)
def test_bugs_are_the_kernels(name: str) -> None:
    """What the kernel knows by family and model; nothing of it is missing, and nothing is there besides."""
    assert load_cpu(name).bugs & LISTED == BLACKLIST[name]


def test_shared_buffers_leak_on_client_parts() -> None:
    """Intel's list of affected processors: SBDR and SBDS on the two client parts, DRPW alone on the servers."""
    assert {name for name in SHIPPED if Bug.MMIO_SBDS in load_cpu(name).bugs} == {"skylake-6600u", "ice-lake-10351g1"}
    for name in SHIPPED:
        bugs = load_cpu(name).bugs
        assert (Bug.MMIO_SBDS not in bugs) or (Bug.MMIO in bugs)
        assert (Bug.ITS_GUEST_HOST not in bugs) or (Bug.ITS in bugs)


@pytest.mark.parametrize("name", SHIPPED)
def test_facts_have_their_source(name: str) -> None:
    """Every feature and bug has a comment, and so has every structure and every number of paging."""
    lines = text(name).splitlines()
    for number, line in enumerate(lines):
        if line.startswith('    "'):
            assert "#" in line, line
        if line.startswith(("maxphyaddr", "tlb_entries", "threads")):
            assert lines[number - 1].startswith("#"), line
        if line.startswith("[structures.") and name != "generic":
            assert lines[number - 1].startswith("#"), line


def test_costs_are_kept_as_they_are(tmp_path: Path) -> None:
    """Whatever a table `[costs]` holds."""
    path = tmp_path / "my.toml"
    path.write_text(text() + "\n[costs]\nibpb = 4537\n[costs.deep]\nwhat = 'ever'\n", encoding="utf-8")
    assert load_cpu(path).costs == {"ibpb": 4537, "deep": {"what": "ever"}}
    assert load_cpu(path).name == "my"
    assert load_cpu("generic").costs == {}


def test_no_such_model() -> None:
    """The nearest, and all there are."""
    with pytest.raises(CpuModelError) as caught:
        load_cpu("skylake-6600")
    assert str(caught.value) == (
        'no CPU model "skylake-6600"; the nearest is "skylake-6600u" (shipped: alder-lake-12900k,'
        " broadwell-e5-2640v4, cascade-lake-4210r, emerald-rapids-8592, generic, granite-rapids-6972p,"
        " ice-lake-10351g1, ice-lake-6354, raptor-lake-13900k, sapphire-rapids-8480, sierra-forest-6780e,"
        " skylake-6600u, zen-1200, zen-plus-2600x, zen2-7452, zen3-5600x, zen4-9654, zen5-9755; a file of your"
        " own ends in .toml)"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "maxphyaddr = 46",
            "maxphysaddr = 46",
            'my.toml: [paging] has no key "maxphysaddr"; the nearest is "maxphyaddr"',
        ),
        ("[structures.btb]", "[structures.bhtb]", 'my.toml: [structures] has no key "bhtb"; the nearest is "btb"'),
        (
            'sharing = "uncore"',
            'shared = "uncore"',
            'my.toml: [structures.staging_buffer] has no key "shared"; the nearest is "sharing"',
        ),
        ('title = "Generic', 'zz = 1\ntitle = "Generic', NO_KEY_LIKE_IT),
        ('bugs = ["l1tf", "mds"]', 'bugs = ["l1tff"]', NO_SUCH_BUG),
        ('cleared_by = ["dummy_divide"]', 'cleared_by = ["dumy_divide"]', NO_SUCH_PRIMITIVE),
        ("maxphyaddr = 46\n", "", 'my.toml: [paging] lacks the key "maxphyaddr"'),
        ("threads = 2", "threads = true", "my.toml: threads: must be a number, not true or false (True)"),
        ("threads = 2", "threads = 3", "my.toml: threads: must be 1 to 2, not 3"),
        ("maxphyaddr = 46", "maxphyaddr = 53", "my.toml: paging.maxphyaddr: must be 32 to 52, not 53"),
        ("tlb_entries = 1536", "tlb_entries = 0", "my.toml: paging.tlb_entries: must be at least 1, not 0"),
        ("entries = 93", "entries = 0", "my.toml: structures.bhb.entries: must be at least 1, not 0"),
        (
            'title = "Generic',
            'name = "x"\ntitle = "Generic',
            "my.toml: name: a model's name is its file's; remove the key",
        ),
        ('vendor = "none"\n', "", 'my.toml: a CPU model lacks the key "vendor"'),
        (
            "threads = 2",
            "threads 2",
            "my.toml: not a TOML file: Expected '=' after a key in a key/value pair (at line 7, column 9)",
        ),
    ],
)
def test_refusals(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Each mistake in a model file, with the file, the key and what to do."""
    assert old in text()
    assert refusal(tmp_path, text().replace(old, new, 1)) == message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is not there, and one that is not text."""
    with pytest.raises(CpuModelError) as caught:
        load_cpu(tmp_path / "none.toml")
    assert str(caught.value) == f"{tmp_path}/none.toml: cannot read the CPU model: No such file or directory"
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CpuModelError) as caught:
        load_cpu(str(tmp_path / "bad.toml"))
    assert str(caught.value) == f"{tmp_path}/bad.toml: not a TOML file: it is not UTF-8 text"


def test_every_fact_is_loaded() -> None:
    """Nothing that a shipped file says is dropped on the way."""
    for name in SHIPPED:
        document = tomllib.loads(text(name))
        model = load_cpu(name)
        assert {bug.value for bug in model.bugs} == set(document["bugs"])
        assert {feature.value for feature in model.features} == set(document["features"])
        for structure, facts in document["structures"].items():
            loaded = getattr(model.structures, structure)
            assert [loaded.entries, loaded.sharing.value, [one.value for one in loaded.cleared_by]] == list(
                facts.values()
            )
