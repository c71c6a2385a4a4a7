//! The text form of a lock, written by hand so that it diffs well: fixed order of keys, one package
//! a line. The `toml` crate reads it.

use std::fmt::Write as _;

use super::lock::{Lock, LockedBase, LockedPackage};
use super::locked_image::{LockedImage, LockedPlatform};
use crate::remote::{LockedGit, LockedUrl};

/// A whole `kiln.lock`.
pub(super) fn write(lock: &Lock) -> String {
    let mut out = String::from(
        "# Written by `kiln lock`. Keep it in version control beside compose.yaml: it decides\n\
         # what is baked. `kiln lock --update` takes newer packages.\n",
    );
    let format = if lock.images.is_empty() { 1 } else { 2 };
    let _ = writeln!(out, "format = {format}\ndate = {}", quote(&lock.date));
    write_remotes(&mut out, lock);
    for (name, image) in &lock.images {
        let _ = write!(out, "\n[images.{}]\n", key(name));
        write_image(&mut out, image);
    }
    for (name, base) in &lock.bases {
        let _ = write!(out, "\n[bases.{}]\n", key(name));
        write_base(&mut out, base);
    }
    out
}

/// What ADD takes from outside, one a line; nothing where there is none.
fn write_remotes(out: &mut String, lock: &Lock) {
    if !lock.urls.is_empty() {
        let _ = writeln!(out, "urls = [");
        for LockedUrl { url, size, sha256 } in &lock.urls {
            let _ = writeln!(
                out,
                "  {{ url = {}, size = {size}, sha256 = {} }},",
                quote(url),
                quote(&sha256.hex())
            );
        }
        let _ = writeln!(out, "]");
    }
    if !lock.git.is_empty() {
        let _ = writeln!(out, "git = [");
        for LockedGit { remote, name, full, tag, commit } in &lock.git {
            let tag = match tag.as_str() {
                "" => String::new(),
                tag => format!("tag = {}, ", quote(tag)),
            };
            let _ = writeln!(
                out,
                "  {{ remote = {}, ref = {}, full = {}, {tag}commit = {} }},",
                quote(remote),
                quote(name),
                quote(full),
                quote(commit)
            );
        }
        let _ = writeln!(out, "]");
    }
}

fn write_image(out: &mut String, image: &LockedImage) {
    let _ = writeln!(out, "reference = {}", quote(&image.reference));
    let _ = writeln!(out, "index = {}\nsize = {}", quote(&image.index.to_string()), image.size);
    let _ = writeln!(out, "platforms = [");
    for LockedPlatform { platform, manifest, size } in &image.platforms {
        let manifest = quote(&manifest.to_string());
        let platform = quote(platform);
        let _ =
            writeln!(out, "  {{ platform = {platform}, manifest = {manifest}, size = {size} }},");
    }
    let _ = writeln!(out, "]");
}

/// The keys of one base, without the head of its table.
pub(super) fn base(base: &LockedBase) -> String {
    let mut out = String::new();
    write_base(&mut out, base);
    out
}

fn write_base(out: &mut String, base: &LockedBase) {
    let _ = writeln!(out, "suite = {}", quote(&base.suite));
    let _ = writeln!(out, "arch = {}", quote(&base.arch));
    if base.minimal {
        let _ = writeln!(out, "minimal = true");
    }
    let names: Vec<String> = base.packages.iter().map(|name| quote(name)).collect();
    let _ = writeln!(out, "packages = [{}]", names.join(", "));
    let _ = writeln!(out, "epoch = {}", quote(&base.epoch));
    let _ = writeln!(out, "unpack = [");
    for LockedPackage { name, version, arch, filename, size, sha256 } in &base.unpack {
        let _ = writeln!(
            out,
            "  {{ name = {}, version = {}, arch = {}, size = {size}, sha256 = {}, \
             filename = {} }},",
            quote(name),
            quote(version),
            quote(arch),
            quote(&sha256.hex()),
            quote(filename),
        );
    }
    let _ = writeln!(out, "]");
    for (key, lines) in [
        ("configure", &base.configure),
        ("users", &base.users),
        ("groups", &base.groups),
        ("diversions", &base.diversions),
    ] {
        if !lines.is_empty() {
            let _ = writeln!(out, "{key} = [");
            for line in lines {
                let _ = writeln!(out, "  {},", quote(line));
            }
            let _ = writeln!(out, "]");
        }
    }
}

/// A TOML key: bare where that is allowed.
fn key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { quote(name) }
}

/// A TOML basic string.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            letter if letter.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(letter));
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}
