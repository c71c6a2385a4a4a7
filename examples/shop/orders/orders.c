/* Takes orders.
 *
 *   GET  /orders   the twenty latest, as JSON
 *   POST /orders   customer, item and quantity as a form; answers {"id": N}
 *   GET  /up       "ok" when the database answers
 *
 * A few threads, each with its own connection to PostgreSQL, accept from one socket. */
#include "db.h"
#include "http.h"

#include <errno.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { PORT = 8001, THREADS = 8, PATIENCE_SECONDS = 5 };

static int listener;
static volatile sig_atomic_t stopping;

static void answer_text(int client, int status, const char *text)
{
    http_answer(client, status, "text/plain; charset=utf-8", text, strlen(text));
}

/* Answers with the only field of the only row. */
static void answer_row(int client, int status, PGresult *result)
{
    if (!result) {
        answer_text(client, 503, "the database does not answer\n");
        return;
    }
    http_answer(client, status, "application/json", PQgetvalue(result, 0, 0),
                PQgetlength(result, 0, 0));
    PQclear(result);
}

static void list_orders(int client, PGconn *db)
{
    static const char SQL[] =
        "SELECT coalesce(json_agg(latest), '[]') FROM ("
        "  SELECT id, customer, item, quantity, state FROM orders ORDER BY id DESC LIMIT 20"
        ") latest";
    answer_row(client, 200, db_query(db, SQL, 0, NULL));
}

/* Whether the text is a whole number from 1 to 99. */
static int is_quantity(const char *text)
{
    char *end;
    long value = strtol(text, &end, 10);
    return end != text && *end == '\0' && value >= 1 && value <= 99;
}

static int is_item(const char *text)
{
    size_t length = strlen(text);
    return length >= 1 && strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-") == length;
}

/* Whether the text is UTF-8 as the locale of main() has it; PostgreSQL takes nothing else. */
static int is_utf8(const char *text)
{
    return mbstowcs(NULL, text, 0) != (size_t)-1;
}

static void place_order(int client, PGconn *db, const char *form)
{
    static const char SQL[] =
        "WITH placed AS ("
        "  INSERT INTO orders (customer, item, quantity) VALUES ($1, $2, $3::int) RETURNING id"
        "), told AS (SELECT pg_notify('placed', id::text) FROM placed)"
        "SELECT json_build_object('id', id) FROM placed, told";
    char customer[61], item[41], quantity[8];
    if (http_form_value(form, "customer", customer, sizeof customer) <= 0 || !is_utf8(customer))
        answer_text(client, 400, "customer: 1 to 60 bytes of text are needed\n");
    else if (http_form_value(form, "item", item, sizeof item) <= 0 || !is_item(item))
        answer_text(client, 400, "item: the id of a product is needed\n");
    else if (http_form_value(form, "quantity", quantity, sizeof quantity) <= 0 ||
             !is_quantity(quantity))
        answer_text(client, 400, "quantity: a whole number from 1 to 99 is needed\n");
    else {
        const char *const values[] = {customer, item, quantity};
        answer_row(client, 201, db_query(db, SQL, 3, values));
    }
}

static void check(int client, PGconn *db)
{
    PGresult *result = db_query(db, "SELECT 1", 0, NULL);
    if (result)
        answer_text(client, 200, "ok\n");
    else
        answer_text(client, 503, "the database does not answer\n");
    PQclear(result);
}

static void handle(int client, PGconn **db)
{
    struct http_request request;
    int refused = http_read(client, &request);
    if (refused < 0)
        return;
    if (refused > 0) {
        answer_text(client, refused, "this request cannot be read\n");
        return;
    }
    int is_get = !strcmp(request.method, "GET");
    int is_orders = !strcmp(request.path, "/orders");
    if (!is_orders && strcmp(request.path, "/up")) {
        answer_text(client, 404, "no such page\n");
        return;
    }
    if (!is_get && !(is_orders && !strcmp(request.method, "POST"))) {
        answer_text(client, 405, "no such method here\n");
        return;
    }
    *db = db_ensure(*db);
    if (!*db)
        answer_text(client, 503, "the database does not answer\n");
    else if (!is_orders)
        check(client, *db);
    else if (is_get)
        list_orders(client, *db);
    else
        place_order(client, *db, request.body);
}

static void *serve(void *unused)
{
    (void)unused;
    PGconn *db = NULL;
    while (!stopping) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (!stopping)
                perror("accept");
            break;
        }
        /* A slow client must not hold a thread for long. */
        struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
        setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        handle(client, &db);
        close(client);
    }
    PQfinish(db);
    return NULL;
}

/* Wakes all threads out of accept; what they are answering, they finish. */
static void stop(int signal)
{
    (void)signal;
    stopping = 1;
    shutdown(listener, SHUT_RD);
}

int main(void)
{
    /* The first process of a container has no default reaction to signals. */
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    setlocale(LC_CTYPE, "C.UTF-8");

    PGconn *db = db_connect();
    if (!db || db_prepare(db) < 0)
        return 1;
    PQfinish(db);

    listener = http_listen(PORT);
    if (listener < 0) {
        perror("listen");
        return 1;
    }
    fprintf(stderr, "orders: listening on port %d\n", PORT);

    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        if (pthread_create(&threads[i], NULL, serve, NULL) != 0) {
            fprintf(stderr, "orders: cannot start a thread\n");
            return 1;
        }
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    close(listener);
    return stopping ? 0 : 1;
}
