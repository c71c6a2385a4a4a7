/* A tiny HTTP server for tests and bench: answers every request, whatever its path, with one file
 * that it reads once, at start. Keep-alive, one thread, a long backlog; ends on SIGTERM at once.
 *
 *   server PORT FILE */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_FDS = 8192, LONGEST_ANSWER = 1 << 20 };

static char answer[LONGEST_ANSWER];
static size_t answer_length;

/* How many bytes of the empty line that ends a head each connection has seen. */
static unsigned char seen[MOST_FDS];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void stop(int signal)
{
    (void)signal;
    _exit(0);
}

static void read_answer(const char *path)
{
    static char body[LONGEST_ANSWER - 256];
    int file = open(path, O_RDONLY);
    ssize_t length = file < 0 ? -1 : read(file, body, sizeof body);
    if (length < 0)
        fail(path);
    close(file);
    int head = sprintf(answer,
                       "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zd\r\n\r\n",
                       length);
    memcpy(answer + head, body, length);
    answer_length = head + length;
}

static int listen_on(int port)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0)
        fail("listen");
    return listener;
}

static void accept_all(int epoll, int listener)
{
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client < 0)
            return;
        if (client >= MOST_FDS) {
            close(client);
            continue;
        }
        int on = 1;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        seen[client] = 0;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = client};
        epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event);
    }
}

/* Sends one answer; a client that does not read it is dropped. */
static int send_answer(int client)
{
    return send(client, answer, answer_length, MSG_NOSIGNAL) == (ssize_t)answer_length;
}

static void serve(int client)
{
    char buffer[8192];
    ssize_t count = read(client, buffer, sizeof buffer);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    for (ssize_t i = 0; i < count; i++) {
        unsigned char next = seen[client];
        if (buffer[i] == "\r\n\r\n"[next])
            next++;
        else
            next = buffer[i] == '\r';
        if (next == 4) {
            next = 0;
            if (!send_answer(client)) {
                count = 0;
                break;
            }
        }
        seen[client] = next;
    }
    if (count <= 0)
        close(client);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: server PORT FILE\n");
        return 2;
    }
    /* The first process of a container has no default reaction to signals. */
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    read_answer(argv[2]);
    int listener = listen_on(atoi(argv[1]));
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        fail("epoll");
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener)
                accept_all(epoll, listener);
            else
                serve(events[i].data.fd);
        }
    }
}
