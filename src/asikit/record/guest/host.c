/* SPDX-License-Identifier: Apache-2.0 */
/* Speaking with the recorder: a page of ours is read or filled by it while one instruction runs, without a device. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

#include "init.h"

static struct {
    char name[32];
    uint64_t length;
    uint8_t content[MOST_BYTES];
} page __attribute__((aligned(4096)));

static void hand_over_page(void)
{
    /* movb MARK_HAND_OVER(%rax), %al */
    uintptr_t at = (uintptr_t)&page - MARK_HAND_OVER;
    __asm__ volatile(".byte 0x8a, 0x80\n\t.long " STR(MARK_HAND_OVER) : "+a"(at) : : "memory");
}

void tell(const char *name, const void *content, size_t length)
{
    for (size_t done = 0; done < length || !length; done += page.length) {
        memset(&page, 0, sizeof page - sizeof page.content);
        snprintf(page.name, sizeof page.name, "%s", name);
        page.length = length - done < sizeof page.content ? length - done : sizeof page.content;
        memcpy(page.content, (const char *)content + done, page.length);
        hand_over_page();
        if (!length)
            return;
    }
}

void tell_text(const char *name, const char *text)
{
    tell(name, text, strlen(text));
}

void tell_file(const char *name, const char *path)
{
    static char block[1 << 16];
    ssize_t n;
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return;
    while ((n = read(fd, block, sizeof block)) > 0)
        tell(name, block, n);
    close(fd);
}

ssize_t receive(void *content)
{
    memset(&page, 0, sizeof page - sizeof page.content);
    strcpy(page.name, INPUT_NAME);
    page.length = INPUT_NONE;
    hand_over_page();
    if (page.length == INPUT_NONE)
        return -1;
    memcpy(content, page.content, page.length);
    return page.length;
}

void power_off(void)
{
    sync();
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

void fail(const char *what, const char *about)
{
    char text[512];
    snprintf(text, sizeof text, "%s %s: %s", what, about, strerror(errno));
    tell_text("error", text);
    power_off();
}
