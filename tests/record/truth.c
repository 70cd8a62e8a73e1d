/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A workload that knows what it does and asks the kernel what the kernel did, for comparison with the
 * recording of both. Everything is kept in memory and printed at the end, so that asking disturbs little.
 *
 * Each question stands between two marks in the recording: getsid() before it and getpgid() after it.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CALLS 1000
#define PAGES 300
#define TURNS 50
#define TRACING "/sys/kernel/tracing/"
#define EVENT TRACING "events/kmem/mm_page_alloc/"
#define ANOTHER TRACING "instances/another/"

static char text[4 << 20];
static size_t length;
static uint64_t flags[1 << 18];

static void note(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    length += vsnprintf(text + length, sizeof text - length, format, arguments);
    va_end(arguments);
}

static void note_file(const char *path)
{
    int fd = open(path, O_RDONLY);
    ssize_t n;
    while ((n = read(fd, text + length, sizeof text - length)) > 0)
        length += n;
    close(fd);
}

static void write_file(const char *path, const char *content, int how)
{
    int fd = open(path, O_WRONLY | how);
    if (write(fd, content, strlen(content)) < 0)
        perror(path);
    close(fd);
}

static void begin(const char *what)
{
    note("@ %s\n", what);
    syscall(SYS_getsid, 0);
}

static void end(void)
{
    syscall(SYS_getpgid, 0);
}

/* What the kernel has counted so far. */
static void counts(void)
{
    struct rusage usage;
    begin("rusage");
    getrusage(RUSAGE_SELF, &usage);
    end();
    note("minflt %ld\nswitches %ld\n", usage.ru_minflt, usage.ru_nvcsw + usage.ru_nivcsw);
    begin("vmstat");
    note_file("/proc/vmstat");
    end();
    begin("interrupts");
    note_file("/proc/interrupts");
    end();
    begin("stat");
    note_file("/proc/stat");
    end();
}

static char *touch_pages(void)
{
    char *pages = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < PAGES; i++)
        pages[i * 4096] = 1;
    return pages;
}

/* A child that answers each byte: two switches a turn. */
static struct { int there[2], back[2]; pid_t pid; } child;

