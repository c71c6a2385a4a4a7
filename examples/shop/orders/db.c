#include "db.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char SCHEMA[] =
    /* Two releases may start at once, and "if not exists" alone does not keep them apart. */
    "BEGIN;"
    "SELECT pg_advisory_xact_lock(7400);"
    "CREATE TABLE IF NOT EXISTS orders ("
    "  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    "  customer text NOT NULL CHECK (length(customer) BETWEEN 1 AND 60),"
    "  item text NOT NULL CHECK (item ~ '^[a-z0-9-]{1,40}$'),"
    "  quantity int NOT NULL CHECK (quantity BETWEEN 1 AND 99),"
    "  state text NOT NULL DEFAULT 'placed',"
    "  placed_at timestamptz NOT NULL DEFAULT now(),"
    "  fulfilled_at timestamptz);"
    "CREATE INDEX IF NOT EXISTS orders_placed ON orders (id) WHERE state = 'placed';"
    "COMMIT";

static const char *setting(const char *name, const char *fallback)
{
    const char *value = getenv(name);
    return value && *value ? value : fallback;
}

/* Reads the first line of the password's file; empty if no file is named. */
static int read_password(char *line, int size)
{
    line[0] = '\0';
    const char *path = getenv("DB_PASSWORD_FILE");
    if (!path)
        return 0;
    FILE *file = fopen(path, "re");
    if (!file) {
        perror(path);
        return -1;
    }
    if (!fgets(line, size, file))
        line[0] = '\0';
    fclose(file);
    line[strcspn(line, "\r\n")] = '\0';
    return 0;
}

PGconn *db_connect(void)
{
    char password[256];
    if (read_password(password, sizeof password) < 0)
        return NULL;
    const char *const names[] = {"host", "dbname", "user", "password", "connect_timeout", NULL};
    const char *const values[] = {setting("DB_HOST", "127.0.0.1"), setting("DB_NAME", "shop"),
                                  setting("DB_USER", "shop"), password, "3", NULL};
    PGconn *db = PQconnectdbParams(names, values, 0);
    memset(password, 0, sizeof password);
    if (PQstatus(db) == CONNECTION_OK)
        return db;
    fprintf(stderr, "database: %s", PQerrorMessage(db));
    PQfinish(db);
    return NULL;
}

/* Whether the connection still stands. What the server said since the last statement, perhaps its
 * farewell, is read first: a statement that was never sent can go over a new connection. */
static int is_alive(PGconn *db)
{
    struct pollfd fd = {.fd = PQsocket(db), .events = POLLIN};
    while (PQstatus(db) == CONNECTION_OK && poll(&fd, 1, 0) > 0) {
        if (!PQconsumeInput(db))
            return 0;
    }
    return PQstatus(db) == CONNECTION_OK;
}

PGconn *db_ensure(PGconn *db)
{
    if (db && is_alive(db))
        return db;
    PQfinish(db);
    return db_connect();
}

int db_prepare(PGconn *db)
{
    PGresult *result = PQexec(db, SCHEMA);
    int failed = PQresultStatus(result) != PGRES_COMMAND_OK;
    if (failed)
        fprintf(stderr, "database: %s", PQerrorMessage(db));
    PQclear(result);
    return failed ? -1 : 0;
}

PGresult *db_query(PGconn *db, const char *sql, int count, const char *const *values)
{
    PGresult *result = PQexecParams(db, sql, count, NULL, values, NULL, NULL, 0);
    ExecStatusType status = PQresultStatus(result);
    if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
        return result;
    fprintf(stderr, "database: %s", PQerrorMessage(db));
    PQclear(result);
    return NULL;
}
