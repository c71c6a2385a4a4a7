//! `examples/shop` as it is shipped, but for its port: brought up, used, edited, rolled back,
//! its database replaced under a pause, taken down and up again, and baked once more from nothing.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_testkit::{Client, Output, Port, Probe, Project, Running, World, wait_until};
use serde_json::{Value, json};

/// The first bake downloads and configures some hundred packages and compiles a little.
const BAKE_PATIENCE: Duration = Duration::from_secs(600);

/// A request may be held for 30 s while data is replaced.
const HELD: Duration = Duration::from_secs(40);

struct Shop {
    world: World,
    project: Project,
    port: Port,
}

impl Shop {
    fn new() -> Self {
        let world = World::new(common::KILN);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop");
        let project = Project::copy_of(&source, world.home().join("shop"));
        let port = Port::claim();
        project.edit("compose.yaml", "8080:8080", &format!("{port}:8080"));
        Self { world, project, port }
    }

    /// Many answers in a row say `text`: long enough for a prober beside it to hear it too.
    #[track_caller]
    fn says(&self, text: &str) {
        let mut client = self.client();
        for _ in 0..50 {
            let page = client.get("/").unwrap().text();
            assert!(page.contains(text), "`{text}` in {page}");
        }
    }

    #[track_caller]
    fn kiln<const N: usize>(&self, args: [&str; N]) -> Output {
        let call = self.world.call(args).dir(self.project.dir()).patience(BAKE_PATIENCE);
        call.run().unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn client(&self) -> Client {
        Client::local(self.port.number()).patience(HELD)
    }

    /// Whether `release` serves, by the header of an answer.
    fn serves(&self, release: &Value) -> bool {
        let answer = self.client().get("/").unwrap();
        answer.status == 200 && answer.header("x-kiln-release") == Some(&short(release))
    }

    fn orders(&self) -> Vec<Value> {
        let answer = self.client().get("/api/orders").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn order(&self, number: &Value) -> Option<Value> {
        self.orders().into_iter().find(|order| order["id"] == *number)
    }

    /// What PostgreSQL itself says.
    fn sql(&self, query: &str) -> String {
        let psql = ["exec", "postgres", "psql", "-h", "/tmp", "-U", "shop", "-tAc", query];
        self.kiln(psql).expect_done().stdout.trim().to_owned()
    }
}

/// A release as the header names it.
fn short(release: &Value) -> String {
    let hex = release.as_str().expect("a digest").trim_start_matches("sha256:");
    hex[..12].to_owned()
}

/// Places an order and gives its number.
fn place(client: &mut Client, customer: &str) -> Result<Value, String> {
    let body = format!("customer={customer}&item=bowl&quantity=2");
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let answer = client.request("POST", "/api/orders", &form, body.as_bytes());
    let answer = answer.map_err(|error| format!("{error:#}"))?;
    match answer.status {
        200 | 201 => {
            let placed: Value = serde_json::from_slice(&answer.body).map_err(|e| e.to_string())?;
            Ok(placed["id"].clone())
        }
        status => Err(format!("status {status}: {}", answer.text())),
    }
}

/// Tree and configuration of each image; how many steps were known is the store's history.
fn images(baked: &Output) -> Value {
    let images = baked.json()["images"].clone();
    let images = images.as_object().expect("a map of images");
    assert_eq!(images.len(), 6, "{images:?}");
    let identity = |image: &Value| json!([image["tree"].as_str(), image["config"].as_str()]);
    images.iter().map(|(name, image)| (name.clone(), identity(image))).collect()
}

#[test]
fn the_shop_from_first_bake_to_last_order() {
    let shop = Shop::new();
    assert!(!shop.project.path("kiln.lock").exists(), "it is shipped without a lock");
    let first = shop.kiln(["up", "--json"]).expect_done().json();
    assert!(shop.project.path("kiln.lock").exists(), "`up` wrote the lock");
    assert!(shop.serves(&first["release"]), "{first}");
    let page = shop.client().get("/").unwrap().text();
    assert!(page.contains("Stoneware, fired once, never altered."), "{page}");
    let products = shop.client().get("/api/products").unwrap();
    assert!(products.text().contains("price_cents"), "{}", products.text());

    let elsewhere = Elsewhere::begin(&shop);
    orders_are_taken_and_fulfilled(&shop);
    the_cluster_was_made_at_first_start(&shop);
    an_edit_of_the_page_loses_nothing(&shop, &first["release"]);
    a_change_to_postgres_loses_no_order(&shop);
    the_orders_outlive_down(&shop);
    elsewhere.bakes_the_same();
}

fn orders_are_taken_and_fulfilled(shop: &Shop) {
    let number = place(&mut shop.client(), "Ada").unwrap();
    assert_eq!(shop.order(&number).expect("it is listed")["customer"], "Ada");
    wait_until(common::PATIENCE, "the worker to fulfil the order", || {
        (shop.order(&number)?["state"] == "fulfilled").then_some(())
    });
}

/// Neither a cluster nor a key is in the image; what lies in the volume was made there.
fn the_cluster_was_made_at_first_start(shop: &Shop) {
    let logs = shop.kiln(["logs", "postgres"]).expect_done().stdout;
    assert!(logs.contains("no cluster in the volume: making one"), "{logs}");
    let places = ["/var/lib/postgresql", "/etc/postgresql", "/etc/ssl/private"];
    let script = format!("find {} -xdev -type f; cat /etc/machine-id", places.join(" "));
    let found = shop.kiln(["exec", "--user", "root", "postgres", "sh", "-c", &script]);
    assert_eq!(found.stdout, "", "baked into the image: {found}");
    assert!(shop.sql("SHOW data_directory").starts_with("/var/lib/postgresql/data"));
}

fn an_edit_of_the_page_loses_nothing(shop: &Shop, first: &Value) {
    let judge = |answer: &kiln_testkit::Response| match answer.header("x-kiln-release") {
        Some(release) if answer.status == 200 => Ok(release.to_owned()),
        _ => Err(format!("status {}", answer.status)),
    };
    let probing = Probe::local(shop.port.number(), 300).judge(judge).start();
    shop.says("never altered");
    shop.project.edit("web/site/index.html", "never altered", "never repaired");
    let second = shop.kiln(["up", "--json"]).expect_done().json();
    let (old, new) = (short(first), short(&second["release"]));
    shop.says("never repaired");
    let report = probing.stop().unwrap().expect_no_loss();
    assert!(report.moved_once(&old, &new), "{report}");

    let probing = Probe::local(shop.port.number(), 300).judge(judge).start();
    shop.says("never repaired");
    let back = shop.kiln(["rollback", "--json"]).expect_done().json();
    shop.says("never altered");
    let report = probing.stop().unwrap().expect_no_loss();
    assert_eq!(back["release"], *first);
    assert!(report.moved_once(&new, &old), "{report}");
}

fn a_change_to_postgres_loses_no_order(shop: &Shop) {
    shop.project.edit(
        "compose.yaml",
        "      DB_USER: shop\n",
        "      DB_USER: shop\n      TZ: UTC\n",
    );
    let plan = shop.kiln(["plan", "--json"]).expect_done().json();
    assert_eq!(plan["pause"], true, "{plan}");
    let paused = plan["plan"]["paused"].as_array().unwrap();
    assert!(paused.iter().any(|paused| paused["service"] == "postgres"), "{plan}");

    let before: usize = shop.sql("SELECT count(*) FROM orders").parse().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let placing = std::thread::spawn({
        let (mut client, stop) = (shop.client(), Arc::clone(&stop));
        move || {
            let mut placed = 0;
            while !stop.load(Ordering::Relaxed) {
                place(&mut client, "Grace").unwrap_or_else(|why| {
                    panic!("order {} was lost: {why}", placed + 1);
                });
                placed += 1;
            }
            placed
        }
    });
    let said = shop.kiln(["up"]).expect_done();
    stop.store(true, Ordering::Relaxed);
    let placed: usize = placing.join().expect("no order was lost");
    assert!(said.stderr.contains("`postgres` is replaced under a pause"), "{said}");
    assert!(placed > 0);
    let after: usize = shop.sql("SELECT count(*) FROM orders").parse().unwrap();
    assert_eq!(after, before + placed, "each answered order is there once");
}

fn the_orders_outlive_down(shop: &Shop) {
    let before = shop.sql("SELECT count(*) FROM orders");
    shop.kiln(["down"]).expect_done();
    assert!(shop.client().get("/").is_err(), "nothing serves");
    shop.kiln(["up"]).expect_done();
    assert_eq!(shop.sql("SELECT count(*) FROM orders"), before);
    let number = place(&mut shop.client(), "Edsger").unwrap();
    assert!(shop.order(&number).is_some());
}

/// The same source baked on another root, from nothing but its lock, while all else goes on.
struct Elsewhere {
    world: World,
    project: Project,
    bake: Running,
    expected: Value,
    lock: String,
}

impl Elsewhere {
    fn begin(shop: &Shop) -> Self {
        let expected = images(&shop.kiln(["bake", "--json"]).expect_done());
        let lock = shop.project.read("kiln.lock");
        let world = World::new(common::KILN);
        let project = Project::copy_of(shop.project.dir(), world.home().join("elsewhere"));
        project.write("kiln.lock", &lock);
        let bake = world.call(["bake", "--json"]).dir(project.dir()).patience(BAKE_PATIENCE);
        let bake = bake.spawn().unwrap();
        Self { world, project, bake, expected, lock }
    }

    fn bakes_the_same(self) {
        let baked = self.bake.wait().unwrap_or_else(|error| panic!("{error:#}")).expect_done();
        self.world.scope(); // for the look around at the end
        assert_eq!(images(&baked), self.expected);
        assert_eq!(self.project.read("kiln.lock"), self.lock);
    }
}
