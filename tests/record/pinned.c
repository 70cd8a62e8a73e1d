/* SPDX-License-Identifier: Apache-2.0 */
/* Runs on CPU 0, then on CPU 1, then on CPU 0 again, and on each asks 50 times for a session's id. */
#define _GNU_SOURCE
#include <sched.h>
#include <unistd.h>

int main(void)
{
    for (int turn = 0; turn < 3; turn++) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(turn & 1, &set);
        if (sched_setaffinity(0, sizeof set, &set))
            return 1;
        for (int i = 0; i < 50; i++)
            getsid(0);
    }
    return 0;
}
