/* SPDX-License-Identifier: Apache-2.0 */
/* Leaving out the workload's start-up: it is followed, as a debugger would, to its program's entry point. */
#include <elf.h>
#include <fcntl.h>
#include <stddef.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

#define INT3 0xcc
#define RIP offsetof(struct user_regs_struct, rip)

void startup_take(void)
{
    ptrace(PTRACE_TRACEME, 0, 0, 0);
}

/* Where the program itself begins, when the dynamic linker is done; 0 if it is not a program of 64 bits. */
static uintptr_t entry_point(pid_t child)
{
    char path[64];
    Elf64_auxv_t entry = { 0 }, found = { 0 };
    snprintf(path, sizeof path, "/proc/%d/auxv", child);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && read(fd, &entry, sizeof entry) == sizeof entry && entry.a_type <= AT_MINSIGSTKSZ)
        if (entry.a_type == AT_ENTRY)
            found = entry;
    close(fd);
    return found.a_un.a_val;
}

/* Let it run until it stops for another reason than a signal of its own; false: it has ended. */
static bool run(pid_t child, int *status)
{
    for (int signal = 0;; signal = WSTOPSIG(*status)) {
        if (ptrace(PTRACE_CONT, child, 0, signal) || waitpid(child, status, 0) < 0 || !WIFSTOPPED(*status))
            return false;
        if (WSTOPSIG(*status) == SIGTRAP)
            return true;
    }
}

bool startup_skip(pid_t child, int *status)
{
    if (waitpid(child, status, 0) < 0 || !WIFSTOPPED(*status))
        return false;
    uintptr_t entry = entry_point(child);
    if (!entry)
        return true;
    long code = ptrace(PTRACE_PEEKTEXT, child, entry, 0);
    ptrace(PTRACE_POKETEXT, child, entry, (code & ~0xfful) | INT3);
    if (!run(child, status))
        return false;
    ptrace(PTRACE_POKETEXT, child, entry, code);
    ptrace(PTRACE_POKEUSER, child, RIP, entry);
    return true;
}

void startup_end(pid_t child)
{
    ptrace(PTRACE_DETACH, child, 0, 0);
}
