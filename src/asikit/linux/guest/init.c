/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The recorded guest's first process: prepares the file systems, tells the host about the kernel, runs
 * the workload between two marks, hands over its exit status and powers off.
 *
 * /asi/run holds NUL-terminated words: "root", "send-kernel", "module" PATH..., "tmpfs" DIR..., "cwd" DIR, "env" NAME=VALUE..., "arg" WORD...
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "marker.h"

#define STR_(x) #x
#define STR(x) STR_(x)
#define MARK(what) ".balign 16\n\t.byte 0x0f, 0x1f, 0x84, 0x00\n\t.long " STR(what) "\n\t"

static struct {
    char name[32];
    uint64_t length;
    uint8_t content[4056];
} page __attribute__((aligned(4096)));

static void hand_over_page(void)
{
    /* movb MARK_HAND_OVER(%rax), %al */
    uintptr_t at = (uintptr_t)&page - MARK_HAND_OVER;
    __asm__ volatile(".byte 0x8a, 0x80\n\t.long " STR(MARK_HAND_OVER) : "+a"(at) : : "memory");
}

static void send(const char *name, const void *content, size_t length)
{
    for (size_t done = 0; done < length || !length; done += page.length) {
        memset(&page, 0, 40);
        snprintf(page.name, sizeof page.name, "%s", name);
        page.length = length - done < sizeof page.content ? length - done : sizeof page.content;
        memcpy(page.content, (const char *)content + done, page.length);
        hand_over_page();
        if (!length)
            return;
    }
}

static void send_text(const char *name, const char *text)
{
    send(name, text, strlen(text));
}

static void send_file(const char *name, const char *path)
{
    static char block[1 << 16];
    ssize_t n;
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return;
    while ((n = read(fd, block, sizeof block)) > 0)
        send(name, block, n);
    close(fd);
}

static void fail(const char *what, const char *about)
{
    char text[512];
    snprintf(text, sizeof text, "%s %s: %s", what, about, strerror(errno));
    send_text("error", text);
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd >= 0 && write(fd, text, strlen(text)) < 0)
        fail("cannot write", path);
    if (fd >= 0)
        close(fd);
}

static void mount_on(const char *type, const char *dir, const char *options)
{
    mkdir(dir, 0755);
    if (mount(type, dir, type, 0, options) && errno != EBUSY)
        fail("cannot mount", dir);
}

static void mount_kernel_file_systems(void)
{
    mount_on("proc", "/proc", NULL);
    mount_on("sysfs", "/sys", NULL);
    mount_on("devtmpfs", "/dev", NULL);
    mount_on("devpts", "/dev/pts", NULL);
    mount_on("tmpfs", "/dev/shm", NULL);
    mount_on("tracefs", "/sys/kernel/tracing", NULL);
    symlink("/proc/self/fd", "/dev/fd");
}

static void load_module(const char *path)
{
    int fd = open(path, O_RDONLY);
    if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
        if (errno != EEXIST)
            fail("cannot load module", path);
    close(fd);
}

static void enter_root(void)
{
    mkdir("/root-image", 0755);
    for (int tries = 0; mount("/dev/vda", "/root-image", "ext4", 0, NULL); tries++) {
        if (errno != ENOENT || tries == 100)
            fail("cannot mount", "/dev/vda");
        usleep(10000);
    }
    if (chroot("/root-image") || chdir("/"))
        fail("cannot enter", "/root-image");
    mount_kernel_file_systems();
    mount_on("tmpfs", "/tmp", NULL);
}

/* A serial line that passes every byte as it is. */
static int open_line(const char *path)
{
    struct termios t;
    int fd = open(path, O_RDWR | O_NOCTTY);
    if (fd < 0 || tcgetattr(fd, &t))
        fail("cannot open", path);
    cfmakeraw(&t);
    cfsetspeed(&t, B115200);
    t.c_cflag |= CLOCAL;
    tcsetattr(fd, TCSANOW, &t);
    return fd;
}

/*
 * In an instance of tracefs of our own: whatever the workload does with tracing does not touch it. (Emptying the buffer of
 * the common one, for example, stops it for as long as synchronize_rcu() takes.)
 */
static void enable_events(void)
{
    const char *tracing = "/sys/kernel/tracing/instances/asi";
    if (mkdir(tracing, 0755) && errno != EEXIST)
        tracing = "/sys/kernel/tracing";
    static const char *const files[][2] = {
        { "buffer_size_kb", "64" },
        { "events/kmem/mm_page_alloc/enable", "1" },
        { "events/kmem/mm_page_free/enable", "1" },
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", tracing, files[i][0]);
        write_file(path, files[i][1]);
    }
}

static void run_workload(char **argv, int out, int err)
{
    setsid();
    dup2(open("/dev/null", O_RDONLY), 0);
    dup2(out, 1);
    dup2(err, 2);
    __asm__ volatile(MARK(MARK_BEGIN) "nop" ::: "memory");
    execvp(argv[0], argv);
    char text[512];
    snprintf(text, sizeof text, "cannot run %s: %s", argv[0], strerror(errno));
    send_text("error", text);
    _exit(127);
}

static void report(int status)
{
    char text[64];
    if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "signal %d", WTERMSIG(status));
    else
        snprintf(text, sizeof text, "exit %d", WEXITSTATUS(status));
    send_text("status", text);
}

int main(void)
{
    static char words[1 << 16];
    char *argv[1024];
    int argc = 0, status, root = 0, send_kernel = 0;

    mount_kernel_file_systems();
    int fd = open("/asi/run", O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, words, sizeof words - 1);
    if (n < 0)
        fail("cannot read", "/asi/run");
    for (char *w = words; w < words + n; w += strlen(w) + 1) {
        char *value = w + strlen(w) + 1;
        if (!strcmp(w, "root"))
            root = 1;
        else if (!strcmp(w, "send-kernel"))
            send_kernel = 1;
        else {
            if (!strcmp(w, "module"))
                load_module(value);
            else if (!strcmp(w, "env"))
                putenv(value);
            else if (!strcmp(w, "tmpfs"))
                mount_on("tmpfs", value, NULL);
            else if (!strcmp(w, "cwd") && chdir(value))
                fail("cannot enter", value);
            else if (!strcmp(w, "arg") && argc < 1023)
                argv[argc++] = value;
            w = value;
        }
    }
    argv[argc] = NULL;
    if (root)
        enter_root();
    int out = open_line("/dev/ttyS1"), err = open_line("/dev/ttyS2");
    if (send_kernel) {
        send_file("kallsyms", "/proc/kallsyms");
        send_file("btf", "/sys/kernel/btf/vmlinux");
        send_file("iomem", "/proc/iomem");
        send_file("alloc-format", "/sys/kernel/tracing/events/kmem/mm_page_alloc/format");
        send_file("free-format", "/sys/kernel/tracing/events/kmem/mm_page_free/format");
    }
    send_file("version", "/proc/version");
    enable_events();

    pid_t child = fork();
    if (child < 0)
        fail("cannot start", argv[0]);
    if (!child)
        run_workload(argv, out, err);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    __asm__ volatile(MARK(MARK_END) "nop" ::: "memory");
    report(status);
    send_file("symbols-after", "/proc/kallsyms");
    tcdrain(out);
    tcdrain(err);
    sync();
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}
