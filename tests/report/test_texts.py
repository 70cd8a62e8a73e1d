"""What reports look like on 80 columns, word for word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.report.view.text import text
from tests.report.reports import REPORTS

if TYPE_CHECKING:
    from pathlib import Path


def shown(name: str, folder: Path) -> str:
    """Return a report as it is shown on 80 columns, with a newline before it."""
    return f"\n{text(REPORTS[name](folder), 80)}"


def test_replayed_once(tmp_path: Path) -> None:
    """Counts, the parts, the entries, the causes; the name of a task moves no cursor."""
    assert (
        shown("replayed_once", tmp_path)
        == r"""
Policy denylist-2025: everything that the kernel allocates for user data is
sensitive

round trips         7  kernel entry to return; domains: kvm and userspace
  without an exit   1  14.3%: ran restricted to the end, no flush
exits               6  0.857 a round trip
  page fault        5  the kernel touched missing memory, or faulted
  context switch    1  the scheduler switched tasks
ibpb                6  branch predictor barriers (IBPB)
rsb fill            6  return stack refills
l1d flush           7  L1 data cache flushes
verw                7  buffer clears (VERW)
CR3 writes         13  page table switches
TLB flushes        13  by CR3 writes and otherwise

By task

 task        round trips   without exit   exits   a round trip   share
 ─────────────────────────────────────────────────────────────────────
 fio                   6              1       5          0.833   83.3%
 a\x1b[2Jb             1              0       1          1.000   16.7%
 ?                     0              0       0              -    0.0%

How the kernel was entered

 entry                     round trips   without exit   exits
 ────────────────────────────────────────────────────────────
 syscall pread64                     4              0       4
 exception 14 page fault             1              0       1
 interrupt 236                       1              0       1
 ... and 1 more entries

Why it exited, most frequent first

                                                 what it touched (allocated
 share   exits   function <- caller              by)
 ─────────────────────────────────────────────────────────────────────────────
 66.7%       4   copy_page_from_iter_atomic <-   read shmem
                 generic_perform_write           (shmem_alloc_folio)
 16.7%       1   ?                               the scheduler switched tasks
 16.7%       1   clear_page_erms <-              write anon
                 get_page_from_freelist

"""
    )


def test_replayed_off(tmp_path: Path) -> None:
    """Without ASI nothing exits, so that there is nothing about exits."""
    assert (
        shown("replayed_off", tmp_path)
        == """
Policy blanket: no ASI: flush on every entry to and every return from the kernel

round trips   7  kernel entry to return; domains: kvm and userspace
ibpb          7  branch predictor barriers (IBPB)
rsb fill      7  return stack refills
l1d flush     8  L1 data cache flushes
verw          8  buffer clears (VERW)
CR3 writes   15  page table switches, 15 kept the TLB
TLB flushes   0  by CR3 writes and otherwise

How the kernel was entered

 entry                     round trips   without exit   exits
 ────────────────────────────────────────────────────────────
 syscall pread64                     4              -       -
 exception 14 page fault             1              -       -
 interrupt 236                       1              -       -
 syscall read                        1              -       -

"""
    )


def test_side_by_side(tmp_path: Path) -> None:
    """Seven policies do not fit beside one another: the tables are in pieces, each of which says what its rows are."""
    assert (
        shown("side_by_side", tmp_path)
        == r"""

                                  allowlist-2022  blanket  denylist-2025  ephmap
────────────────────────────────────────────────────────────────────────────────
round trips into the kernel                    7        7              7       7
  that ran without an exit                 28.6%        -          14.3%   14.3%
exits                                          5        -              6       6
  per round trip                           0.714        -          0.857   0.857
branch predictor barriers (IBPB)               5        7              6       6
return stack refills                           5        7              6       6
L1 data cache flushes                          6        8              7       7
buffer clears (VERW)                           6        8              7       7
page table switches (CR3 writes)              11       15             13      13

                                    no-boot-memory   no-module-text   off
 ────────────────────────────────────────────────────────────────────────
 round trips into the kernel                     7                7     7
   that ran without an exit                  14.3%            14.3%     -
 exits                                           6                6     -
   per round trip                            0.857            0.857     -
 branch predictor barriers (IBPB)                6                6     0
 return stack refills                            6                6     0
 L1 data cache flushes                           7                7     0
 buffer clears (VERW)                            7                7     0
 page table switches (CR3 writes)               13               13     0

By task

           round          exits,   exits,         exits,  exits,          exits,
task       trips  allowlist-2022  blanket  denylist-2025  ephmap  no-boot-memory
────────────────────────────────────────────────────────────────────────────────
fio            6               4        -              5       5               5
a\x1b[2Jb      1               1        -              1       1               1
?              0               0        -              0       0               0

 task        exits, no-module-text   exits, off
 ──────────────────────────────────────────────
 fio                             5            -
 a\x1b[2Jb                       1            -
 ?                               0            -

Main causes of exits under allowlist-2022
  80.0%  copy_page_from_iter_atomic <- generic_perform_write: read shmem
         (shmem_alloc_folio)
  20.0%  clear_page_erms <- get_page_from_freelist: write anon
Main causes of exits under denylist-2025
  66.7%  copy_page_from_iter_atomic <- generic_perform_write: read shmem
         (shmem_alloc_folio)
  16.7%  the scheduler switched tasks
  16.7%  clear_page_erms <- get_page_from_freelist: write anon
Main causes of exits under ephmap
  66.7%  copy_page_from_iter_atomic <- generic_perform_write: read shmem
         (shmem_alloc_folio)
  16.7%  the scheduler switched tasks
  16.7%  clear_page_erms <- get_page_from_freelist: write anon
Main causes of exits under no-boot-memory
  66.7%  copy_page_from_iter_atomic <- generic_perform_write: read shmem
         (shmem_alloc_folio)
  16.7%  the scheduler switched tasks
  16.7%  clear_page_erms <- get_page_from_freelist: write anon
Main causes of exits under no-module-text
  66.7%  copy_page_from_iter_atomic <- generic_perform_write: read shmem
         (shmem_alloc_folio)
  16.7%  the scheduler switched tasks
  16.7%  clear_page_erms <- get_page_from_freelist: write anon
"""
    )


def test_compared_runs(tmp_path: Path) -> None:
    """Several runs a side have medians and intervals."""
    assert (
        shown("compared_runs", tmp_path)
        == """
No factor (policy, kernel, processor, ...) differs between the sides.
8 and 8 runs: medians with 95 % intervals; ~ is no difference

denylist-2025, kvm and userspace

                                A       B   change                interval
 ─────────────────────────────────────────────────────────────────────────
 exits                      403.5   303.5     -100   -24.8%    -103 to -97
 round trips                1,000   1,000        ~
 round trips without exit   596.5   696.5     +100   +16.8%      97 to 103
 cr3 writes                   807     607     -200   -24.8%   -206 to -194
 tlb flushes                  807     607     -200   -24.8%   -206 to -194
 ibpb                       403.5   303.5     -100   -24.8%    -103 to -97

Most changed
  -100  page_fault: _copy_to_iter <- copy_page_to_iter: read shmem
"""
    )


def test_host(tmp_path: Path) -> None:
    """What is covered, what is left, what is not affected, and what nobody tells; long lists break between words."""
    assert (
        shown("host", tmp_path)
        == """
Intel(R) Core(TM) i7-6600U CPU @ 2.60GHz (GenuineIntel, family 6, model 78,
stepping 3), sibling threads unknown
Nearest CPU model: asi cost --cpu skylake-6600u
This is a virtual machine. Its host may have mitigations that are not seen here,
and may hide vulnerabilities and flags.
Unlike this machine, the model has retbleed: prices of these are not this
machine's.

 vulnerability   now                        with ASI   unnecessary then
 ──────────────────────────────────────────────────────────────────────────────
 Spectre v2      Mitigation: IBRS; IBPB:    partly     IBRS (with a stun), IBPB
                 conditional; STIBP:                   at a change of
                 conditional; RSB                      processes, RSB filling
                 filling; PBRSB-eIBRS:
                 Not affected
 Meltdown        Mitigation: PTI            covered    PTI

  Spectre v2: user code against user code

Not affected: retbleed

Vulnerable today: in part spectre_v2

Not told (an older kernel has no such file, or it was not given): vmscape
Of these skylake-6600u has: vmscape

Unnecessary with ASI and a stun: IBRS
Unnecessary with ASI: PTI, IBPB at a change of processes, RSB filling
"""
    )


def test_calibration(tmp_path: Path) -> None:
    """Figures, intervals, cycles; and why something was not measured."""
    assert (
        shown("calibration", tmp_path)
        == """
Intel(R) Core(TM) i7-6600U CPU @ 2.60GHz

 cost            median        95 % interval   cycles   what it is
 ──────────────────────────────────────────────────────────────────────────────
 frequency     2.60 GHz         2.59 to 2.61        -   the core's clock while
                                                        it works
 verw          199.5 ns      too few samples      519   overwriting fill
                                                        buffers, store buffer
                                                        and load ports
 ibpb        1,745.0 ns   1,700.2 to 1,800.0    4,537   indirect branch
                                                        predictor barrier, the
                                                        instruction alone

Not measured
  cr3_write  user mode may not write CR3: what a switch of address spaces costs
             is seen from the kernel only
"""
    )


def test_refuted(tmp_path: Path) -> None:
    """The verdict first, then each step; long ones are broken below their beginning."""
    assert (
        shown("refuted", tmp_path)
        == """
REFUTED: asi with no-stun, 1 hardware thread, domains: kvm, userspace

method  explore    all interleavings, no NMIs
states  1,825,243  4,191,695 transitions
time    7.4 s
T1      broken     untrusted code never observes what depends on a secret

Counterexample: a leak, in 2 steps
   1. thread 0 enters the guest: set_target, set_curr_asi, write_cr3(restricted
      kvm), l1d_flush, verw, clear_taints
   2. thread 0 exits explicitly
   => the guest of the process learns data of the kernel: on thread 1 it sampled
      the L1D cache
   On the machine: leak: the guest learns data of the kernel (1 step could not
                   be followed)

Assumed
  H1  Speculation reaches what the present page tables map, and nothing else,
      but at any time.

Not proved
  the kernel's code beyond the transitions: that it calls them where it must
"""
    )


def test_proved_by_induction(tmp_path: Path) -> None:
    """What was asked of the solver, and the invariant."""
    assert (
        shown("proved_by_induction", tmp_path)
        == """
PROVED: asi, 2 hardware threads, domains: kvm, userspace

method       induction  all schedules, NMIs between any two micro-operations, 1
                        deep
questions    61         to the solver; each answered as hoped
time         7.4 s
T1           holds      untrusted code never observes what depends on a secret
no deadlock  unknown    no thread waits for its sibling for ever, whatever comes
                        in between

The invariant
  I1: a taint of the kernel's data is set wherever a structure may hold it

Assumed
  H1  Speculation reaches what the present page tables map, and nothing else,
      but at any time.

Not proved
  the kernel's code beyond the transitions: that it calls them where it must
"""
    )


def test_mutants(tmp_path: Path) -> None:
    """A row for each mutant, and what the machine says of it."""
    assert (
        shown("mutants", tmp_path)
        == """

 mutant           SMT off   SMT on    steps   what comes of it
 ──────────────────────────────────────────────────────────────────────────────
 no-stun          PROVED    REFUTED       2   leak; on the machine too
 no-barrier       PROVED    PROVED            harmless
 stale-target *   REFUTED   -             2   leak; the machine goes wrong with
                                              the unchanged protocol too

2 of 3 mutants are refuted. `asi verify --mutant NAME` shows the counterexample
of one.
1 of them break the model machine too.
* a mutant of the variant lazy; it is harmless without that variant (asi verify
  --mutant lazy)
"""
    )


def test_equivalence(tmp_path: Path) -> None:
    """Both verdicts side by side, and what tells them apart."""
    assert (
        shown("equivalence", tmp_path)
        == """

 situation         ASI      blanket
 ──────────────────────────────────────────────────────────────────────────────
 an NMI            PROVED   PROVED    between any two micro-operations of a
                                      transition
 a second thread   PROVED   REFUTED   on the same core, of the same process

  a second thread, blanket: the guest of the process learns data of the kernel:
                          on thread 1 it sampled the L1D cache
"""
    )


def test_attacks(tmp_path: Path) -> None:
    """A block for each vulnerability; why there is no attack stands in the place of one."""
    assert (
        shown("attacks", tmp_path)
        == """
                none      asi
l1tf on skylake-6600u
  user_kernel   LEAK      -
  cross_thread  LEAK      ?
contention: unknown, not modelled: it times ports, walks and power: the model
                     has no time, and what leaks is an access pattern

2 of 5 attacks leak (LEAK); - is tried, nothing found; ? unknown: not modelled,
or not tried to the end
"""
    )


def test_many_attacks(tmp_path: Path) -> None:
    """Many mitigations are columns a, b, c, with their meaning below."""
    assert (
        shown("many_attacks", tmp_path)
        == """
               a  b  c  d  e  f  g
l1tf on skylake-6600u
  user_kernel  -  -  -  -  -  -  -

0 of 7 attacks leak (LEAK); - is tried, nothing found
a  none: no mitigation at all
b  linux: what Linux does by default (mitigations=auto, which leaves SMT on)
c  blanket: PTI, no SMT, predictors flushed at each entry, data at each return
d  asi: address space isolation
e  asi-no-stun: asi_exit does not stop the sibling
f  asi-no-ack: asi_exit does not wait until the sibling has left untrusted code
g  asi-no-buffer-flush: the data side channels are never flushed
"""
    )
