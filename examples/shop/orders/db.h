/* The connection to PostgreSQL. */
#pragma once

#include <libpq-fe.h>

/* Connects as DB_HOST, DB_NAME, DB_USER and the file DB_PASSWORD_FILE say; NULL if it cannot, which
 * is told on standard error. */
PGconn *db_connect(void);

/* The connection, made anew if it was lost; NULL if there is none to be had. */
PGconn *db_ensure(PGconn *db);

/* Makes the table if it is not there. Returns 0, or -1 with a message on standard error. */
int db_prepare(PGconn *db);

/* Runs one statement with text parameters. Returns its result if it succeeded, which the caller
 * clears; else NULL with a message on standard error. */
PGresult *db_query(PGconn *db, const char *sql, int count, const char *const *values);
