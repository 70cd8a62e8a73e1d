/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The workload's standard streams are of the kinds that the user's are: a terminal of the guest's own where the user has
 * one, pipes, /dev/null, or nothing. Init passes on what comes out of them, and into them what the user sends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "init.h"

enum kind { NUL, PIPE, TTY, CLOSED, AS_OUT };
static const char *const KINDS[] = { "null", "pipe", "tty", "closed", "out" };
static enum kind kinds[3];
static int pipes[3][2] = { { -1, -1 }, { -1, -1 }, { -1, -1 } };
static struct winsize window;
static int master = -1, slave = -1;
static int ended = -1;                       /* becomes readable when a process has ended */
static int bell = -1;                        /* a byte comes from it when the user has sent something */
static struct { char bytes[MOST_BYTES]; ssize_t n, done; bool wanted, ended; } input;

static const char *const OUTPUT_NAMES[] = { NULL, OUTPUT_NAME, ERROR_NAME };
#define DRAIN_MS 20                          /* a terminal's output comes to its other end by way of a worker of the kernel's */

void stream_is(int fd, const char *kind)
{
    for (size_t k = 0; k < sizeof KINDS / sizeof *KINDS; k++)
        if (!strcmp(kind, KINDS[k]))
            kinds[fd] = k;
}

void window_is(const char *rows_and_columns)
{
    sscanf(rows_and_columns, "%hu %hu", &window.ws_row, &window.ws_col);
}

/* The user's own terminal echoes, edits lines and ends them with a carriage return; this one leaves that to it. */
static void open_terminal(void)
{
    struct termios t;
    master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0 || grantpt(master) || unlockpt(master) || !ptsname(master))
        fail("cannot make", "a terminal");
    slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0 || tcgetattr(slave, &t))
        fail("cannot open", ptsname(master));
    t.c_lflag &= ~(ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE);
    t.c_oflag &= ~OPOST;
    tcsetattr(slave, TCSANOW, &t);
    if (window.ws_row)
        ioctl(slave, TIOCSWINSZ, &window);
    setsid(); /* as a shell: what the workload leaves behind is not hung up on when it ends */
    ioctl(slave, TIOCSCTTY, 1);
}

/* The serial line rings; every byte passes as it is. That it rang before it was opened is lost: so something may have come. */
static void open_bell(void)
{
    struct termios t;
    bell = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (bell < 0 || tcgetattr(bell, &t))
        fail("cannot open", "/dev/ttyS1");
    cfmakeraw(&t);
    cfsetspeed(&t, B115200);
    t.c_cflag |= CLOCAL | CREAD;
    tcsetattr(bell, TCSANOW, &t);
    input.wanted = true;
}

void streams_prepare(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    ended = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    signal(SIGPIPE, SIG_IGN);
    for (int fd = 0; fd < 3; fd++) {
        if (kinds[fd] == TTY && master < 0)
            open_terminal();
        if (kinds[fd] == PIPE && pipe2(pipes[fd], O_CLOEXEC))
            fail("cannot make", "a pipe");
        if (kinds[fd] == PIPE)
            fcntl(pipes[fd][fd == 0], F_SETFL, O_NONBLOCK); /* our end */
    }
    if (kinds[0] == TTY || kinds[0] == PIPE)
        open_bell();
}

void streams_take(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigprocmask(SIG_SETMASK, &set, NULL);
    signal(SIGPIPE, SIG_DFL);
    setpgid(0, 0);
    if (slave >= 0) {
        signal(SIGTTOU, SIG_IGN); /* it is not in the foreground yet */
        tcsetpgrp(slave, getpid());
        signal(SIGTTOU, SIG_DFL);
    }
    for (int fd = 0; fd < 3; fd++) {
        if (kinds[fd] == CLOSED)
            close(fd);
        else if (kinds[fd] == TTY)
            dup2(slave, fd);
        else if (kinds[fd] == PIPE)
            dup2(pipes[fd][fd != 0], fd);
        else if (kinds[fd] == AS_OUT)
            dup2(1, fd);
        else {
            int null = open("/dev/null", O_RDWR | O_CLOEXEC);
            if (null != fd) {
                dup2(null, fd);
                close(null);
            } else
                fcntl(fd, F_SETFD, 0);
        }
    }
}

