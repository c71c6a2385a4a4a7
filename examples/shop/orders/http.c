#include "http.h"

#include <ctype.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

int http_listen(int port)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        return -1;
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_ANY),
    };
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, 512) < 0) {
        close(listener);
        return -1;
    }
    return listener;
}

/* Reads until the head is whole. Returns its length with the empty line, 0 if it is too long, -1 if
 * the client went away; *have is what was read in all. */
static long read_head(int client, char *buffer, size_t *have)
{
    *have = 0;
    while (*have < HTTP_MAX_REQUEST) {
        ssize_t count = recv(client, buffer + *have, HTTP_MAX_REQUEST - *have, 0);
        if (count <= 0)
            return -1;
        *have += count;
        buffer[*have] = '\0';
        char *end = strstr(buffer, "\r\n\r\n");
        if (end)
            return end + 4 - buffer;
    }
    return 0;
}

/* The Content-Length of a head; 0 if it has none, -1 if the body cannot be read. */
static long body_length(char *head)
{
    long length = 0;
    for (char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, "Transfer-Encoding:", 18))
            return -1;
        if (!strncasecmp(line, "Content-Length:", 15)) {
            char *end;
            length = strtol(line + 15, &end, 10);
            if (length < 0 || end == line + 15 || *end != '\r')
                return -1;
        }
    }
    return length;
}

int http_read(int client, struct http_request *request)
{
    size_t have;
    long head = read_head(client, request->buffer, &have);
    if (head <= 0)
        return head == 0 ? 431 : -1;

    /* Cut the head off, so that nothing in the body is taken for a header. */
    char body_start = request->buffer[head];
    request->buffer[head] = '\0';
    if (sscanf(request->buffer, "%7s %255s HTTP/1.", request->method, request->path) != 2)
        return 400;
    long length = body_length(request->buffer);
    request->buffer[head] = body_start;
    if (length < 0)
        return 400;
    if (length > HTTP_MAX_REQUEST - head)
        return 413;

    while (have < (size_t)(head + length)) {
        ssize_t count = recv(client, request->buffer + have, head + length - have, 0);
        if (count <= 0)
            return -1;
        have += count;
    }
    request->body = request->buffer + head;
    request->body[length] = '\0';
    request->body_length = length;
    return 0;
}

static const char *reason(int status)
{
    switch (status) {
    case 200: return "OK";
    case 201: return "Created";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 413: return "Content Too Large";
    case 431: return "Request Header Fields Too Large";
    case 503: return "Service Unavailable";
    default: return "Error";
    }
}

static int send_all(int client, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t count = send(client, bytes, length, MSG_NOSIGNAL);
        if (count <= 0)
            return -1;
        bytes += count;
        length -= count;
    }
    return 0;
}

void http_answer(int client, int status, const char *type, const char *body, size_t length)
{
    char head[256];
    int head_length = snprintf(head, sizeof head,
                               "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                               "Connection: close\r\n\r\n",
                               status, reason(status), type, length);
    if (send_all(client, head, head_length) == 0)
        send_all(client, body, length);
}

static int hex(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    digit = tolower((unsigned char)digit);
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

int http_form_value(const char *form, const char *name, char *value, size_t size)
{
    size_t name_length = strlen(name);
    const char *at = form;
    while (strncmp(at, name, name_length) != 0 || at[name_length] != '=') {
        at = strchr(at, '&');
        if (!at)
            return -1;
        at++;
    }
    at += name_length + 1;

    size_t length = 0;
    for (; *at && *at != '&'; at++) {
        char byte = *at == '+' ? ' ' : *at;
        if (byte == '%') {
            int high = hex(at[1]);
            int low = high < 0 ? -1 : hex(at[2]);
            if (low < 0)
                return -1;
            byte = high * 16 + low;
            at += 2;
        }
        if (byte == '\0' || length + 1 >= size)
            return -1;
        value[length++] = byte;
    }
    value[length] = '\0';
    return length;
}
