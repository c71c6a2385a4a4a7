//! Bytes that are a promise: whoever exports the same image gets the same digests, today and with
//! the next version. A change here changes every manifest digest: say so in `docs/export.md`.

use std::io::Write as _;

use kiln_core::Digest;
use kiln_oci::compress::Compressor;
use kiln_oci::{Compression, Format};

use crate::kit::{self, Home};

fn compressed(how: Compression, workers: usize, content: &[u8]) -> Vec<u8> {
    let mut compressor = Compressor::new(Vec::new(), how, workers);
    // In odd pieces: how the input comes must not matter.
    for piece in content.chunks(700_001) {
        compressor.write_all(piece).unwrap();
    }
    compressor.finish().unwrap()
}

#[test]
fn compressed_bytes_are_pinned() {
    let zeros = vec![0; 9_000_000];
    let text = kit::pattern(9_000_000);
    let vectors: [(&str, &[u8], Compression, &str); 6] = [
        (
            "nothing",
            b"",
            Compression::Gzip,
            "30e6fa98fb48c2b132824d1ac5e2243c0be9e9082ff32598d34d7687ca7f6c7f",
        ),
        (
            "zeros",
            &zeros,
            Compression::Gzip,
            "e06da8ca800dfa8293bc7ffcccd577c1180667d54d6a3c1b41ac88dedd81acc4",
        ),
        (
            "text",
            &text,
            Compression::Gzip,
            "0d210cd3dee82f0249a340bfb518389c91e96e46767b079bd3ca7491f7114668",
        ),
        (
            "nothing",
            b"",
            Compression::Zstd,
            "6fb8543883dafcc2ed0934866b8b3f775231f5b0933add08bf502e9e84944cbd",
        ),
        (
            "zeros",
            &zeros,
            Compression::Zstd,
            "ec88d6f346bb92274e31744eab72b40d8b922bf5d908b9cf247fe24f19b69b09",
        ),
        (
            "text",
            &text,
            Compression::Zstd,
            "28a18e51fa94b0c2cf9c2ecb8cfc2ea02bcd88213a686bd61cfead087644b5d4",
        ),
    ];
    let mut wrong = Vec::new();
    for (name, content, how, expected) in vectors {
        for workers in [1, 2, 7] {
            let found = Digest::of(compressed(how, workers, content)).hex();
            if found != expected {
                wrong.push(format!("{} of {name}, {workers} workers: {found}", how.word()));
            }
        }
    }
    assert!(wrong.is_empty(), "the bytes have changed:\n{}", wrong.join("\n"));
}

#[test]
fn an_image_is_pinned() {
    let home = Home::new();
    let image = home.image(&kit::everything(&home, true), &kit::full_config());
    let pinned = |how: Compression| {
        let exported = home.layout(how.word(), image, how);
        let digests = [exported.manifest, exported.id, exported.layer, exported.diff_id];
        digests.map(|digest| digest.short()).join(" ")
    };
    assert_eq!(image.tree.short(), "bc0c041a6648");
    assert_eq!(image.config.short(), "818f1bfc5540");
    let expected = [
        "e6a77b03a6a8 2722e39526f9 fbd7445fa8c5 fbd7445fa8c5",
        "1bcf049b83d3 2722e39526f9 de138c112435 fbd7445fa8c5",
        "8b25396aa9fa 2722e39526f9 0927c5e727b5 fbd7445fa8c5",
    ];
    let all = [Compression::None, Compression::Gzip, Compression::Zstd].map(pinned);
    assert_eq!(all, expected, "manifest, configuration, layer, uncompressed layer");
}

#[test]
fn another_store_gives_the_same_files() {
    let export = || {
        let home = Home::new();
        let image = home.image(&kit::everything(&home, true), &kit::full_config());
        home.layout("out", image, Compression::Gzip);
        home.archive("out.tar", image, Format::OciArchive);
        home.archive("docker.tar", image, Format::DockerArchive);
        let archives =
            ["out.tar", "docker.tar"].map(|name| std::fs::read(home.path(name)).unwrap());
        (kit::files(&home.path("out")), archives)
    };
    let (first, second) = (export(), export());
    assert!(first == second, "two exports differ");
    assert_eq!(first.0.len(), 5, "oci-layout, index.json and three blobs");
}

#[test]
fn what_was_written_is_read_back_as_it_was() {
    let home = Home::new();
    let image = home.image(&kit::everything(&home, true), &kit::full_config());
    for how in [Compression::Gzip, Compression::Zstd, Compression::None] {
        home.layout(how.word(), image, how);
        assert_eq!(home.read(how.word()).unwrap(), image, "{}", how.word());
    }
    for format in [Format::OciArchive, Format::DockerArchive] {
        let name = format!("{}.tar", format.word());
        home.archive(&name, image, format);
        assert_eq!(home.read(&name).unwrap(), image, "{name}");
        // As a whole compressed, as people send archives around.
        let packed = compressed(Compression::Gzip, 1, &std::fs::read(home.path(&name)).unwrap());
        std::fs::write(home.path("packed.tar.gz"), packed).unwrap();
        assert_eq!(home.read("packed.tar.gz").unwrap(), image, "{name}.gz");
    }
}

#[test]
fn an_empty_configuration_stays_empty() {
    let home = Home::new();
    let config = kiln_core::ImageConfig::default();
    let image = home.image(&kiln_core::Tree::new(), &config);
    home.layout("out", image, Compression::Gzip);
    assert_eq!(home.read("out").unwrap(), image);
}
