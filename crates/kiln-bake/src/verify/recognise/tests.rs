//! Pairs of values with the cause that they have.

use std::io::Write as _;

use super::*;
use crate::verify::conditions::Conditions;

/// Two runs, three seconds apart, the second one under other conditions.
fn runs() -> [Run; 2] {
    let began = 1_795_394_219_000; // 2026-11-23T00:36:59Z
    let second = Conditions::varied(&[0, 1, 2, 3], 1);
    [
        Run { conditions: Conditions::plain(&[0, 1, 2, 3]), began, ended: began + 1_000 },
        Run { conditions: second, began: began + 3_000, ended: began + 4_000 },
    ]
}

fn cause_at(path: &str, a: &[u8], b: &[u8]) -> Cause {
    let runs = runs();
    let names = ["bin", "etc", "usr", "a.txt", "b.txt", "c.txt"];
    let names = names.iter().map(|name| name.as_bytes().to_vec()).collect();
    let known = Known { runs: [Some(&runs[0]), Some(&runs[1])], names: &names };
    content(path.as_bytes(), a, b, known).cause
}

fn cause(a: impl AsRef<[u8]>, b: impl AsRef<[u8]>) -> Cause {
    cause_at("out/file", a.as_ref(), b.as_ref())
}

#[test]
fn times() {
    for (a, b) in [
        ("built 1795394219\n", "built 1795394222\n"),
        ("t=1795394219123;", "t=1795394222456;"),
        ("1795394219123456", "1795394222456789"),
        ("1795394219123456789", "1795394222456789012"),
        ("Mon Nov 23 00:36:59 UTC 2026", "Mon Nov 23 00:37:02 UTC 2026"),
        ("2026-11-23T00:36:59Z", "2026-11-23T00:37:02Z"),
        ("at 00:36:59", "at 00:37:02"),
        ("real\t0m0.412s", "real\t0m0.398s"),
        ("12345.67 up", "3012348.91 up"),
    ] {
        let (a, b) = (format!("line\n{a}\nmore"), format!("line\n{b}\nmore"));
        assert_eq!(cause(&a, &b), Cause::Time, "{a}");
    }
    let seconds = 1_795_394_219_u32;
    let at = |value: u32| [b"head\0".as_slice(), &value.to_le_bytes(), b"\0tail"].concat();
    assert_eq!(cause(at(seconds), at(seconds + 3)), Cause::Time);
    let hex = |value: u32| format!("id {value:08x}.");
    assert_eq!(cause(hex(seconds), hex(seconds + 3)), Cause::Time);
    let nanos = |value: u32| (u64::from(value) * 1_000_000_000 + 77).to_be_bytes();
    assert_eq!(cause(nanos(seconds), nanos(seconds + 3)), Cause::Time);
}

#[test]
fn numbers_that_name_their_origin() {
    assert_eq!(cause("jobs 4\n", "jobs 1\n"), Cause::Cores);
    assert_eq!(cause("pid 7\n", "pid 20005\n"), Cause::Pid);
    assert_eq!(cause("tmp.7.x", "tmp.20005.x"), Cause::Pid);
    assert_eq!(cause("at 0x7f3c12a45010", "at 0x7f91bb645010"), Cause::Address);
    assert_eq!(cause("<f at 0x55d0c0a452a0>", "<f at 0x564b10c4f2a0>"), Cause::Address);
    let bytes = |page: u64| [b"\0\0\0\0\0\0\0\0".as_slice(), &page.to_le_bytes()].concat();
    assert_eq!(cause(bytes(0x7f12_3456_7010), bytes(0x7f98_1111_1010)), Cause::Address);
}

#[test]
fn random_values() {
    for (a, b) in [
        ("0b8f4f2e-9a43-4a57-a6b7-0f4f3d6e2c11", "b7c0e9d1-1f0b-4c3e-8c39-7d90c2f0e5aa"),
        ("key 9f86d081884c7d65\n", "key 2c26b46b68ffc68f\n"),
        ("tmp.a8Xk2QpLz1", "tmp.Qm3ZkV0tRw"),
        ("ld: /tmp/ccAjRp7m.o: in function `f':\n", "ld: /tmp/ccz7Mqah.o: in function `f':\n"),
        ("n=18283\n", "n=30511\n"),
    ] {
        assert_eq!(cause(a, b), Cause::Random, "{a}");
    }
    let noise = |seed: u32| -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..100).map(|_| next() | 0x80).collect()
    };
    assert_eq!(cause(noise(1), noise(2)), Cause::Random);
    assert_eq!(cause(&noise(1)[..8], &noise(2)[..8]), Cause::Random);
    assert_eq!(cause(&noise(1)[..4], &noise(2)[..4]), Cause::Unknown);
    // Two words of a language are no random values.
    assert_eq!(cause("the apple\n", "the melon\n"), Cause::Unknown);
}

#[test]
fn orders() {
    assert_eq!(cause("a.txt\nb.txt\nc.txt\n", "c.txt\na.txt\nb.txt\n"), Cause::DirectoryOrder);
    assert_eq!(cause("./usr/bin\n./etc\n", "./etc\n./usr/bin\n"), Cause::DirectoryOrder);
    assert_eq!(cause("x 1\ny 2\nz 3\n", "z 3\nx 1\ny 2\n"), Cause::Order);
    assert_eq!(cause("{'red', 'blue'}", "{'blue', 'red'}"), Cause::Order);
    assert_eq!(cause("A\nB\na\nb\n", "A\na\nB\nb\n"), Cause::Locale);
    assert_eq!(cause("sum 1,5\n", "sum 1.5\n"), Cause::Locale);
}

