/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's file systems, its modules, and the trace events that the recorder reads. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "init.h"

#define ROOT "/asi/root"

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd >= 0 && write(fd, text, strlen(text)) < 0)
        fail("cannot write", path);
    if (fd >= 0)
        close(fd);
}

void mount_on(const char *type, const char *dir, const char *options)
{
    mkdir(dir, 0755);
    if (mount(type, dir, type, 0, options) && errno != EBUSY)
        fail("cannot mount", dir);
}

/* What is of use where the kernel has it, and there is a place for it. */
static void mount_if_there(const char *type, const char *dir, const char *options)
{
    mount(type, dir, type, 0, options);
}

/* Devices whose drivers the kernel loads when they are opened. Elsewhere systemd-tmpfiles makes them, from modules.devname. */
static void make_devices(void)
{
    static const struct { const char *path; mode_t mode; unsigned major, minor; } devices[] = {
        { "/dev/fuse", 0666, 10, 229 },
        { "/dev/net/tun", 0666, 10, 200 },
        { "/dev/loop-control", 0660, 10, 237 },
    };
    mkdir("/dev/net", 0755);
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        mknod(devices[i].path, S_IFCHR | devices[i].mode, makedev(devices[i].major, devices[i].minor));
        chmod(devices[i].path, devices[i].mode);
    }
}

void mount_kernel_file_systems(void)
{
    static const char *const links[][2] = {
        { "/proc/self/fd", "/dev/fd" },
        { "/proc/self/fd/0", "/dev/stdin" },
        { "/proc/self/fd/1", "/dev/stdout" },
        { "/proc/self/fd/2", "/dev/stderr" },
    };
    mount_on("proc", "/proc", NULL);
    mount_on("sysfs", "/sys", NULL);
    mount_on("devtmpfs", "/dev", NULL);
    mount_on("devpts", "/dev/pts", "mode=620,ptmxmode=666");
    mount_on("tmpfs", "/dev/shm", "mode=1777");
    mount_on("tracefs", "/sys/kernel/tracing", NULL);
    mount_if_there("cgroup2", "/sys/fs/cgroup", NULL);
    mount_if_there("bpf", "/sys/fs/bpf", "mode=700");
    mount_if_there("debugfs", "/sys/kernel/debug", NULL);
    mkdir("/dev/mqueue", 01777);
    mount_if_there("mqueue", "/dev/mqueue", NULL);
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        symlink(links[i][0], links[i][1]);
    make_devices();
    chmod("/dev/kvm", 0666); /* as systemd's rules do on most machines */
}

void load_module(const char *path)
{
    int fd = open(path, O_RDONLY);
    if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
        if (errno != EEXIST)
            fail("cannot load module", path);
    close(fd);
}

/*
 * Of the options those that this kernel does not know are left out, from the last on. As switch_root(8) does it: a
 * process that is in a chroot may not make a user namespace.
 */
void enter_root(const char *options)
{
    char known[256];
    snprintf(known, sizeof known, "%s", options);
    mkdir(ROOT, 0755);
    for (int tries = 0; mount("/dev/vda", ROOT, "ext4", 0, known); tries++) {
        char *last = strrchr(known, ',');
        if (errno == EINVAL && last)
            *last = 0;
        else if (errno != ENOENT || tries == 100)
            fail("cannot mount", "/dev/vda");
        usleep(10000);
    }
    if (chdir(ROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        fail("cannot enter", ROOT);
    mount_kernel_file_systems();
}

/*
 * In an instance of tracefs of our own: whatever the workload does with tracing does not touch it. (Emptying the buffer of
 * the common one, for example, stops it for as long as synchronize_rcu() takes.)
 */
void enable_events(void)
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
