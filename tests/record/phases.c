/* Three phases of a workload, one in another, of which it is known what is in them; and marks that belong to none. */
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "asi_mark.h"

enum { WRITES = 50, READS = 200, CHILD_READS = 20, PAGES = 64 };
static char buffer[4096];

static void child_reads(int fd)
{
    pid_t child = fork();
    if (!child) {
        for (int i = 0; i < CHILD_READS; i++)
            if (pread(fd, buffer, sizeof buffer, 0) < 0)
                _exit(1);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

int main(void)
{
    asi_end("never begun");
    asi_begin("");
    asi_begin("load");
    int fd = open("/tmp/data", O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < WRITES; i++)
        if (write(fd, buffer, sizeof buffer) < 0)
            return 1;
    asi_end("load");
    asi_begin("steady");
    for (int i = 0; i < READS; i++) {
        if (pread(fd, buffer, sizeof buffer, 0) < 0)
            return 1;
        if (i == READS / 2) {
            asi_begin("child");
            child_reads(fd);
            asi_end("child");
        }
    }
    asi_end("steady");
    asi_begin("a name of more than thirty-one bytes");
    char *memory = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < PAGES; i++)
        memory[i * 4096] = 1;
    return memory[0] - 1;
}
