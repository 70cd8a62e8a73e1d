/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the guest's init speaks to the recorder: NOPL disp32(%rax,%rax) with these displacements does nothing anywhere
 * else; a page is handed over by MOVB disp32(%rax), %al, which loads from it. The workload's marks have the numbers that
 * follow: asi_mark.h.
 */
#ifndef ASI_MARKER_H
#define ASI_MARKER_H
#define MARK_BEGIN     0x41534901  /* the workload begins in this task, at its next system call */
#define MARK_END       0x41534902  /* the workload has ended */
#define MARK_HAND_OVER 0x41534903  /* of the load */

/* What is handed over goes into a file of the page's name, but for these: the workload's streams. */
#define OUTPUT_NAME "stdout"
#define ERROR_NAME  "stderr"
#define INPUT_NAME  "stdin"        /* the page is filled; its length is 0 at the end of the input */
#define INPUT_NONE  UINT64_MAX     /* a length: nothing has come yet */
#endif