#[test]
fn places_that_speak_for_themselves() {
    let text = |number: u32| format!("something {number}").into_bytes();
    for (path, expected) in [
        ("var/log/install.log", Cause::Log),
        ("src/config.log", Cause::Log),
        ("src/objs/autoconf.err", Cause::Log),
        ("build/meson-logs/meson-log.txt", Cause::Log),
        ("root/.cache/pip/x", Cause::Cache),
        ("build/meson-private/coredata.dat", Cause::Cache),
        ("build/meson-private/build.dat.pc", Cause::Unknown),
        ("target/.rustc_info.json", Cause::Cache),
        ("usr/lib/python3/__pycache__/a.cpython-311.pyc", Cause::Cache),
        ("etc/ssh/ssh_host_rsa_key", Cause::Key),
        ("etc/ssl/own.pem", Cause::Key),
    ] {
        assert_eq!(cause_at(path, &text(1), &text(2)), expected, "{path}");
    }
    let id = "00bc143b60a48b52dcf2a91230830ccc6093a2e2d49024c48e9da12018616657";
    let entry = |time: u64| format!("v1 {id} {id} 488826  {time}\n").into_bytes();
    let entries = [entry(1_795_394_219_291_625_619), entry(1_795_394_222_230_593_817)];
    let path = format!("tmp/cache/00/{id}-a");
    assert_eq!(cause_at(&path, &entries[0], &entries[1]), Cause::Cache);
    assert_eq!(cause_at("tmp/notes-a", &entries[0], &entries[1]), Cause::Time);
    let pem = |body: &str| format!("-----BEGIN PRIVATE KEY-----\n{body}\n");
    assert_eq!(cause(pem("MIIEvQ"), pem("MIIEwR")), Cause::Key);
    assert_eq!(cause([0xfe, 0xed, 0xfe, 0xed, 1], [0xfe, 0xed, 0xfe, 0xed, 2]), Cause::Key);
}

fn gzip(mtime: u32, content: &[u8]) -> Vec<u8> {
    let mut out = flate2::GzBuilder::new().mtime(mtime).write(Vec::new(), Default::default());
    out.write_all(content).unwrap();
    out.finish().unwrap()
}

fn tar(members: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (name, mtime, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mtime(*mtime);
        header.set_mode(0o644);
        out.append_data(&mut header, name, *content).unwrap();
    }
    out.into_inner().unwrap()
}

#[test]
fn archives() {
    assert_eq!(cause(gzip(1_795_394_219, b"x"), gzip(1_795_394_222, b"x")), Cause::Time);
    let one = tar(&[("a", 5, b"1"), ("b", 5, b"2")]);
    let other = tar(&[("b", 5, b"2"), ("a", 5, b"1")]);
    assert_eq!(cause(&one, &other), Cause::DirectoryOrder);
    assert_eq!(cause(gzip(0, &one), gzip(0, &other)), Cause::DirectoryOrder);
    let later = tar(&[("a", 5, b"1"), ("b", 6, b"2")]);
    assert_eq!(cause(&one, &later), Cause::Time);
    let inside = |text: &[u8]| tar(&[("a", 5, b"1"), ("b", 5, text)]);
    assert_eq!(cause(inside(b"n 4\n"), inside(b"n 1\n")), Cause::Cores);
    let ar = |time: u32| {
        format!("!<arch>\nx.o/            {time:<12}0     0     100644  2         `\nhi")
    };
    assert_eq!(cause(ar(1_795_394_219), ar(1_795_394_222)), Cause::Time);
    let zip = |time: u16| {
        let mut out = b"PK\x03\x04\x14\0\0\0\0\0".to_vec();
        out.extend(time.to_le_bytes());
        out.extend([0x77, 0x5b, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
        out.extend(b"ahi");
        out
    };
    assert_eq!(cause(zip(0x0497), zip(0x0499)), Cause::Time);
    let pyc = |time: u32| [&[0xa7, 0x0d, 0x0d, 0x0a, 0, 0, 0, 0], &time.to_le_bytes()[..]].concat();
    assert_eq!(cause(pyc(1), pyc(2)), Cause::Time);
}

#[test]
fn a_build_id_alone_and_with_its_cause() {
    let elf = |id: u8, text: &str| {
        let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        out.extend([4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0]);
        out.extend(b"GNU\0");
        out.extend([id; 20]);
        out.extend([0, 0]);
        out.extend(text.as_bytes());
        out
    };
    assert_eq!(cause(elf(0x11, "same"), elf(0x99, "same")), Cause::BuildId);
    let dated = |id, time: &str| elf(id, &format!("built {time}\0"));
    assert_eq!(cause(dated(0x11, "00:36:59"), dated(0x99, "00:37:02")), Cause::Time);
}

#[test]
fn names() {
    let runs = runs();
    let known =
        Known { runs: [Some(&runs[0]), Some(&runs[1])], names: &std::collections::BTreeSet::new() };
    assert_eq!(name(b"out/job.12", b"out/job.20011", known).cause, Cause::Pid);
    assert_eq!(name(b"out/tmp.Ab3dE9xY", b"out/tmp.zQ81mNbv", known).cause, Cause::Random);
    assert_eq!(name(b"out/v-20261123003659", b"out/v-20261123003702", known).cause, Cause::Time);
}
