/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's network: loopback always, and on request QEMU's user-mode network, at the addresses that QEMU documents. */
#include <arpa/inet.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"

#define CARD "eth0"
#define OWN_ADDRESS "10.0.2.15"
#define NETMASK "255.255.255.0"
#define GATEWAY "10.0.2.2"
#define NAME_SERVER "10.0.2.3"

static struct sockaddr address(const char *text)
{
    struct sockaddr_in in = { .sin_family = AF_INET };
    inet_pton(AF_INET, text, &in.sin_addr);
    struct sockaddr any;
    memcpy(&any, &in, sizeof any);
    return any;
}

static int open_socket(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("cannot set up", "the network");
    return fd;
}

static void bring_up(int fd, const char *name)
{
    struct ifreq interface = { 0 };
    strncpy(interface.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, SIOCGIFFLAGS, &interface))
        fail("there is no network interface", name);
    interface.ifr_flags |= IFF_UP | IFF_RUNNING;
    if (ioctl(fd, SIOCSIFFLAGS, &interface))
        fail("cannot bring up", name);
}

void start_loopback(void)
{
    int fd = open_socket();
    bring_up(fd, "lo");
    close(fd);
}

static void name_server(void)
{
    const char *own = "/dev/shm/.asi-resolv.conf", *used = "/etc/resolv.conf";
    FILE *file = fopen(own, "w");
    if (!file || fprintf(file, "nameserver %s\n", NAME_SERVER) < 0 || fclose(file))
        fail("cannot write", own);
    chmod(own, 0644);
    if (access(used, F_OK)) /* missing, or a link to what is not there */
        unlink(used), fclose(fopen(used, "w"));
    if (mount(own, used, NULL, MS_BIND, NULL))
        fail("cannot mount on", used);
    unlink(own);
}

void start_network(void)
{
    int fd = open_socket();
    struct ifreq interface = { .ifr_name = CARD };
    interface.ifr_addr = address(OWN_ADDRESS);
    if (ioctl(fd, SIOCSIFADDR, &interface))
        fail("there is no network interface", CARD);
    interface.ifr_netmask = address(NETMASK);
    ioctl(fd, SIOCSIFNETMASK, &interface);
    bring_up(fd, CARD);
    struct rtentry route = { .rt_dst = address("0.0.0.0"), .rt_genmask = address("0.0.0.0"),
                             .rt_gateway = address(GATEWAY), .rt_flags = RTF_UP | RTF_GATEWAY };
    if (ioctl(fd, SIOCADDRT, &route))
        fail("cannot route to", GATEWAY);
    close(fd);
    name_server();
}
