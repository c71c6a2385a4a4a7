/* Fulfils orders: takes each placed order once it had PACKING_SECONDS to be packed.
 *
 * Several workers could run at once and would not take the same order: the row is locked while it
 * changes hands, and rows locked by others are skipped. PostgreSQL tells of new orders, so nothing
 * is asked for in vain. */
#include "db.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The longest wait between two looks, in milliseconds: a health check watches for them. */
enum { LONGEST_WAIT = 5000 };

static const char ALIVE[] = "/tmp/worker.alive";
static volatile sig_atomic_t stopping;

static void stop(int signal)
{
    (void)signal;
    stopping = 1;
}

/* Fulfils one due order. Returns 1 if there was one, 0 if not, -1 if the database failed. */
static int fulfil_one(PGconn *db, const char *packing_seconds)
{
    static const char SQL[] =
        "UPDATE orders SET state = 'fulfilled', fulfilled_at = now() WHERE id = ("
        "  SELECT id FROM orders"
        "  WHERE state = 'placed' AND placed_at <= now() - make_interval(secs => $1::float8)"
        "  ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"
        ") RETURNING id, quantity, item";
    PGresult *result = db_query(db, SQL, 1, &packing_seconds);
    if (!result)
        return -1;
    int count = PQntuples(result);
    if (count > 0)
        fprintf(stderr, "worker: order %s fulfilled: %s %s\n", PQgetvalue(result, 0, 0),
                PQgetvalue(result, 0, 1), PQgetvalue(result, 0, 2));
    PQclear(result);
    return count > 0;
}

/* Milliseconds until the next order is due, at most LONGEST_WAIT; -1 if the database failed. */
static int next_wait(PGconn *db, const char *packing_seconds)
{
    static const char SQL[] =
        /* greatest() passes NULL over: without the count, no order would be due at once. */
        "SELECT CASE WHEN count(*) > 0 THEN"
        " ceil(1000 * greatest(0, $1::float8 - extract(epoch FROM now() - min(placed_at)))) END"
        " FROM orders WHERE state = 'placed'";
    PGresult *result = db_query(db, SQL, 1, &packing_seconds);
    if (!result)
        return -1;
    int wait = LONGEST_WAIT;
    if (!PQgetisnull(result, 0, 0))
        wait = atoi(PQgetvalue(result, 0, 0)) + 1;
    PQclear(result);
    return wait < LONGEST_WAIT ? wait : LONGEST_WAIT;
}

/* Tells the health check that there was a look. */
static void touch_alive(void)
{
    int file = open(ALIVE, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0 || futimens(file, NULL) < 0)
        perror(ALIVE);
    if (file >= 0)
        close(file);
}

/* Waits for a signal, a word from the database, or the time. Signals are let in only here, so that
 * none is missed between the look at `stopping` and the wait. */
static void wait_for_work(PGconn *db, int milliseconds, const sigset_t *open_mask)
{
    struct pollfd fd = {.fd = db ? PQsocket(db) : -1, .events = POLLIN};
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    ppoll(&fd, 1, &time, open_mask);
    if (!db)
        return;
    PQconsumeInput(db);
    for (PGnotify *note = PQnotifies(db); note; note = PQnotifies(db))
        PQfreemem(note);
}

/* Connects if need be, and asks to be told of new orders. */
static PGconn *ensure_listening(PGconn *db)
{
    if (db && PQstatus(db) == CONNECTION_OK)
        return db;
    PQfinish(db);
    db = db_connect();
    PGresult *result = db ? db_query(db, "LISTEN placed", 0, NULL) : NULL;
    if (db && !result) {
        PQfinish(db);
        return NULL;
    }
    PQclear(result);
    return db;
}

int main(void)
{
    sigset_t closed, open_mask;
    sigemptyset(&closed);
    sigaddset(&closed, SIGTERM);
    sigaddset(&closed, SIGINT);
    sigprocmask(SIG_BLOCK, &closed, &open_mask);
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    const char *packing_seconds = getenv("PACKING_SECONDS");
    if (!packing_seconds || !*packing_seconds)
        packing_seconds = "0";

    PGconn *db = NULL;
    while (!stopping) {
        db = ensure_listening(db);
        int found = db ? fulfil_one(db, packing_seconds) : -1;
        int wait = found < 0 ? 1000 : found > 0 ? 0 : next_wait(db, packing_seconds);
        if (found >= 0 && wait >= 0)
            touch_alive();
        wait_for_work(db, wait < 0 ? 1000 : wait, &open_mask);
    }
    PQfinish(db);
    return 0;
}
