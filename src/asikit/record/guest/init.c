/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The recorded guest's first process: prepares the file systems, tells the host about the kernel, runs
 * the workload between two marks, hands over its exit status and powers off.
 *
 * /asi/run holds NUL-terminated words, each with a value: see WORDS.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

extern char **environ;
static struct { char **word; size_t n; } argv, variables;
static const char *root, *directory, *mask;
static bool tells_kernel, networked, skips;
static struct { uid_t uid; gid_t gid; gid_t groups[1024]; size_t n_groups; } user;

static void append(char ***list, size_t *n, char *word)
{
    *list = realloc(*list, (*n + 2) * sizeof **list);
    (*list)[(*n)++] = word;
    (*list)[*n] = NULL;
}

static void on_arg(char *value) { append(&argv.word, &argv.n, value); }
static void on_env(char *value) { append(&variables.word, &variables.n, value); }
static void on_root(char *value) { root = value; }
static void on_cwd(char *value) { directory = value; }
static void on_umask(char *value) { mask = value; }
static void on_module(char *value) { load_module(value); }
static void on_tmpfs(char *value) { mount_on("tmpfs", value, "mode=1777"); }
static void on_kernel(char *value) { tells_kernel = true; }
static void on_network(char *value) { networked = true; }
static void on_skip_startup(char *value) { skips = true; }
static void on_uid(char *value) { user.uid = strtoul(value, NULL, 10); }
static void on_gid(char *value) { user.gid = strtoul(value, NULL, 10); }
static void on_stdin(char *value) { stream_is(0, value); }
static void on_stdout(char *value) { stream_is(1, value); }
static void on_stderr(char *value) { stream_is(2, value); }
static void on_window(char *value) { window_is(value); }
static void on_host_name(char *value) { sethostname(value, strlen(value)); }

static void on_group(char *value)
{
    if (user.n_groups < sizeof user.groups / sizeof *user.groups)
        user.groups[user.n_groups++] = strtoul(value, NULL, 10);
}

/* A number of RLIMIT_..., soft limit, hard limit; -1 for none. */
static void on_limit(char *value)
{
    int which;
    long long soft, hard;
    if (sscanf(value, "%d %lld %lld", &which, &soft, &hard) == 3)
        setrlimit(which, &(struct rlimit){ soft, hard });
}

static const struct { const char *word; void (*on)(char *value); } WORDS[] = {
    { "module", on_module },    /* PATH: to be loaded */
    { "root", on_root },        /* OPTIONS: the disk becomes the root, mounted with them */
    { "tmpfs", on_tmpfs },      /* FOLDER: a tmpfs there */
    { "network", on_network },  /* the user-mode network, too */
    { "kernel", on_kernel },    /* tell the host what it needs to know about the kernel */
    { "host-name", on_host_name },
    { "arg", on_arg },          /* a word of the command */
    { "env", on_env },          /* NAME=VALUE */
    { "cwd", on_cwd },
    { "uid", on_uid }, { "gid", on_gid }, { "group", on_group },
    { "umask", on_umask },      /* octal */
    { "skip-startup", on_skip_startup }, /* record from the program's entry point on */
    { "limit", on_limit },
    { "stdin", on_stdin }, { "stdout", on_stdout }, { "stderr", on_stderr }, { "window", on_window },
};

static char *read_words(const char *path, size_t *size)
{
    struct stat status;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &status))
        fail("cannot read", path);
    char *words = malloc(status.st_size + 1);
    for (*size = 0; *size < (size_t)status.st_size;) {
        ssize_t n = read(fd, words + *size, status.st_size - *size);
        if (n <= 0)
            fail("cannot read", path);
        *size += n;
    }
    words[*size] = 0;
    close(fd);
    return words;
}

static void follow(const char *path)
{
    size_t size;
    char *words = read_words(path, &size);
    for (char *word = words; word < words + size;) {
        char *value = word + strlen(word) + 1;
        for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
            if (!strcmp(word, WORDS[i].word))
                WORDS[i].on(value);
        word = value + strlen(value) + 1;
    }
}

static void mark_begin(void)
{
    __asm__ volatile(MARK(MARK_BEGIN) "nop" ::: "memory");
}

static void run_workload(void)
{
    streams_take();
    if (mask)
        umask(strtoul(mask, NULL, 8));
    environ = variables.word;
    if (setgroups(user.n_groups, user.groups) || setgid(user.gid) || setuid(user.uid))
        fail("cannot become", "the user");
    if (skips)
        startup_take();
    else
        mark_begin();
    execvp(argv.word[0], argv.word);
    char text[512];
    snprintf(text, sizeof text, "cannot run %s: %s", argv.word[0], strerror(errno));
    tell_text("error", text);
    _exit(127);
}

static void report(int status)
{
    char text[64];
    if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "signal %d", WTERMSIG(status));
    else
        snprintf(text, sizeof text, "exit %d", WEXITSTATUS(status));
    tell_text("status", text);
}

/* The names of the processes that are left: those with a program, but for this one. */
static void tell_left(void)
{
    DIR *processes = opendir("/proc");
    for (struct dirent *entry; processes && (entry = readdir(processes));) {
        char path[300], program[8], name[64];
        int pid = atoi(entry->d_name);
        snprintf(path, sizeof path, "/proc/%d/exe", pid);
        if (pid <= 1 || readlink(path, program, sizeof program) < 0)
            continue;
        snprintf(path, sizeof path, "/proc/%d/comm", pid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? 0 : read(fd, name, sizeof name);
        if (n > 0)
            tell("left", name, n);
        close(fd);
    }
    closedir(processes);
}

static void tell_kernel(void)
{
    tell_file("kallsyms", "/proc/kallsyms");
    tell_file("btf", "/sys/kernel/btf/vmlinux");
    tell_file("iomem", "/proc/iomem");
    tell_file("alloc-format", "/sys/kernel/tracing/events/kmem/mm_page_alloc/format");
    tell_file("free-format", "/sys/kernel/tracing/events/kmem/mm_page_free/format");
}

int main(void)
{
    mount_kernel_file_systems();
    follow("/asi/run");
    if (root)
        enter_root(root);
    start_loopback();
    if (networked)
        start_network();
    if (directory && chdir(directory))
        fail("cannot enter", directory);
    streams_prepare();
    if (tells_kernel)
        tell_kernel();
    tell_file("version", "/proc/version");
    enable_events();

    pid_t child = fork();
    if (child < 0)
        fail("cannot start", argv.word[0]);
    if (!child)
        run_workload();
    int status;
    bool ended = skips && !startup_skip(child, &status);
    if (skips) {
        mark_begin();
        startup_end(child);
    }
    if (!ended)
        status = streams_relay(child);
    __asm__ volatile(MARK(MARK_END) "nop" ::: "memory");
    report(status);
    tell_left();
    streams_drain();
    tell_file("symbols-after", "/proc/kallsyms");
    power_off();
}
