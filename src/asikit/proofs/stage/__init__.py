"""A machine that follows a counterexample: who runs, what comes in between, and what kernel and programs do, as told.

Everything on the machine is real: entry code, faults, page tables, interrupts, the waiting of siblings. The script says
only what is left open: which CPU goes on at each point, where an NMI comes, what ordinary kernel code, handlers and
untrusted code do next. Where the machine does more than the script says, it is let do so; where it cannot do what the
script says (because the protocol is another one), the step is left out and counted.

`script` has the steps still to come, and knows no machine; `reader` goes through it as the machine does what it says.
`interleaver` and `between` say what comes in between, `boundary` watches the CPUs go to untrusted code and come from
it, `programs` and `kernel_code` are what runs, `turning` is a page that turns sensitive. `contents` says whose bytes
lie where, and the `eavesdropper` writes down what untrusted code comes by of them. `performance` puts all that onto a
machine, and runs it.
"""

from __future__ import annotations

from asikit.proofs.stage.contents import ATTACKER, VICTIM, owners
from asikit.proofs.stage.eavesdropper import Learnt
from asikit.proofs.stage.performance import Performance, perform

__all__ = ["ATTACKER", "VICTIM", "Learnt", "Performance", "owners", "perform"]
