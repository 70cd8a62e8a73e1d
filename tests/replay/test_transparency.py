"""ASI changes costs, never results (I10): the same programs see the same, byte for byte, however the kernel is guarded.

Hypothesis writes programs of system calls. Each runs on a kernel without ASI, with ASI under every shipped policy, and
with nonsensitive mappings removed from the restricted address space. One CPU, where even what depends on the schedule
must be the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asikit.machine.kernel import Guest, Machine, MachineConfig, Observer, User, load_scenario
from asikit.machine.mm import PAGE_SIZE
from asikit.replay import load_policy, shipped_policies
from asikit.replay.machine import machine_config
from asikit.trace import Region

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.x86 import Access

PAGES = 4
Op = tuple[str, int, int]

_SIMPLE = st.tuples(
    st.sampled_from(
        ["getpid", "yield", "compute", "store", "load", "read", "write", "pwrite", "remap", "brk", "bad", "futex"]
    ),
    st.integers(0, PAGES * PAGE_SIZE - 64),
    st.integers(1, 64),
)
_NESTED = st.tuples(st.sampled_from(["fork", "thread", "guest"]), st.just(0), st.integers(1, 3))
PROGRAMS = st.lists(st.one_of(_SIMPLE, _SIMPLE, _SIMPLE, _NESTED), min_size=1, max_size=12)


@dataclass
class Runner:
    """Interprets a program; children run the rest of it."""

    ops: list[Op]

    def __call__(self, user: User) -> int:
        """Do all operations; errors are results, too."""
        memory, fd = user.mmap(PAGES * PAGE_SIZE), user.open("/data", 2)
        reading, writing = user.pipe()
        user.write(writing, b"first")
        for number, op in enumerate(self.ops):
            try:
                memory = self._do(user, op, memory, fd, Runner(self.ops[number + 1 :]))
            except OSError as error:
                user.write(writing, b"%d" % (error.errno or 0))
            user.write(writing, b"x")
        user.write(1, user.read(reading, 4096) + user.load(memory, PAGES * PAGE_SIZE)[:: 64 * 5])
        return len(self.ops)

    def _do(self, user: User, op: Op, memory: int, fd: int, rest: Runner) -> int:
        name, place, size = op
        simple: dict[str, Callable[[], object]] = {
            "getpid": user.getpid,
            "yield": user.sched_yield,
            "compute": lambda: user.compute(place % 700),
            "store": lambda: user.store(memory + place, bytes([size]) * size),
            "load": lambda: user.load(memory + place, size),
            "read": lambda: user.pread(fd, size * 50, place),
            "write": lambda: user.write(fd, bytes([size]) * size),
            "pwrite": lambda: user.pwrite_from(fd, memory + place, size, place // 2),
            "brk": lambda: user.sbrk(size * 100),
            "bad": lambda: user.write_from(1, place, size),
            "futex": lambda: user.futex_wait(memory, 0xBAD),
            "fork": lambda: self._fork(user, rest),
            "thread": lambda: user.join(user.thread(lambda thread: thread.store(memory, b"thread"))),
            "guest": lambda: self._guest(user, size),
        }
        if name == "remap":
            user.munmap(memory, PAGES * PAGE_SIZE)
            return user.mmap(PAGES * PAGE_SIZE)
        simple[name]()
        return memory

    @staticmethod
    def _fork(user: User, rest: Runner) -> None:
        user.fork(Runner(rest.ops[:3]))
        user.wait()

    @staticmethod
    def _guest(user: User, pages: int) -> None:
        def program(guest: Guest) -> None:
            for page in range(pages):
                guest.store(page * PAGE_SIZE, b"guest")
                guest.cpuid()
            guest.outb(0x3F8, guest.load(0, 1)[0])

        vcpu = user.create_vm(4 * PAGE_SIZE).vcpu(program)
        while not (stop := vcpu.run()).halted:
            user.write(1, stop.data)


def _run(config: MachineConfig, ops: list[Op], *observers: Observer) -> tuple[bytes, bytes]:
    """Return what the programs saw, and the console."""
    machine = Machine(config, debug=True)
    machine.file("/data", bytes(range(256)) * 64)
    machine.process(Runner(ops), name="first")
    machine.process(Runner(ops[::2]), name="second")
    for observer in observers:
        machine.observe(observer)
    return machine.run().results, machine.console


CONFIGS = {
    **{name: machine_config(load_policy(name)) for name in shipped_policies() if name != "off"},
    **{
        f"without {region}": MachineConfig(unmapped=frozenset({region.value}))
        for region in (Region.DIRECT_MAP, Region.VMEMMAP, Region.MODULES, Region.FIXMAP, Region.LDT, Region.ESPFIX)
    },
}


@pytest.mark.parametrize("programs", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_results_are_the_same_under_every_policy(programs: int) -> None:
    """Every shipped policy, and whole regions removed, against a kernel without ASI."""

    @settings(max_examples=programs, suppress_health_check=list(HealthCheck))
    @given(PROGRAMS)
    def same(ops: list[Op]) -> None:
        wanted = _run(MachineConfig(asi=False), ops)
        for name, config in CONFIGS.items():
            assert _run(config, ops) == wanted, name

    same()


class _Touched(Observer):
    """Collects the kernel pages that are touched."""

    def __init__(self) -> None:
        self.pages: set[int] = set()

    def touch(self, cpu: int, access: Access, vaddr: int, paddr: int) -> None:
        """Note the page."""
        if vaddr >> 63:
            self.pages.add(vaddr & -PAGE_SIZE)


EVERYTHING: list[Op] = [
    ("store", 100, 50),
    ("read", 0, 60),
    ("fork", 0, 1),
    ("guest", 0, 3),
    ("thread", 0, 1),
    ("pwrite", 64, 64),
    ("remap", 0, 1),
    ("bad", 0, 8),
]


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_removing_any_one_touched_mapping_changes_no_result(part: int) -> None:
    """All kernel pages that a run touches, one at a time (a quarter of them in each part)."""
    touched = _Touched()
    wanted = _run(MachineConfig(asi=False), EVERYTHING)
    assert _run(MachineConfig(), EVERYTHING, touched) == wanted
    pages = sorted(touched.pages)
    assert len(pages) > 40
    for page in pages[part::4]:
        assert _run(MachineConfig(unmapped=frozenset({page})), EVERYTHING) == wanted, hex(page)


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_gives_the_same_results_under_every_policy(path: Path) -> None:
    """With ASI, without it, and under each shipped policy."""
    scenario = load_scenario(path)

    def results(config: MachineConfig) -> bytes:
        machine = Machine(config)
        scenario.run(machine)
        return machine.report().results

    wanted = results(replace(scenario.config, asi=False))
    assert results(scenario.config) == wanted
    for name in shipped_policies():
        assert results(machine_config(load_policy(name), scenario.config)) == wanted, name