static void make_child(void)
{
    char byte = 0;
    if (pipe(child.there) || pipe(child.back))
        perror("pipe");
    child.pid = fork();
    if (!child.pid) {
        for (int i = 0; i < TURNS; i++)
            if (read(child.there[0], &byte, 1) != 1 || write(child.back[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
}

static void take_turns(void)
{
    char byte = 0;
    for (int i = 0; i < TURNS; i++)
        if (write(child.there[1], &byte, 1) != 1 || read(child.back[0], &byte, 1) != 1)
            perror("turn");
    waitpid(child.pid, NULL, 0);
}

/* On another CPU, where there is one, a child that has pages allocated one by one and freed together all the time. */
static pid_t make_freer(void)
{
    pid_t pid = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? fork() : -1;
    if (!pid) {
        char *pages = mmap(NULL, 24 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (;;) {
            for (int i = 0; i < 24; i++)
                pages[i * 4096] = 1;
            madvise(pages, 24 * 4096, MADV_DONTNEED);
        }
    }
    return pid;
}

static void end_child(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* Once told to begin, a child that goes before everybody else every 20 microseconds, and has a page allocated and freed. */
static struct { int begin[2]; pid_t pid; } waker;

static void make_waker(void)
{
    struct sched_param first = { .sched_priority = 1 };
    struct timespec pause = { .tv_nsec = 20000 };
    char byte = 0;
    if (pipe(waker.begin))
        perror("pipe");
    waker.pid = fork();
    if (!waker.pid) {
        if (sched_setscheduler(0, SCHED_FIFO, &first) || read(waker.begin[0], &byte, 1) != 1)
            _exit(1);
        char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        while (!nanosleep(&pause, NULL)) {
            *page = 1;
            madvise(page, 4096, MADV_DONTNEED);
        }
    }
}

/* Page allocations that are preempted time and again; half of them with another handler of the event beside the recorder's. */
static void touch_pages_preempted(void)
{
    char byte = 0;
    if (write(waker.begin[1], &byte, 1) != 1)
        perror("waker");
    touch_pages();
    touch_pages();
    write_file(ANOTHER "events/kmem/enable", "1", 0);
    touch_pages();
    touch_pages();
    write_file(ANOTHER "events/kmem/enable", "0", 0);
    end_child(waker.pid);
}

static void write_tmpfs(void)
{
    static char block[4096];
    int fd = open("/tmp/file", O_CREAT | O_RDWR, 0600);
    for (int i = 0; i < 32; i++)
        if (write(fd, block, sizeof block) < 0)
            perror("write");
    close(fd);
}

/*
 * The kernel copies a module to vmalloc memory before it looks at it, and frees that when it is none. It allocates pages in
 * bulk for it, or larger blocks that it splits.
 */
static void have_vmalloc_used(void)
{
    if (!syscall(SYS_init_module, text, 50 * 4096, ""))
        perror("a module of zeros");
}

static void spin(void)
{
    for (volatile int i = 0; i < 20000000; i++)
        ;
}

/* The kernel's own stack trace at each page allocation. */
static void stacks(void)
{
    write_file(TRACING "buffer_size_kb", "1024", 0);
    write_file(TRACING "trace", "", O_TRUNC);
    begin("stacks");
    write_file(EVENT "enable", "1", 0);
    write_file(EVENT "trigger", "stacktrace", 0);
    touch_pages();
    write_tmpfs();
    make_child();
    take_turns();
    write_file(EVENT "enable", "0", 0);
    write_file(EVENT "trigger", "!stacktrace", 0);
    end();
    note_file(TRACING "trace");
}

/* The flags of every page frame (Documentation/admin-guide/mm/pagemap.rst), equal neighbours together. */
static void page_flags(char *pages)
{
    uint64_t entry, frames;
    int fd = open("/proc/self/pagemap", O_RDONLY);
    note("@ own\n");
    for (int i = 0; i < PAGES; i++) {
        if (pread(fd, &entry, 8, ((uintptr_t)pages / 4096 + i) * 8) == 8)
            note("%lx\n", entry & ((1ul << 55) - 1));
    }
    close(fd);
    fd = open("/proc/kpageflags", O_RDONLY);
    memset(flags, 0, sizeof flags);
    begin("kpageflags");
    ssize_t n, done = 0;
    while ((n = pread(fd, (char *)flags + done, sizeof flags - done, done)) > 0)
        done += n;
    end();
    close(fd);
    frames = done / 8;
    for (uint64_t i = 0, from = 0; i < frames; i++)
        if (i + 1 == frames || flags[i + 1] != flags[i]) {
            note("%lx %lx %lx\n", from, i + 1 - from, flags[i]);
            from = i + 1;
        }
}

int main(void)
{
    memset(text, 0, sizeof text); /* no page faults for it later */
    note("pid %d\n", getpid());
    make_waker();
    pid_t freer = make_freer();
    mkdir(ANOTHER, 0700);
    counts();
    begin("calls");
    for (int i = 0; i < CALLS; i++)
        syscall(SYS_getppid);
    end();
    begin("work");
    make_child(); /* allocates a stack */
    char *pages = touch_pages();
    write_tmpfs();
    have_vmalloc_used();
    take_turns();
    spin();
    end();
    begin("preempted");
    touch_pages_preempted();
    end();
    counts();
    if (freer > 0)
        end_child(freer);
    stacks();
    page_flags(pages);
    note("@ end\n");
    for (size_t done = 0; done < length;) {
        ssize_t n = write(1, text + done, length - done);
        if (n < 0)
            return 1;
        done += n;
    }
    return 0;
}
