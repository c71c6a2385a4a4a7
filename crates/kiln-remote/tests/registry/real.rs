//! Against the distribution's registry, filled by skopeo.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_remote::registry::{Document, Resolved};
use kiln_testkit::registry::{Image, PASSWORD, Tokens, USER};
use kiln_testkit::{Call, Registry};
use serde_json::Value;

use super::*;

/// The descriptors of a manifest: digest and size.
fn layers(resolved: &Resolved) -> Vec<(Digest, u64)> {
    let manifest: Value = serde_json::from_slice(&resolved.bytes).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let one = |layer: &Value| {
        (layer["digest"].as_str().unwrap().parse().unwrap(), layer["size"].as_u64().unwrap())
    };
    layers.iter().map(one).collect()
}

/// Everything of an image: manifest, configuration, layers.
fn pull_all(client: &Client<'_>, name: &str) -> Result<Vec<Vec<u8>>, Error> {
    let (reference, resolved) = client.look_up(name)?;
    assert_eq!(Digest::of(&resolved.bytes), resolved.digest);
    let manifest: Value = serde_json::from_slice(&resolved.bytes).unwrap();
    let config: Digest = manifest["config"]["digest"].as_str().unwrap().parse().unwrap();
    let size = manifest["config"]["size"].as_u64();
    let mut all = vec![client.document(&reference, &config, Document::Blob, size)?];
    let again =
        client.document(&reference, &resolved.digest, Document::Manifest, Some(resolved.size))?;
    assert_eq!(again, resolved.bytes);
    for (digest, size) in layers(&resolved) {
        let mut found = Vec::new();
        let mut reader = client.blob(&reference, &digest, size, &|_| {})?;
        reader.read_to_end(&mut found).map_err(inside)?;
        assert_eq!(Digest::of(&found), digest);
        all.push(found);
    }
    Ok(all)
}

fn image() -> Image {
    Image::new().file("hello.txt", b"hello\n").file("noise", &noise(3_000_000))
}

#[test]
fn an_open_registry_gives_everything() {
    let registry = Registry::start();
    registry.push(&image(), "team/app:1");
    let host = host(&[], &[]);
    let client = client(&host, &Anonymous);
    let name = format!("{}/team/app:1", registry.host());
    assert_eq!(pull_all(&client, &name).unwrap().len(), 3);
    let missing = format!("{}/team/app:2", registry.host());
    let error = client.resolve(&reference(&missing)).unwrap_err();
    assert!(error.is_absent() && error.to_string().contains("manifest unknown"), "{error}");
    assert_eq!(error.hint().as_deref(), Some("check name and tag"));
}

#[test]
fn both_families_of_manifests_come_as_they_are() {
    let registry = Registry::start();
    let layout = tempfile::tempdir().unwrap();
    image().write(layout.path());
    let source = format!("oci:{}:image", layout.path().display());
    registry.copy(&source, "app:docker", &["--format", "v2s2"]);
    registry.copy(&source, "app:oci", &["--format", "oci"]);
    let host = host(&[], &[]);
    let client = client(&host, &Anonymous);
    for (tag, media_type) in [
        ("docker", "application/vnd.docker.distribution.manifest.v2+json"),
        ("oci", "application/vnd.oci.image.manifest.v1+json"),
    ] {
        let name = format!("{}/app:{tag}", registry.host());
        let (_, resolved) = client.look_up(&name).unwrap();
        assert_eq!(resolved.media_type, media_type);
        pull_all(&client, &name).unwrap();
    }
}

#[test]
fn four_layers_come_at_once_and_tell_how_far_they_are() {
    let registry = Registry::start();
    let image = (0..4).fold(Image::new(), |image, number| {
        image.file(&format!("noise{number}"), &noise(1_000_000 + number))
    });
    registry.push(&image, "app:1");
    let host = host(&[], &[]);
    let client = client(&host, &Anonymous);
    let reference = reference(&format!("{}/app:1", registry.host()));
    let resolved = client.resolve(&reference).unwrap();
    let layers = layers(&resolved);
    assert_eq!(layers.len(), 4);
    std::thread::scope(|scope| {
        for (digest, size) in layers {
            let (client, reference) = (&client, &reference);
            scope.spawn(move || {
                let seen = AtomicU64::new(0);
                let progress = |bytes| {
                    assert!(seen.swap(bytes, Ordering::Relaxed) < bytes);
                };
                let mut reader = client.blob(reference, &digest, size, &progress).unwrap();
                assert_eq!(std::io::copy(&mut reader, &mut std::io::sink()).unwrap(), size);
                drop(reader);
                assert_eq!(seen.load(Ordering::Relaxed), size);
            });
        }
    });
}

