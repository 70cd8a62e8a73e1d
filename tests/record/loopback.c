/* SPDX-License-Identifier: Apache-2.0 */
/* A program that sends itself 20,000 bytes over 127.0.0.1, and prints how many came. */
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define BYTES 20000

int main(void)
{
    static char sent[BYTES], received[BYTES];
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, size) || listen(listener, 1) || getsockname(listener, (void *)&address, &size)) {
        perror("listen");
        return 2;
    }
    if (connect(client, (void *)&address, size)) {
        perror("connect");
        return 3;
    }
    int server = accept(listener, NULL, NULL), n = 0;
    if (write(client, sent, BYTES) != BYTES)
        return 4;
    close(client);
    for (ssize_t got; (got = read(server, received, BYTES)) > 0;)
        n += got;
    printf("%d\n", n);
    return 0;
}
