//! Any bytes as a layer of an image from elsewhere, over a layer that has a little of everything.
#![no_main]

use std::os::fd::OwnedFd;

use kiln_core::Digest;
use kiln_fuzz::{assert_whole, file, store};
use kiln_oci::{Limits, Selector, Source};
use serde_json::json;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let lower = lower();
    let ids: Vec<String> =
        [&lower[..], bytes].map(|layer| format!("sha256:{}", Digest::of(layer).hex())).to_vec();
    let config = json!({
        "architecture": std::env::consts::ARCH, "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    let manifest = json!([{
        "Config": "c.json", "RepoTags": ["x:y"], "Layers": ["a/layer.tar", "b/layer.tar"],
    }]);
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, "manifest.json", manifest.to_string().as_bytes());
    add(&mut archive, "c.json", config.to_string().as_bytes());
    add(&mut archive, "a/layer.tar", &lower);
    add(&mut archive, "b/layer.tar", bytes);
    let archive = archive.into_inner().expect("in memory");
    let limits = Limits { unpacked: 64 << 20, ..Limits::default() };
    let fd = OwnedFd::from(file(&archive));
    let Ok(source) = Source::of_fd(fd, "fuzz".into(), store(), &limits) else { return };
    let found = source.find(&Selector::Any).and_then(|found| found.load(store(), &limits));
    if let Ok(imported) = found {
        assert_whole(&store().get_tree(&imported.image.tree).expect("it was put"));
    }
});

fn lower() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    add(&mut layer, "d/e/f", b"content");
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    layer.append_link(&mut header, "out", "../../etc").expect("in memory");
    layer.into_inner().expect("in memory")
}

fn add(archive: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, content).expect("in memory");
}
