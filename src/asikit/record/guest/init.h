/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the guest's init share. */
#ifndef ASI_INIT_H
#define ASI_INIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "marker.h"

#define STR_(x) #x
#define STR(x) STR_(x)
#define MARK(what) ".balign 16\n\t.byte 0x0f, 0x1f, 0x84, 0x00\n\t.long " STR(what) "\n\t"

/* host.c: speaking with the recorder, a page at a time */
#define MOST_BYTES 4056
void tell(const char *name, const void *content, size_t length);
void tell_text(const char *name, const char *text);
void tell_file(const char *name, const char *path);
ssize_t receive(void *content);              /* of the user's standard input, up to MOST_BYTES; 0 at its end, -1 if there is none now */
void power_off(void) __attribute__((noreturn));
void fail(const char *what, const char *about) __attribute__((noreturn)); /* tells the host, with errno */

/* mounts.c */
void mount_kernel_file_systems(void);
void mount_on(const char *type, const char *dir, const char *options);
void load_module(const char *path);
void enter_root(const char *options);
void enable_events(void);

/* network.c */
void start_loopback(void);
void start_network(void);

/* startup.c */
void startup_take(void);                     /* in the workload's process, before it becomes its program */
bool startup_skip(pid_t child, int *status); /* it stands at its program's entry point; false: it ended before */
void startup_end(pid_t child);

/* streams.c: the workload's standard streams */
void stream_is(int fd, const char *kind);    /* "tty", "pipe", "null", "closed"; "out": where standard output goes */
void window_is(const char *rows_and_columns);
void streams_prepare(void);
void streams_take(void);                     /* in the workload's process */
int streams_relay(pid_t child);              /* until it has ended; its wait status */
void streams_drain(void);

#endif
