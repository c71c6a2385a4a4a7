//! Who a program runs as: `user[:group]` in the terms of the image's own `/etc/passwd` and
//! `/etc/group`, which are a stranger's.

use std::os::fd::BorrowedFd;

use super::inside;
use crate::error::Fault;

/// Bytes of an account file that are read: some ten thousand users.
const MOST: u64 = 1 << 20;

/// As in other runtimes. To the kernel, the last of all means "stay who you are", which is root
/// (CVE-2024-40635).
const LARGEST: u32 = i32::MAX.cast_unsigned();

/// The kernel takes a few more.
const MOST_GROUPS: usize = 60_000;

/// Resolved identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups; `gid` is the first of them.
    pub(super) groups: Vec<u32>,
    /// Home directory; `/` when the user has no entry.
    pub(super) home: String,
}

/// Resolves `user`, and the groups that it is in `besides`, against the files in `root`.
pub(super) fn lookup(
    root: BorrowedFd<'_>,
    user: &str,
    besides: &[String],
) -> Result<Identity, Fault> {
    let read = |path| inside::read_text(root, path, MOST).map(Option::unwrap_or_default);
    let group = read("/etc/group")?;
    let mut identity = identity(user, &read("/etc/passwd")?, &group)?;
    add_groups(&mut identity, besides, &group)?;
    Ok(identity)
}

fn add_groups(identity: &mut Identity, besides: &[String], group: &str) -> Result<(), Fault> {
    for wanted in besides {
        let step = || format!("add the group `{wanted}`");
        let known = match numeric(wanted).map_err(|message| Fault::new(step(), message))? {
            Some(gid) => Some(gid),
            None => group_id(wanted, group),
        };
        let gid = known.ok_or_else(|| {
            let message = "no such name in the image's /etc/group; use a number or add the group";
            Fault::new(step(), message)
        })?;
        if !identity.groups.contains(&gid) {
            identity.groups.push(gid);
        }
    }
    Ok(())
}

fn identity(user: &str, passwd: &str, group: &str) -> Result<Identity, Fault> {
    let step = || format!("look up the user `{user}`");
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = numeric(name).map_err(|message| Fault::new(step(), message))?;
    // A number is always one, or an image's user called `1000` could be root (CVE-2016-3697).
    let entry = fields(passwd, 6).find(|entry| match number {
        Some(number) => id(entry[2]) == Some(number),
        None => entry[0] == name,
    });
    let (uid, primary, login, home) = match (entry, number) {
        (Some(entry), _) => {
            let parse = |at: usize| {
                id(entry[at]).ok_or_else(|| {
                    Fault::new(step(), format!("/etc/passwd has a broken entry for `{}`", entry[0]))
                })
            };
            (parse(2)?, parse(3)?, entry[0], entry[5])
        }
        (None, Some(uid)) => (uid, 0, "", "/"),
        (None, None) => {
            let message = "no such name in the image's /etc/passwd; use a number or add the user";
            return Err(Fault::new(step(), message));
        }
    };
    let gid = match group_name {
        None => primary,
        Some(wanted) => match numeric(wanted).map_err(|message| Fault::new(step(), message))? {
            Some(gid) => gid,
            None => group_id(wanted, group).ok_or_else(|| {
                let message = format!("no group `{wanted}` in the image's /etc/group");
                Fault::new(step(), message)
            })?,
        },
    };
    // As in Docker: a stated group replaces the user's own groups. The group itself is among them:
    // else a program could put another in its place, and be shut out no more by files that shut it
    // out (CVE-2023-25173).
    let mut groups = vec![gid];
    if group_name.is_none() && !login.is_empty() {
        let own = fields(group, 4)
            .filter(|entry| entry[3].split(',').any(|member| member == login))
            .filter_map(|entry| id(entry[2]))
            .filter(|&id| id != gid);
        groups.extend(own.take(MOST_GROUPS));
    }
    let home = if home.is_empty() { "/" } else { home };
    Ok(Identity { uid, gid, groups, home: home.to_owned() })
}

fn group_id(wanted: &str, group: &str) -> Option<u32> {
    fields(group, 3).find(|entry| entry[0] == wanted).and_then(|entry| id(entry[2]))
}

/// The id that `text` is, if it is a number.
fn numeric(text: &str) -> Result<Option<u32>, String> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    id(text).map(Some).ok_or_else(|| format!("`{text}` is no id: the largest is {LARGEST}"))
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= LARGEST)
}

/// Entries with at least `least` fields.
fn fields(text: &str, least: usize) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(|line| line.trim_end().split(':').collect::<Vec<_>>())
        .filter(move |entry| entry.len() >= least)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\n\
        redis:x:100:101::/var/lib/redis:/bin/false\n777:x:5:5::/odd:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nredis:x:101:\nssl:x:102:redis,other\nadm:x:4:other\n";

    #[test]
    fn names_and_numbers() {
        for (user, uid, gid, groups, home) in [
            ("", 0, 0, vec![0], "/root"),
            ("redis", 100, 101, vec![101, 102], "/var/lib/redis"),
            ("100", 100, 101, vec![101, 102], "/var/lib/redis"),
            ("redis:ssl", 100, 102, vec![102], "/var/lib/redis"),
            ("redis:9", 100, 9, vec![9], "/var/lib/redis"),
            ("1000", 1000, 0, vec![0], "/"),
            ("1000:1000", 1000, 1000, vec![1000], "/"),
            ("777", 777, 0, vec![0], "/"),
        ] {
            let found = identity(user, PASSWD, GROUP).unwrap();
            let expected = Identity { uid, gid, groups, home: home.to_owned() };
            assert_eq!(found, expected, "{user}");
        }
    }

    #[test]
    fn groups_are_added() {
        let mut found = identity("redis:9", PASSWD, GROUP).unwrap();
        add_groups(&mut found, &["ssl".into(), "44".into(), "9".into()], GROUP).unwrap();
        assert_eq!(found.groups, [9, 102, 44]);
        let fault = add_groups(&mut found, &["none".into()], GROUP).unwrap_err();
        assert!(fault.step.contains("`none`"), "{fault:?}");
        assert!(add_groups(&mut found, &["4294967295".into()], GROUP).is_err());
    }

    #[test]
    fn unknown_names_are_said() {
        assert!(identity("nobody", PASSWD, GROUP).unwrap_err().message.contains("/etc/passwd"));
        assert!(identity("redis:none", PASSWD, GROUP).unwrap_err().message.contains("`none`"));
    }

    #[test]
    fn ids_that_mean_something_else_are_refused() {
        let wide = "minus:x:4294967295:0::/:\nwrap:x:4294967296:0::/:\nneg:x:-1:0::/:\n";
        for user in
            ["4294967295", "4294967296", "2147483648", "minus", "wrap", "neg", "0:4294967295"]
        {
            assert!(identity(user, wide, "").is_err(), "{user}");
        }
        assert_eq!(identity("2147483647", wide, "").unwrap().uid, i32::MAX as u32);
    }
}
