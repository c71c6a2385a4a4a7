#!/bin/sh
# Makes the cluster if the volume has none, then becomes PostgreSQL.
#
# DB_NAME, DB_USER   database and its owner
# DB_PASSWORD_FILE   the owner's password, one line
set -eu

bin=/usr/lib/postgresql/15/bin
data=/var/lib/postgresql/data/cluster
new=$data.new

if [ ! -d "$data" ]; then
    echo "no cluster in the volume: making one"
    # Beside its final place and moved when whole: killed half-way, it is made again.
    rm -rf "$new"
    "$bin/initdb" --pgdata="$new" --username="$DB_USER" --pwfile="$DB_PASSWORD_FILE" \
        --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --no-sync
    # Addresses differ from release to release; the password is what counts.
    echo "host all all all scram-sha-256" >> "$new/pg_hba.conf"
    # In single-user mode nobody can connect before the cluster is ready.
    echo "CREATE DATABASE \"$DB_NAME\"" | "$bin/postgres" --single -D "$new" postgres > /dev/null
    sync -f "$new"
    mv "$new" "$data"
    sync -f "$data"
fi

exec "$bin/postgres" -D "$data" \
    -c listen_addresses='*' \
    -c unix_socket_directories=/tmp \
    -c shared_buffers=32MB \
    -c max_connections=60
