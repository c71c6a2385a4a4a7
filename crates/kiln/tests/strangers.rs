//! Programs of Debian with the habits of their entrypoints (`chown -R`, `sed -i` in `/etc`, pid files,
//! data beside the program), run as they are: PostgreSQL, Redis, nginx, and Python with SQLite.

mod common;

use std::time::Duration;

use common::instance;
use kiln_testkit::{Output, Port, Project, World, wait_until};
use serde_json::Value;

/// The bake downloads and configures some hundred packages.
const BAKE_PATIENCE: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(60);

const COMPOSE: &str = r#"
name: strangers
services:
  db:
    build: ./db
    healthcheck: { test: [CMD, runuser, -u, postgres, --, psql, -h, /var/run/postgresql, -c, select 1], interval: 1s, timeout: 20s, retries: 60 }
  cache:
    build: ./cache
    healthcheck: { test: [CMD, redis-cli, -p, "7000", ping], interval: 1s, timeout: 20s, retries: 60 }
  web:
    build: ./web
    ports: ["WEB:8080"]
    healthcheck: { test: [CMD, python3, -c, "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/')"], interval: 1s, timeout: 20s, retries: 60 }
  app:
    build: ./app
    ports: ["APP:8000"]
x-kiln:
  bases:
    all: { debian: bookworm, packages: [postgresql-15, redis-server, nginx-light, python3] }
"#;

/// As in the image `postgres`: becomes the owner of everything, makes a cluster, gives up root.
const DB: (&str, &str) = (
    "FROM all\nENV PGDATA=/var/lib/postgresql/data PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin\n\
     VOLUME /var/lib/postgresql/data\nCOPY --chmod=755 entry /entry\nENTRYPOINT [\"/entry\"]\nCMD [\"postgres\"]\n",
    r#"#!/bin/bash
set -e
if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA" /var/run/postgresql
  chown -R postgres "$PGDATA"; chmod 700 "$PGDATA"
  chown -R postgres:postgres /var/run/postgresql /usr/share/postgresql; chmod 2775 /var/run/postgresql
  exec runuser -u postgres -- "$0" "$@"
fi
[ -s "$PGDATA/PG_VERSION" ] || initdb --auth=trust -D "$PGDATA" > /dev/null
exec "$@" -D "$PGDATA" -k /var/run/postgresql
"#,
);

/// As in the image `redis`, with a configuration that it edits.
const CACHE: (&str, &str) = (
    "FROM all\nVOLUME /data\nWORKDIR /data\nCOPY --chmod=755 entry /entry\nENTRYPOINT [\"/entry\"]\n",
    r##"#!/bin/bash
set -e
find . \! -user redis -exec chown redis '{}' +
sed -i 's/^port .*/port 7000/; s/^daemonize .*/daemonize no/; s#^dir .*#dir /data#; s#^logfile .*#logfile ""#' /etc/redis/redis.conf
exec setpriv --reuid redis --regid redis --clear-groups redis-server /etc/redis/redis.conf
"##,
);

/// nginx that writes its port into its configuration, and its pid below `/run`.
const WEB: (&str, &str) = (
    "FROM all\nEXPOSE 8080\nCOPY --chmod=755 entry /entry\nENTRYPOINT [\"/entry\"]\n",
    r#"#!/bin/sh
set -e
sed -i 's/listen 80 /listen 8080 /; s/listen \[::\]:80 /listen [::]:8080 /' /etc/nginx/sites-enabled/default
chown -R www-data:www-data /var/lib/nginx
exec nginx -g 'daemon off;'
"#,
);

/// A program that keeps its database beside itself, and a module that is compiled on import.
const APP: (&str, &str) = (
    "FROM all\nEXPOSE 8000\nWORKDIR /app\nCOPY entry part.py /app/\nCMD [\"python3\", \"entry\"]\n",
    r#"
import http.server, sqlite3, part
db = sqlite3.connect('app.db', check_same_thread=False)
db.execute('create table if not exists hits (at text)'); db.commit()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        db.execute("insert into hits values ('x')"); db.commit()
        count = db.execute('select count(*) from hits').fetchone()[0]
        body = f'hit {count} {part.WORD}'.encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body)))
        self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(('', 8000), Handler).serve_forever()
"#,
);

#[track_caller]
fn kiln<const N: usize>(world: &World, project: &Project, args: [&str; N]) -> Output {
    let call = world.call(args).dir(project.dir()).patience(BAKE_PATIENCE);
    call.run().unwrap_or_else(|error| panic!("{error:#}"))
}

