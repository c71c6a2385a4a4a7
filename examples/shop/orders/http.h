/* As much HTTP/1.1 as a small service behind a proxy needs: one request a connection, bodies with
 * a Content-Length, answers at once. */
#pragma once

#include <stddef.h>

enum { HTTP_MAX_REQUEST = 16 * 1024 };

struct http_request {
    char method[8];
    char path[256];
    char *body; /* ends with a NUL; inside `buffer` */
    size_t body_length;
    char buffer[HTTP_MAX_REQUEST + 1];
};

/* Listens on all IPv4 addresses; -1 with errno if it cannot. */
int http_listen(int port);

/* Reads one request. Returns 0, or the status to refuse it with, or -1 if the client is gone. */
int http_read(int client, struct http_request *request);

/* Writes one answer. A client that hung up is no error. */
void http_answer(int client, int status, const char *type, const char *body, size_t length);

/* Copies the decoded value of a form field (application/x-www-form-urlencoded) from `form` to
 * `value`. Returns its length, or -1 if it is missing, malformed, holds a NUL, or does not fit. */
int http_form_value(const char *form, const char *name, char *value, size_t size);
