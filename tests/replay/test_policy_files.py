"""Policy files: what is read, what is inherited, and what is refused with which words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.protocol import Mapped
from asikit.replay import (
    ExitOn,
    MechanismKind,
    PolicyError,
    Sensitivity,
    TouchKind,
    load_policy,
    shipped_policies,
)
from asikit.trace import Region
from tests.replay.running import written

if TYPE_CHECKING:
    from pathlib import Path


def test_shipped() -> None:
    """The policies that the project promises are there, and each says what it is."""
    names = shipped_policies()
    assert names == ("allowlist-2022", "blanket", "denylist-2025", "ephmap", "no-boot-memory", "no-module-text", "off")
    assert all(load_policy(name).name == name and load_policy(name).title for name in names)


def test_shipped_meaning() -> None:
    """The shipped policies differ in what their names say."""
    denylist, allowlist, ephmap = (load_policy(name) for name in ("denylist-2025", "allowlist-2022", "ephmap"))
    assert denylist.memory.default is Sensitivity.NONSENSITIVE
    assert denylist.memory.sensitive.gfp == ("__GFP_HARDWALL",)
    assert denylist.mechanism.exit_on is ExitOn.CONTEXT_SWITCH
    assert allowlist.memory.default is Sensitivity.SENSITIVE
    assert ephmap.memory == denylist.memory
    assert ephmap.ephmap.access == (TouchKind.READ,)
    modules, bpf = (load_policy("no-module-text").regions[region] for region in (Region.MODULES, Region.BPF))
    assert (
        modules
        == bpf
        == {TouchKind.READ: Mapped.MAPPED, TouchKind.WRITE: Mapped.MAPPED, TouchKind.FETCH: Mapped.ABSENT}
    )
    boot = load_policy("no-boot-memory")
    assert boot.memory.sensitive.unrecorded_kinds == (*denylist.memory.sensitive.unrecorded_kinds, "reserved")
    assert (boot.mechanism, boot.regions) == (denylist.mechanism, denylist.regions)
    assert load_policy("blanket").mechanism.kind is MechanismKind.BLANKET
    assert load_policy("off").mechanism.kind is MechanismKind.OFF


def test_empty_file(tmp_path: Path) -> None:
    """An empty file is a policy: ASI with nothing sensitive."""
    loaded = load_policy(written("", tmp_path))
    assert loaded.name == "mine"
    assert loaded.memory.default is Sensitivity.NONSENSITIVE
    assert loaded.mechanism.kind is MechanismKind.ASI


@pytest.mark.parametrize(
    ("regions", "fetch", "read"),
    [
        ("", Mapped.MAPPED, Mapped.MAPPED),
        ('modules = "absent"', Mapped.ABSENT, Mapped.ABSENT),
        ('modules = { fetch = "absent" }', Mapped.ABSENT, Mapped.MAPPED),
        ('modules = "absent"\nbpf = "mapped"', Mapped.MAPPED, Mapped.MAPPED),
        ('bpf = { read = "absent" }', Mapped.MAPPED, Mapped.ABSENT),
    ],
)
def test_bpf_is_as_modules(regions: str, fetch: Mapped, read: Mapped, tmp_path: Path) -> None:
    """What a policy says of modules holds for BPF programs, unless it speaks of those."""
    loaded = load_policy(written(f'inherits = "denylist-2025"\n[regions]\n{regions}\n', tmp_path))
    assert (loaded.regions[Region.BPF][TouchKind.FETCH], loaded.regions[Region.BPF][TouchKind.READ]) == (fetch, read)


def test_inherits(tmp_path: Path) -> None:
    """A file has the keys of the one it inherits from, but for those it sets; "..." stands for the inherited list."""
    written('inherits = "denylist-2025"\n[memory.sensitive]\ncaches = ["kmalloc-4k"]\n', tmp_path, "base.toml")
    text = 'inherits = "base.toml"\n[memory.sensitive]\ncaches = ["...", "inode_cache"]\n[mechanism]\nsmt = true\n'
    loaded = load_policy(written(text, tmp_path))
    assert loaded.memory.sensitive.caches == ("kmalloc-4k", "inode_cache")
    assert loaded.memory.sensitive.gfp == ("__GFP_HARDWALL",)
    assert loaded.mechanism.smt
    assert load_policy(tmp_path / "base.toml").mechanism.smt is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[memry]\n", 'mine.toml: a policy has no key "memry"; the nearest is "memory"'),
        ("[memory.sensitve]\n", 'mine.toml: [memory] has no key "sensitve"; the nearest is "sensitive"'),
        (
            '[memory.sensitive]\nslab_cache = ["x"]\n',
            'mine.toml: [memory.sensitive] has no key "slab_cache"; the nearest is "caches"',
        ),
        (
            '[cpu]\nzzz = ["x"]\n',
            'mine.toml: [cpu] has no key "zzz" (its keys: bugs, features, rsb_fill)',
        ),
        (
            '[memory.sensitive]\nkinds = ["page_cash"]\n',
            (
                'mine.toml: memory.sensitive.kinds: "page_cash" is not one of anon, free, hugetlb, kernel, mmio, '
                "page_cache, page_table, percpu, reserved, shmem, slab, stack, unknown, vmalloc; "
                'the nearest is "page_cache"'
            ),
        ),
        (
            '[regions]\ndirect_map = "by_memry"\n',
            (
                'mine.toml: regions.direct_map: "by_memry" is not one of absent, by_memory, mapped, userspace; '
                'the nearest is "by_memory"'
            ),
        ),
        (
            '[regions]\nmodules = { fetsh = "absent" }\n',
            'mine.toml: [regions.modules] has no key "fetsh"; the nearest is "fetch"',
        ),
        ('[mechanism]\npti = "yes"\n', "mine.toml: mechanism.pti: must be true or false, not a string ('yes')"),
        (
            '[mechanism]\nexit_on_tlb_flush = ["usr"]\n',
            (
                'mine.toml: mechanism.exit_on_tlb_flush: "usr" is not one of kernel, kernel_range, user, user_range; '
                'the nearest is "user"'
            ),
        ),
        (
            '[mechanism]\nexit_on_tlb_flush = "user"\n',
            "mine.toml: mechanism.exit_on_tlb_flush: must be a list, not a string ('user')",
        ),
        ("[mechanism]\npti = 1\n", "mine.toml: mechanism.pti: must be true or false, not a number (1)"),
        ("[memory.sensitive]\ngfp = 3\n", "mine.toml: memory.sensitive.gfp: must be a list, not a number (3)"),
        ("memory = 3\n", "mine.toml: memory: must be a table, not a number (3)"),
        (
            'inherits = "denylist-2052"\n',
            (
                'mine.toml: inherits: no policy "denylist-2052"; the nearest is "denylist-2025" '
                "(shipped: allowlist-2022, blanket, denylist-2025, ephmap, no-boot-memory, no-module-text, off; "
                "a file of your own ends in .toml)"
            ),
        ),
        (
            'inherits = "mine.toml"\n',
            "mine.toml: inherits: the files inherit from each other; break the circle",
        ),
        ('inherits = "gone.toml"\n', "mine.toml: inherits: there is no file gone.toml"),
        (
            "[memory\n",
            "mine.toml: not a TOML file: Expected ']' at the end of a table declaration (at line 1, column 8)",
        ),
    ],
)
def test_refused(text: str, message: str, tmp_path: Path) -> None:
    """A wrong file is refused in one line that names the file, the key, and the nearest right one."""
    with pytest.raises(PolicyError) as refusal:
        load_policy(written(text, tmp_path))
    assert str(refusal.value).replace(f"{tmp_path}/", "") == message


def test_not_text(tmp_path: Path) -> None:
    """A file that is no text is refused in one line."""
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError) as refusal:
        load_policy(tmp_path / "mine.toml")
    assert str(refusal.value) == f"{tmp_path}/mine.toml: not a TOML file: it is not UTF-8 text"


def test_unknown_name() -> None:
    """A name that is no policy is refused with the nearest one."""
    with pytest.raises(PolicyError) as refusal:
        load_policy("epmap")
    assert str(refusal.value) == (
        'no policy "epmap"; the nearest is "ephmap" (shipped: allowlist-2022, blanket, denylist-2025, ephmap, '
        "no-boot-memory, no-module-text, off; a file of your own ends in .toml)"
    )