/* Give whether there was something to pass on. */
static bool pass_on(int fd, const char *name)
{
    static char block[1 << 16];
    ssize_t n = read(fd, block, sizeof block);
    if (n > 0)
        tell(name, block, n);
    return n > 0;
}

static int input_end(void)
{
    return kinds[0] == TTY ? master : pipes[0][1];
}

static void end_input(void)
{
    input.ended = true;
    if (kinds[0] == PIPE)
        close(pipes[0][1]);
}

/* Fetch what the user has sent, and write as much as the workload has room for. */
static void pass_in(void)
{
    if (input.done == input.n) {
        input.done = 0;
        input.n = receive(input.bytes);
        if (input.n < 0) {
            input.n = 0;
            input.wanted = false; /* until the bell rings */
            return;
        }
        if (!input.n && kinds[0] == PIPE) {
            end_input();
            return;
        }
        if (!input.n) { /* to a terminal the end is a character, at the beginning of a line */
            struct termios t;
            tcgetattr(slave, &t);
            input.bytes[0] = t.c_cc[VEOF];
            input.n = 1;
            input.ended = true;
        }
    }
    ssize_t n = write(input_end(), input.bytes + input.done, input.n - input.done);
    if (n > 0)
        input.done += n;
    else if (errno != EAGAIN && errno != EINTR)
        end_input(); /* the workload reads no more */
}

static bool input_waits(void)
{
    return input.done < input.n || (input.wanted && !input.ended);
}

/* Collect all processes that have ended: init has the orphans, too. */
static bool has_ended(pid_t child, int *status)
{
    int of_any;
    bool ended = false;
    for (pid_t pid; (pid = waitpid(-1, &of_any, WNOHANG)) > 0;)
        if (pid == child) {
            ended = true;
            *status = of_any;
        }
    return ended;
}

static void ring(void)
{
    char bytes[64];
    while (read(bell, bytes, sizeof bytes) > 0)
        ;
    input.wanted = true;
}

int streams_relay(pid_t child)
{
    int status;
    for (int fd = 0; fd < 3; fd++)
        if (kinds[fd] == PIPE)
            close(pipes[fd][fd != 0]); /* the workload's end */
    for (;;) {
        struct pollfd wait[] = {
            { ended, POLLIN },
            { pipes[1][0], POLLIN },
            { pipes[2][0], POLLIN },
            { master, POLLIN | (kinds[0] == TTY && input_waits() ? POLLOUT : 0) },
            { kinds[0] == PIPE && !input.ended && input_waits() ? pipes[0][1] : -1, POLLOUT },
            { bell, POLLIN },
        };
        if (poll(wait, sizeof wait / sizeof *wait, -1) < 0 && errno != EINTR)
            fail("cannot wait for", "the workload");
        if (has_ended(child, &status))
            return status;
        struct signalfd_siginfo info;
        if (wait[0].revents)
            read(ended, &info, sizeof info);
        for (int fd = 1; fd < 3; fd++)
            if (wait[fd].revents && !pass_on(pipes[fd][0], OUTPUT_NAMES[fd])) {
                close(pipes[fd][0]); /* the workload has closed it */
                pipes[fd][0] = -1;
            }
        if (wait[3].revents & POLLIN)
            pass_on(master, OUTPUT_NAME);
        if ((wait[3].revents & POLLOUT) || wait[4].revents)
            pass_in();
        if (wait[5].revents)
            ring();
    }
}

/* Pass on what is left. Processes that live on may hold the streams: nobody waits for them. */
void streams_drain(void)
{
    for (int fd = 1; fd < 3; fd++)
        if (pipes[fd][0] >= 0)
            while (pass_on(pipes[fd][0], OUTPUT_NAMES[fd]))
                ;
    struct pollfd wait = { master, POLLIN };
    while (master >= 0 && poll(&wait, 1, DRAIN_MS) > 0 && pass_on(master, OUTPUT_NAME))
        ;
}
