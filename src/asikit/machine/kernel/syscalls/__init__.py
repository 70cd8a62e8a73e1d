"""The system calls: one module per family, each call a function named as Linux names it.

A call is `sys_NAME(kernel, task, arguments...)`. The arguments are the registers' contents, unsigned 64-bit numbers;
the result is what RAX gets: a number, or minus an errno. Inside, failing is raising `SyscallError`.

`table` has them all; this module imports none. Their numbers and errors are in `asikit.machine.uapi`.
"""
