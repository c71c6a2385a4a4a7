#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    static char buffer[70000];
    if (argc != 3) return 2;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) < 0) {
        perror("bind");
        return 1;
    }
    size_t name = strlen(argv[2]);
    memcpy(buffer, argv[2], name);
    buffer[name++] = ' ';
    for (;;) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t count = recvfrom(fd, buffer + name, sizeof buffer - name, 0,
                                 (struct sockaddr *)&from, &length);
        if (count < 0) continue;
        sendto(fd, buffer, name + (size_t)count, 0, (struct sockaddr *)&from, length);
    }
}
