/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A workload with marked phases: it loads a file, and reads it in a steady phase, in the middle of which another process
 * reads it too.
 */
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "asi_mark.h"

enum { BLOCK = 4096, BLOCKS = 256 };
static char buffer[BLOCK];

static int read_all(int fd)
{
    for (int i = 0; i < BLOCKS; i++)
        if (pread(fd, buffer, BLOCK, i * BLOCK) != BLOCK)
            return 1;
    return 0;
}

static int read_in_another_process(int fd)
{
    int status;
    pid_t child = fork();
    if (!child) {
        prctl(PR_SET_NAME, "helper");
        _exit(read_all(fd));
    }
    return waitpid(child, &status, 0) != child || status;
}

int main(void)
{
    int failed = 0;
    asi_begin("load");
    int fd = open("/tmp/file", O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < BLOCKS; i++)
        failed |= write(fd, buffer, BLOCK) != BLOCK;
    asi_end("load");

    asi_begin("steady");
    failed |= read_all(fd) || read_all(fd);
    asi_begin("helped");
    failed |= read_in_another_process(fd);
    asi_end("helped");
    failed |= read_all(fd);
    asi_end("steady");
    return failed;
}