#[test]
fn a_private_authority_and_a_password() {
    let registry = Registry::options().tls().basic().start();
    registry.push(&image(), "app:1");
    // By a name that is not the loopback's for the client: what is there is taken on trust.
    let name = format!("localhost:{}/app:1", registry.port());
    let authority = fs::read_to_string(registry.authority()).unwrap();
    let certs = format!("containers/certs.d/localhost:{}/ca.crt", registry.port());
    let host = host(&[(&certs, &authority)], &[]);
    let known = Known::password(USER, PASSWORD);
    assert_eq!(pull_all(&client(&host, &known), &name).unwrap().len(), 3);

    let error = pull_all(&client(&host, &Anonymous), &name).unwrap_err();
    assert!(error.hint().unwrap().contains("kiln login localhost:"), "{error}");
    let wrong = Known::password(USER, "something else");
    let error = pull_all(&client(&host, &wrong), &name).unwrap_err();
    assert!(matches!(error, Error::Denied { with_credentials: true, .. }), "{error:?}");
    assert!(!format!("{error:?}").contains("something else"));
}

#[test]
fn tokens_are_fetched_once_shared_and_renewed() {
    let tokens = Tokens::start();
    let registry = Registry::options().tokens(&tokens).start();
    registry.push(&image(), "team/app:1");
    let host = host(&[], &[]);
    let client = client(&host, &Anonymous);
    let name = format!("{}/team/app:1", registry.host());
    let before = tokens.given();
    pull_all(&client, &name).unwrap();
    assert_eq!(tokens.given() - before, 1, "{:?}", tokens.asked());
    let asked = tokens.asked().pop().unwrap();
    assert!(asked.contains("scope=repository:team/app:pull"), "{asked}");
    // Who needs one at the same time waits for the one that is on its way.
    let together = super::client(&host, &Anonymous);
    let (reference, resolved) = client.look_up(&name).unwrap();
    let before = tokens.given();
    std::thread::scope(|scope| {
        for (digest, size) in layers(&resolved).repeat(3) {
            let (client, reference) = (&together, &reference);
            scope.spawn(move || client.blob(reference, &digest, size, &|_| {}).map(drop).unwrap());
        }
    });
    assert_eq!(tokens.given() - before, 1, "{:?}", tokens.asked());
    // A token that is nearly over is replaced before it is used.
    tokens.hold(5);
    let short = super::client(&host, &Anonymous);
    let before = tokens.given();
    pull_all(&short, &name).unwrap();
    assert!(tokens.given() - before > 1, "{:?}", tokens.asked());
}

#[test]
fn a_token_is_had_with_a_password_and_with_an_identity_token() {
    let tokens = Tokens::start().private();
    let registry = Registry::options().tokens(&tokens).start();
    registry.push(&image(), "app:1");
    let host = host(&[], &[]);
    let name = format!("{}/app:1", registry.host());
    pull_all(&client(&host, &Known::password(USER, PASSWORD)), &name).unwrap();
    let identity = Known(Credential::Identity(kiln_testkit::registry::tokens::REFRESH.to_owned()));
    pull_all(&client(&host, &identity), &name).unwrap();
    let asked = tokens.asked().pop().unwrap();
    assert!(asked.starts_with("POST ") && asked.contains("grant_type=refresh_token"), "{asked}");
    for wrong in [Known::password(USER, "x"), Known(Credential::Identity("x".to_owned()))] {
        let error = pull_all(&client(&host, &wrong), &name).unwrap_err();
        assert!(matches!(error, Error::Denied { with_credentials: true, .. }), "{error:?}");
    }
    let error = pull_all(&client(&host, &Anonymous), &name).unwrap_err();
    assert!(matches!(error, Error::Denied { with_credentials: false, .. }), "{error:?}");
}

#[test]
fn names_mirrors_and_blocks_are_those_of_the_hosts_files() {
    let (mirror, origin) = (Registry::start(), Registry::start());
    origin.push(&image(), "team/app:1");
    mirror.push(&image(), "copies/app:1");
    let conf = format!(
        r#"
unqualified-search-registries = ["quay.invalid"]
[aliases]
app = "shop.example/team/app"
[[registry]]
prefix = "shop.example/team"
location = "{}/team"
[[registry.mirror]]
location = "{}/copies"
[[registry]]
prefix = "bad.example"
blocked = true
"#,
        origin.host(),
        mirror.host()
    );
    let host = host(&[("containers/registries.conf.d/50-test.conf", &conf)], &[]);
    let one = client(&host, &Anonymous);
    let (found, resolved) = one.look_up("app:1").unwrap();
    assert_eq!(found.to_string(), "shop.example/team/app:1");
    pull_all(&one, "shop.example/team/app:1").unwrap();
    assert_eq!(origin.asked("GET /v2/team"), 0, "{}", origin.log());
    assert!(mirror.asked("GET /v2/copies/app/blobs") > 0);
    let error = one.look_up("bad.example/app").unwrap_err();
    assert!(matches!(error, Error::Blocked { .. }), "{error}");
    assert!(error.to_string().contains("50-test.conf"), "{error}");
    // What the mirror does not have comes from the origin, and so does all when it is gone.
    let tag = Call::new("skopeo").args(["copy", "--insecure-policy", "--src-tls-verify=false"]);
    let from = format!("docker://{}/team/app:1", origin.host());
    let to = format!("docker://{}/team/app:2", origin.host());
    tag.args(["--dest-tls-verify=false", &from, &to]).run_ok().unwrap();
    assert_eq!(one.look_up("app:2").unwrap().1, resolved);
    drop(mirror);
    pull_all(&client(&host, &Anonymous), "app:1").unwrap();
    assert!(origin.asked("GET /v2/team/app/blobs") > 0);
}