/// What `status` says that a service has written: kind and path.
fn written(status: &Value, service: &str) -> Vec<String> {
    let services = status["services"].as_array().unwrap();
    let found = services.iter().find(|found| found["service"] == service).unwrap();
    let lines = found["written"]["lines"].as_array().cloned().unwrap_or_default();
    let shown = |line: &Value| {
        format!("{} {}", line["kind"].as_str().unwrap(), line["path"].as_str().unwrap())
    };
    lines.iter().map(shown).collect()
}

fn page(port: &Port) -> String {
    match kiln_testkit::http::get(port.number(), "/") {
        Ok(response) => response.text(),
        Err(error) => format!("no answer: {error:#}"),
    }
}

#[test]
fn databases_and_servers_of_debian_run_as_they_are() {
    let world = World::new(common::KILN);
    let (web, app) = (Port::claim(), Port::claim());
    let compose =
        COMPOSE.replace("WEB", &web.number().to_string()).replace("APP", &app.number().to_string());
    let project = world.project("strangers", &compose);
    for (name, (dockerfile, entry)) in [("db", DB), ("cache", CACHE), ("web", WEB), ("app", APP)] {
        project.write(&format!("{name}/Dockerfile"), dockerfile);
        project.write(&format!("{name}/entry"), entry);
    }
    project.write("app/part.py", "WORD = 'beside'\n");
    let up = kiln(&world, &project, ["up", "--timeout", "120"]).expect_done();
    wait_until(PATIENCE, "nginx to answer", || page(&web).contains("nginx").then_some(()));
    wait_until(PATIENCE, "the app to answer", || page(&app).contains("beside").then_some(()));
    let sql =
        ["exec", "db", "runuser", "-u", "postgres", "--", "psql", "-h", "/var/run/postgresql"];
    let psql = |text: &str| {
        let args = sql.iter().copied().chain(["-Atc", text]);
        let output = world.call(args).dir(project.dir()).run().unwrap();
        output.expect_done().stdout
    };
    psql("create table kept (what text)");
    psql("insert into kept values ('row')");
    let redis = |words: &str| {
        let words = format!("exec cache redis-cli -p 7000 {words}");
        let output = world.call(words.split(' ')).dir(project.dir()).run().unwrap();
        output.expect_done().stdout
    };
    redis("set key value");
    redis("save");

    // What each has written is told, in few lines, and the cures name it.
    let status = kiln(&world, &project, ["status", "--json"]).expect_done().json();
    let of = |service: &str| written(&status, service);
    assert!(
        of("db").iter().any(|line| line.starts_with("owner /usr/share/postgresql")),
        "{:?}",
        of("db")
    );
    assert!(
        of("cache").iter().any(|line| line == "system /etc/redis/redis.conf"),
        "{:?}",
        of("cache")
    );
    assert!(
        of("web").iter().any(|line| line.starts_with("system /etc/nginx/sites-")),
        "{:?}",
        of("web")
    );
    assert!(of("app").iter().any(|line| line == "data /app/app.db"), "{:?}", of("app"));
    assert!(
        of("app").iter().any(|line| line.starts_with("cache /app/__pycache__")),
        "{:?}",
        of("app")
    );
    assert!(up.stdout.contains("with /app/app.db moved into it"), "{}", up.stdout);

    // Replaced: the volumes of the databases stay, the file beside the program is named and goes.
    let before = instance(&world, &project, "app", "active").unwrap();
    for name in ["db", "cache", "app"] {
        project.edit(
            &format!("{name}/Dockerfile"),
            "FROM all\n",
            "FROM all\nLABEL again=1\nENV AGAIN=1\n",
        );
    }
    let again = kiln(&world, &project, ["up", "--timeout", "120"]).expect_done();
    assert!(
        again.stderr.contains("`app`: /app/app.db goes with this instance"),
        "{}",
        again.stderr
    );
    assert_ne!(instance(&world, &project, "app", "active").unwrap()["id"], before["id"]);
    assert_eq!(psql("select what from kept").trim(), "row");
    assert_eq!(redis("get key").trim(), "value");
    wait_until(PATIENCE, "a new database", || page(&app).starts_with("hit 1 ").then_some(()));

    // The lines that it was told cure it: on a read-only root nothing is lost any more.
    let refused = kiln(&world, &project, ["up", "--strict", "--timeout", "60"]).expect_code(4);
    assert!(refused.stderr.contains("read-only"), "{}", refused.stderr);
    let learnt = kiln(&world, &project, ["up", "--learn", "web"]).expect_done();
    assert!(learnt.stdout.contains("/etc/nginx/sites-"), "{}", learnt.stdout);
    assert_eq!(psql("select what from kept").trim(), "row", "what served goes on serving");
}
