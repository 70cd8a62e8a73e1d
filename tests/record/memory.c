/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of kinds that are easily taken for something else: `memory thp` touches 16 MiB that it asks to be huge pages,
 * `memory hugetlb` 16 MiB of hugetlbfs's pool, and says how much of it was huge; `memory filter` makes 1000 system calls
 * under a seccomp filter that looks at an argument, so that the kernel runs it each time.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIZE (16ul << 20)
#define HUGE (2ul << 20)
#define CALLS 1000

static char *map(int flags, size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static long huge_kilobytes(void)
{
    char line[256];
    long total = 0, some;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    while (smaps && fgets(line, sizeof line, smaps))
        if (sscanf(line, "AnonHugePages: %ld", &some) == 1 || sscanf(line, "Private_Hugetlb: %ld", &some) == 1)
            total += some;
    return total;
}

static int filtered_calls(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x7ead, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof code / sizeof *code, code };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
        return 1;
    for (int i = 0; i < CALLS; i++)
        syscall(SYS_getppid, 0);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    if (!strcmp(argv[1], "filter"))
        return filtered_calls();
    char *pages;
    if (!strcmp(argv[1], "hugetlb"))
        pages = map(MAP_HUGETLB, SIZE);
    else {
        pages = (char *)(((uintptr_t)map(0, 2 * SIZE) + HUGE - 1) & ~(HUGE - 1));
        madvise(pages, SIZE, MADV_HUGEPAGE);
    }
    if (!pages)
        return 1;
    for (size_t i = 0; i < SIZE; i += 4096)
        pages[i] = 1;
    printf("%ld\n", huge_kilobytes());
    return 0;
}
