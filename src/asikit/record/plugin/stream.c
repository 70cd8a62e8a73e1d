/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The stream of records to the host, and the layout it sends back. Both are pipes that QEMU inherits. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../guest/marker.h"
#include "recorder.h"

#define BUFFER (1 << 15)
#define SLACK (1 << 18) /* what all other CPUs may write before this one's turn comes again */

struct layout layout;
static struct record buffer[BUFFER + SLACK];
static uint32_t buffered, held;
static uint64_t lost[LOST_KINDS];
static char directory[4096];

static struct pipes pipes;

void stream_open(const char *path, struct pipes p)
{
    snprintf(directory, sizeof directory, "%s", path);
    pipes = p;
}

/* The host has gone: nobody will ever read this recording. */
static void give_up(const char *what)
{
    fprintf(stderr, "asi recorder: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static void write_all(int fd, const void *what, size_t size, const char *about)
{
    for (const char *at = what, *end = at + size; at < end;) {
        ssize_t n = write(fd, at, end - at);
        if (n < 0 && errno != EINTR)
            give_up(about);
        if (n > 0)
            at += n;
    }
}

void stream_flush(void)
{
    write_all(pipes.stream, buffer, buffered * sizeof *buffer, "writing the stream");
    buffered = 0;
    for (int i = 0; i < MAX_CPUS; i++)
        if (vcpus[i].wants_number) {
            vcpus[i].wants_number = NULL;
            stream_release();
        }
}

struct record *emit(struct record r)
{
    if (buffered >= BUFFER && (!held || buffered == BUFFER + SLACK))
        stream_flush();
    buffer[buffered] = r;
    return &buffer[buffered++];
}

void stream_hold(void)
{
    held++;
}

void stream_release(void)
{
    held--;
}

void count_lost(enum lost what)
{
    lost[what]++;
}

void stream_end(int n_cpus)
{
    for (int i = 0; i < LOST_KINDS; i++)
        emit((struct record){ .type = LOST, .arg = i, .clock = lost[i] });
    for (int i = 0; i < n_cpus; i++)
        emit((struct record){ .type = COUNTS, .cpu = i, .clock = clock_of(&vcpus[i]), .addr = vcpus[i].kernel_clock });
    emit((struct record){ .type = END });
    stream_flush();
}

/* The user's input, as much as there is and the page has room for; what QEMU waits for the guest waits for. */
static void give_input(struct handed_over *page)
{
    ssize_t n;
    do
        n = read(pipes.in, page->content, sizeof page->content);
    while (n < 0 && errno == EINTR);
    page->length = n >= 0 ? (uint64_t)n : errno == EAGAIN ? INPUT_NONE : 0;
}

/* Append to a file, which stays open, as one may come in a thousand pages. */
static void save(const char *name, const struct handed_over *page)
{
    static char last[sizeof page->name + 1];
    static int out = -1;
    if (out < 0 || strcmp(last, name)) {
        char path[4200];
        strcpy(last, name);
        snprintf(path, sizeof path, "%s/guest-%s", directory, name);
        if (out >= 0)
            close(out);
        out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
    write_all(out, page->content, page->length, name);
}

void exchange(struct handed_over *page)
{
    char name[sizeof page->name + 1] = { 0 };
    memcpy(name, page->name, sizeof page->name);
    if (!strcmp(name, INPUT_NAME))
        give_input(page);
    else if (page->length > sizeof page->content || strchr(name, '/'))
        return;
    else if (!strcmp(name, OUTPUT_NAME) || !strcmp(name, ERROR_NAME))
        write_all(strcmp(name, ERROR_NAME) ? pipes.out : pipes.err, page->content, page->length, "the workload's output");
    else
        save(name, page);
}

static void set_field(const char *key, uint64_t index, uint64_t value)
{
#define F(field) if (!strcmp(key, #field)) { layout.field = value; return; }
    LAYOUT_FIELDS(F)
#undef F
    if (!strcmp(key, "gate") && index < 256)
        layout.gate[index] = value;
    else if (!strcmp(key, "per_cpu") && index < MAX_CPUS)
        layout.per_cpu[index] = value;
    else if (!strcmp(key, "irq_stack") && index < MAX_CPUS)
        layout.irq_stack[index] = value;
    else if (!strcmp(key, "flusher_user") && index < MAX_FLUSHERS)
        layout.flusher[index] = (struct flusher){ value, value, false };
    else if (!strcmp(key, "flusher_kernel") && index < MAX_FLUSHERS)
        layout.flusher[index] = (struct flusher){ value, value, true };
    else if (!strcmp(key, "flusher_end") && index < MAX_FLUSHERS) {
        layout.flusher[index].end = value;
        layout.n_flushers = index + 1;
    }
    else {
        errno = EINVAL;
        give_up(key);
    }
}

/* Lines "key index value" (hexadecimal); the guest stands still until the last one has come. */
void stream_read_layout(void)
{
    char key[64];
    unsigned long long index, value;
    emit((struct record){ .type = CONFIGURE });
    stream_flush();
    FILE *in = fdopen(pipes.layout, "r");
    if (!in)
        give_up("the layout");
    while (fscanf(in, "%63s %llx %llx", key, &index, &value) == 3)
        set_field(key, index, value);
    fclose(in);
}
