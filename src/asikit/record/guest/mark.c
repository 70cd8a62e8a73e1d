/* SPDX-License-Identifier: Apache-2.0 */
/* asi-mark begin|end NAME: a phase of a recorded workload begins or ends. Unrecorded it does nothing. */
#include <stdio.h>
#include <string.h>

#include "asi_mark.h"

int main(int argc, char **argv)
{
    int end = argc == 3 && !strcmp(argv[1], "end");
    if (argc != 3 || (!end && strcmp(argv[1], "begin"))) {
        fprintf(stderr, "asi-mark: usage: asi-mark begin|end NAME\n");
        return 2;
    }
    if (!argv[2][0] || strlen(argv[2]) >= ASI_MARK_BYTES) {
        fprintf(stderr, "asi-mark: a phase's name has 1 to %d bytes\n", ASI_MARK_BYTES - 1);
        return 2;
    }
    asi_mark_(argv[2], end);
    return 0;
}
