/* Ask for huge pages, touch 16 MiB, and print how much of it lies in huge pages. */
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

#define HUGE (2UL << 20)
#define BYTES (8 * HUGE)

int main(void)
{
    char line[256];
    long kilobytes, total = 0;
    char *mapped = mmap(NULL, BYTES + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED)
        return 1;
    char *first = (char *)(((uintptr_t)mapped + HUGE - 1) & ~(HUGE - 1));
    madvise(first, BYTES, MADV_HUGEPAGE);
    for (size_t at = 0; at < BYTES; at += 4096)
        first[at] = 1;
    FILE *areas = fopen("/proc/self/smaps", "r");
    if (!areas)
        return 1;
    while (fgets(line, sizeof line, areas))
        if (sscanf(line, "AnonHugePages: %ld kB", &kilobytes) == 1)
            total += kilobytes;
    printf("%ld kB\n", total);
    return 0;
}
