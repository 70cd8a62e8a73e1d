/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small workloads whose exits on a kernel with ASI are known (real.csv), operation for operation.
 *
 *     workloads NAME SIZE              does one of them, SIZE operations
 *     workloads run NAME:SIZE...       runs each in a process of its own, between two marks in the recording:
 *                                      getsid() right before its execve(), getpgid() once it has been waited for
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096L
#define LARGE 65536L
#define SMALL_FILE "/tmp/file"
#define OTHER_FILE "/tmp/file2"

static char *buffer; /* mapped: in .bss it would spread the C library's data, of which a fork() copies pages */
static char *self;

static void must(int holds)
{
    if (!holds)
        _exit(3);
}

/* A file in tmpfs of so many pages, open. */
static int new_file(const char *path, int pages)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int i = 0; i < pages; i++)
        must(write(fd, buffer, PAGE) == PAGE);
    return fd;
}

static char *map(int pages, int protection, int flags, int fd)
{
    char *memory = mmap(NULL, pages * PAGE, protection, flags, fd, 0);
    must(memory != MAP_FAILED);
    return memory;
}

static char *anonymous(int pages)
{
    return map(pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static void write_pages(volatile char *memory, int pages)
{
    for (int i = 0; i < pages; i++)
        memory[i * PAGE] = 1;
}

static void read_pages(volatile char *memory, int pages)
{
    for (int i = 0; i < pages; i++)
        (void)memory[i * PAGE];
}

/* System calls that touch little. */

static void getpids(int n)
{
    while (n--)
        syscall(SYS_getpid);
}

static void unames(int n)
{
    while (n--)
        syscall(SYS_uname, buffer);
}

static void getrandoms(int n)
{
    while (n--)
        syscall(SYS_getrandom, buffer, 32, 0);
}

/* Files. */

static void reads(int n)
{
    int fd = new_file(SMALL_FILE, 256);
    for (int i = 0; i < n; i++)
        must(pread(fd, buffer, PAGE, (i & 255) * PAGE) == PAGE);
}

static void writes(int n)
{
    int fd = new_file(SMALL_FILE, 256);
    for (int i = 0; i < n; i++)
        must(pwrite(fd, buffer, PAGE, (i & 255) * PAGE) == PAGE);
}

static void large_reads(int n)
{
    int fd = new_file(OTHER_FILE, 16);
    while (n--)
        must(pread(fd, buffer, LARGE, 0) == LARGE);
}

static void sendfiles(int n)
{
    int from = new_file(OTHER_FILE, 16), to = open("/tmp/copy", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    while (n--) {
        off_t at = 0;
        lseek(to, 0, SEEK_SET);
        must(sendfile(to, from, &at, LARGE) > 0);
    }
}

static void splices(int n)
{
    int fd = new_file(OTHER_FILE, 16), ends[2], null = open("/dev/null", O_WRONLY);
    must(pipe(ends) == 0);
    while (n--) {
        loff_t at = 0;
        ssize_t left = splice(fd, &at, ends[1], NULL, LARGE, 0), moved;
        for (must(left > 0); left > 0; left -= moved)
            must((moved = splice(ends[0], NULL, null, NULL, left, 0)) > 0);
    }
}

static void truncates(int n)
{
    int fd = new_file(OTHER_FILE, 1);
    while (n--) {
        must(ftruncate(fd, 4 * PAGE) == 0);
        must(ftruncate(fd, 100) == 0);
    }
}

/* Paths. */

static void stats_of_nothing(int n)
{
    while (n--)
        syscall(SYS_stat, "/tmp/no-such-file", buffer);
}

static void stats(int n)
{
    struct stat found;
    new_file(OTHER_FILE, 1);
    while (n--)
        must(stat(OTHER_FILE, &found) == 0);
}

static void opens(int n)
{
    new_file(OTHER_FILE, 1);
    while (n--)
        close(open(OTHER_FILE, O_RDONLY));
}

static void creates(int n)
{
    char path[] = "/tmp/x0000";
    for (int i = 0; i < n; i++) {
        path[6] = 'a' + i % 26;
        path[7] = 'a' + i / 26 % 26;
        close(open(path, O_CREAT | O_WRONLY, 0600));
        unlink(path);
    }
}

static void mkdirs(int n)
{
    while (n--) {
        mkdir("/tmp/dir", 0700);
        rename("/tmp/dir", "/tmp/dir2");
        rmdir("/tmp/dir2");
    }
}

static void symlinks(int n)
{
    char target[300];
    memset(target, 'a', sizeof target - 1);
    target[sizeof target - 1] = 0;
    while (n--) {
        must(symlink(target, "/tmp/link") == 0);
        must(readlink("/tmp/link", buffer, PAGE) > 0);
        unlink("/tmp/link");
    }
}

static void read_whole(const char *path)
{
    int fd = open(path, O_RDONLY);
    while (read(fd, buffer, PAGE) > 0)
        ;
    close(fd);
}

static void read_status(int n)
{
    while (n--)
        read_whole("/proc/self/status");
}

static void read_command_lines(int n)
{
    while (n--)
        read_whole("/proc/self/cmdline");
}

static void read_maps(int n)
{
    while (n--)
        read_whole("/proc/self/maps");
}

static void list_folder(int n)
{
    while (n--) {
        int fd = open("/bin", O_RDONLY | O_DIRECTORY);
        while (syscall(SYS_getdents64, fd, buffer, 32768) > 0)
            ;
        close(fd);
    }
}

/* Memory. */

static void maps(int n)
{
    while (n--) {
        char *memory = anonymous(64);
        write_pages(memory, 64);
        munmap(memory, 64 * PAGE);
    }
}

static void unmap_pages(int n, int pages)
{
    while (n--) {
        char *memory = anonymous(pages);
        write_pages(memory, pages);
        munmap(memory, pages * PAGE);
    }
}

static void unmap_one(int n)
{
    unmap_pages(n, 1);
}

static void unmap_forty(int n)
{
    unmap_pages(n, 40);
}

static void zero_pages(int n)
{
    while (n--) {
        char *memory = anonymous(64);
        read_pages(memory, 64);
        munmap(memory, 64 * PAGE);
    }
}

static void map_file(int n)
{
    int fd = new_file(OTHER_FILE, 64);
    while (n--) {
        char *memory = map(64, PROT_READ, MAP_SHARED, fd);
        read_pages(memory, 64);
        munmap(memory, 64 * PAGE);
    }
}

static void map_privately(int n)
{
    int fd = new_file(OTHER_FILE, 16);
    while (n--) {
        char *memory = map(16, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
        write_pages(memory, 16);
        munmap(memory, 16 * PAGE);
    }
}

static void protect(int n)
{
    char *memory = anonymous(1);
    write_pages(memory, 1);
    for (int i = 0; i < n; i++)
        must(mprotect(memory, PAGE, i & 1 ? PROT_READ | PROT_WRITE : PROT_READ) == 0);
}

static void drop_pages(int n, int pages)
{
    char *memory = anonymous(64);
    while (n--) {
        write_pages(memory, 1);
        must(madvise(memory, pages * PAGE, MADV_DONTNEED) == 0);
    }
}

static void drop_one(int n)
{
    drop_pages(n, 1);
}

static void drop_many(int n)
{
    drop_pages(n, 64);
}

static void move_break(int n)
{
    while (n--) {
        char *memory = sbrk(PAGE);
        *memory = 1;
        sbrk(-PAGE);
    }
}

static void remap(int n)
{
    char *memory = anonymous(4);
    write_pages(memory, 4);
    for (int i = 0; i < n; i++) {
        memory = mremap(memory, 4 * PAGE, (i & 1 ? 4 : 8) * PAGE, MREMAP_MAYMOVE);
        if (!(i & 1))
            memory = mremap(memory, 8 * PAGE, 4 * PAGE, 0);
        must(memory != MAP_FAILED);
    }
}

static void read_own_memory(int n)
{
    struct iovec to = {buffer, PAGE}, from = {buffer + 2 * PAGE, PAGE};
    while (n--)
        must(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == PAGE);
}

/* Processes. */

static void wait_for(pid_t child)
{
    waitpid(child, NULL, 0);
}

static void forks(int n)
{
    while (n--) {
        pid_t child = fork();
        if (!child)
            _exit(0);
        wait_for(child);
    }
}

static void vforks(int n)
{
    while (n--) {
        pid_t child = vfork();
        if (!child)
            _exit(0);
        wait_for(child);
    }
}

static void spawns(int n)
{
    char *arguments[] = {self, "getrandom", "0", NULL}, *environment[] = {NULL};
    while (n--) {
        pid_t child;
        must(posix_spawn(&child, self, NULL, NULL, arguments, environment) == 0);
        wait_for(child);
    }
}

static void copies_on_write(int n)
{
    char *memory = anonymous(100);
    write_pages(memory, 100);
    while (n--) {
        pid_t child = fork();
        if (!child) {
            write_pages(memory, 100);
            _exit(0);
        }
        wait_for(child);
    }
}

static void peeks(int n)
{
    pid_t child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        _exit(0);
    }
    wait_for(child);
    for (int i = 0; i < n; i++)
        ptrace(PTRACE_PEEKDATA, child, buffer + 8 * (i % 8192), NULL);
    ptrace(PTRACE_CONT, child, NULL, NULL);
    wait_for(child);
}

/* One after the other: pipes, sockets, futexes, signals, timers. */

static void pingpong(int n)
{
    int there[2], back[2];
    char byte = 0;
    must(pipe(there) == 0 && pipe(back) == 0);
    pid_t child = fork();
    if (!child) {
        for (int i = 0; i < n; i++)
            must(read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1);
        _exit(0);
    }
    for (int i = 0; i < n; i++)
        must(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1);
    wait_for(child);
}

static void pipe_pages(int n)
{
    int ends[2];
    must(pipe(ends) == 0);
    while (n--)
        must(write(ends[1], buffer, PAGE) == PAGE && read(ends[0], buffer, PAGE) == PAGE);
}

static void exchange(int n, long bytes)
{
    int ends[2];
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    while (n--) {
        ssize_t got;
        must(write(ends[0], buffer, bytes) == bytes);
        for (long left = bytes; left > 0; left -= got)
            must((got = read(ends[1], buffer, bytes)) > 0);
    }
}

static void send_pages(int n)
{
    exchange(n, PAGE);
}

static void send_large(int n)
{
    exchange(n, LARGE);
}

static volatile int turn;
static int turns;

static void futex(int operation, int value)
{
    syscall(SYS_futex, &turn, operation, value, NULL, NULL, 0);
}

static void *partner(void *unused)
{
    for (int i = 0; i < turns; i++) {
        while (turn != 1)
            futex(FUTEX_WAIT_PRIVATE, 0);
        turn = 0;
        futex(FUTEX_WAKE_PRIVATE, 1);
    }
    return unused;
}

static void threads(int n)
{
    pthread_t thread;
    turns = n;
    must(pthread_create(&thread, NULL, partner, NULL) == 0);
    for (int i = 0; i < n; i++) {
        turn = 1;
        futex(FUTEX_WAKE_PRIVATE, 1);
        while (turn != 0)
            futex(FUTEX_WAIT_PRIVATE, 1);
    }
    pthread_join(thread, NULL);
}

static volatile int signals_seen;

static void on_signal(int number)
{
    signals_seen += number != 0;
}

static void signals(int n)
{
    signal(SIGUSR1, on_signal);
    while (n--)
        kill(getpid(), SIGUSR1);
}

static void epolls(int n)
{
    int poll = epoll_create1(0), event = eventfd(0, 0);
    struct epoll_event ready = {.events = EPOLLIN};
    unsigned long one = 1;
    epoll_ctl(poll, EPOLL_CTL_ADD, event, &ready);
    while (n--) {
        must(write(event, &one, 8) == 8);
        must(epoll_wait(poll, &ready, 1, -1) == 1);
        must(read(event, &one, 8) == 8);
    }
}

static void sleeps(int n)
{
    struct timespec time = {0, 100000};
    while (n--)
        nanosleep(&time, NULL);
}

static void yields(int n)
{
    while (n--)
        sched_yield();
}

/* The size of the buffer that each fills before it begins is what the measured programs filled. */
static const struct {
    const char *name;
    void (*run)(int n);
    long filled;
} workloads[] = {
    {"nothing", getpids, PAGE},
    {"getpid", getpids, PAGE},
    {"read", reads, PAGE},
    {"write", writes, PAGE},
    {"pipe", pingpong, PAGE},
    {"fork", forks, PAGE},
    {"mmap", maps, PAGE},
    {"stat", stats_of_nothing, PAGE},
    {"threads", threads, LARGE},
    {"signals", signals, LARGE},
    {"mprotect", protect, LARGE},
    {"munmap1", unmap_one, LARGE},
    {"munmap40", unmap_forty, LARGE},
    {"madvise", drop_many, LARGE},
    {"madvise1", drop_one, LARGE},
    {"zeropage", zero_pages, LARGE},
    {"socket", send_pages, LARGE},
    {"socket64k", send_large, LARGE},
    {"sendfile", sendfiles, LARGE},
    {"splice", splices, LARGE},
    {"read64k", large_reads, LARGE},
    {"mapfile", map_file, LARGE},
    {"mapprivate", map_privately, LARGE},
    {"truncate", truncates, LARGE},
    {"getdents", list_folder, LARGE},
    {"procstatus", read_status, LARGE},
    {"proccmdline", read_command_lines, LARGE},
    {"procmaps", read_maps, LARGE},
    {"open", opens, LARGE},
    {"create", creates, LARGE},
    {"mkdir", mkdirs, LARGE},
    {"symlink", symlinks, LARGE},
    {"getrandom", getrandoms, LARGE},
    {"vfork", vforks, LARGE},
    {"spawn", spawns, LARGE},
    {"cow", copies_on_write, LARGE},
    {"peek", peeks, LARGE},
    {"vmread", read_own_memory, LARGE},
    {"epoll", epolls, LARGE},
    {"nanosleep", sleeps, LARGE},
    {"yield", yields, LARGE},
    {"brk", move_break, LARGE},
    {"mremap", remap, LARGE},
    {"pipe4k", pipe_pages, LARGE},
    {"uname", unames, LARGE},
    {"statx", stats, LARGE},
};

static int run_one(const char *name, int size)
{
    for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++)
        if (!strcmp(workloads[i].name, name)) {
            buffer = anonymous(LARGE / PAGE);
            memset(buffer, 7, workloads[i].filled);
            workloads[i].run(size);
            return 0;
        }
    return 2;
}

static int run_marked(char *what)
{
    char *size = strchr(what, ':'), *arguments[] = {self, what, size + 1, NULL};
    char *environment[] = {"HOME=/", NULL}; /* with one, reading /proc/self/cmdline looks twice for its end */
    int status;
    *size = 0;
    pid_t child = fork();
    if (!child) {
        syscall(SYS_getsid, 0);
        execve(self, arguments, environment);
        _exit(127);
    }
    waitpid(child, &status, 0);
    syscall(SYS_getpgid, 0);
    if (status) {
        /* No stdio: its locks are more pages for a fork() to copy, and the measured programs had none. */
        must(write(STDERR_FILENO, what, strlen(what)) > 0);
        must(write(STDERR_FILENO, " failed\n", 8) == 8);
    }
    return status != 0;
}

int main(int argc, char **argv)
{
    int failed = 0;
    self = argv[0];
    if (argc >= 2 && !strcmp(argv[1], "run"))
        for (int i = 2; i < argc; i++)
            failed |= strchr(argv[i], ':') == NULL || run_marked(argv[i]);
    else if (argc == 3)
        failed = run_one(argv[1], atoi(argv[2]));
    else
        failed = 2;
    return failed;
}
