//! Identity of data: what two programs could both write.
//!
//! Data is the same when the kernel says so, whatever it is called: by device and inode, and by
//! containment. The text of a path decides nothing, since a link, a second mount or the folder
//! above leads to the same place. The agent asks the kernel; what is asked is a value here, and
//! whether two of them overlap is decided here.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// One file or folder: what the kernel says it is. What is not there yet is named by the nearest
/// folder above that is, and the rest of the path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Node {
    /// Device of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// What is not there yet below it, without a leading slash; usually empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rest: String,
}

impl Node {
    /// Something that is there.
    pub fn new(dev: u64, ino: u64) -> Self {
        Self { dev, ino, rest: String::new() }
    }
}

/// A file, or a folder with all that is in it, on one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    /// The file or folder.
    pub node: Node,
    /// Every folder that it lies in, by whichever way: those of its path, and those that it has in
    /// its file system where a bind mount shows only a part of that.
    pub above: BTreeSet<Node>,
}

impl Spot {
    /// Whether the two are one, or one lies in the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.node == other.node
            || self.above.contains(&other.node)
            || other.above.contains(&self.node)
    }
}

/// One mount's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What the user calls it: a volume's name, a path.
    pub name: String,
    /// Its own place, and one for each file system that is mounted in it.
    pub spots: Vec<Spot>,
}

/// All that an instance can write and others could too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Data(pub Vec<Held>);

impl Data {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What of this and what of `other` is the same data, or lies in it; the first such pair.
    pub fn overlap<'a>(&'a self, other: &'a Self) -> Option<(&'a Held, &'a Held)> {
        self.0.iter().find_map(|mine| {
            let meets = |theirs: &&Held| {
                mine.spots.iter().any(|spot| theirs.spots.iter().any(|at| spot.overlaps(at)))
            };
            other.0.iter().find(meets).map(|theirs| (mine, theirs))
        })
    }

    /// The names, for people.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|held| held.name.as_str()).collect();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `1/2/5+name`: nodes of device 7 from the root down; behind `+` what is not there yet.
    fn spot(text: &str) -> Spot {
        let (there, rest) = text.split_once('+').unwrap_or((text, ""));
        let mut chain: Vec<Node> =
            there.split('/').map(|ino| Node::new(7, ino.parse().unwrap())).collect();
        let last = chain[chain.len() - 1].clone();
        let mut path = String::new();
        for name in rest.split('/').filter(|name| !name.is_empty()) {
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(name);
            chain.push(Node { rest: path.clone(), ..last.clone() });
        }
        let node = chain.pop().unwrap();
        Spot { node, above: chain.into_iter().collect() }
    }

    /// Several mounts by spaces; file systems mounted in one by commas.
    fn data(text: &str) -> Data {
        let held =
            |word: &str| Held { name: word.to_owned(), spots: word.split(',').map(spot).collect() };
        Data(text.split_whitespace().map(held).collect())
    }

    #[test]
    fn overlap_is_by_node_and_by_containment() {
        for (a, b, expected) in [
            ("", "1/2", false),
            ("1/2/3", "1/2/3", true),
            // Beside each other.
            ("1/2/3", "1/2/4", false),
            // The folder above, from either side.
            ("1/2", "1/2/3/4", true),
            ("1/2/3/4", "1/2", true),
            // Two ways to one folder: a link gives the same chain, a bind mount another one.
            ("1/2/3", "1/9/3", true),
            // Inside of what a bind mount shows elsewhere.
            ("1/9/3/4", "1/2/3", true),
            // The same numbers above, and something else at the end.
            ("1/2/3", "1/2/5/6", false),
            // Of several mounts one is enough.
            ("1/5 1/2/3", "1/8 1/2", true),
            ("1/5 1/6", "1/7 1/8", false),
            // A file system that is mounted in a folder comes along with it.
            ("1/2,1/2/30", "1/4/30", true),
            ("1/2,1/2/30", "1/4/30/31", true),
            ("1/2,1/2/30", "1/4/40", false),
            // What is not there yet.
            ("1/2+vol/data", "1/2+vol/data", true),
            ("1/2+vol/data", "1/2+vol/other", false),
            ("1/2+vol", "1/2+vol/data", true),
            ("1/2+vol/data", "1/2", true),
            ("1/2+vol/data", "1", true),
            ("1/2+vol/data", "1/3", false),
        ] {
            let (one, two) = (data(a), data(b));
            assert_eq!(one.overlap(&two).is_some(), expected, "{a} and {b}");
            assert_eq!(two.overlap(&one).is_some(), expected, "{b} and {a}");
        }
    }

    #[test]
    fn equal_inodes_of_two_devices_are_two_things() {
        let (mut a, b) = (spot("1/2"), spot("1/2"));
        a.node.dev = 8;
        a.above.clear();
        assert!(!a.overlaps(&b));
    }

    #[test]
    fn says_what_overlaps_by_name() {
        let (a, b) = (data("1/5 1/2/3"), data("1/2"));
        let (mine, theirs) = a.overlap(&b).unwrap();
        assert_eq!((mine.name.as_str(), theirs.name.as_str()), ("1/2/3", "1/2"));
        assert_eq!(a.names(), "1/5, 1/2/3");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let data = data("1/2+vol 1/9");
        let text = serde_json::to_string(&data).unwrap();
        assert_eq!(serde_json::from_str::<Data>(&text).unwrap(), data);
        // A run file of before names none.
        assert!(serde_json::from_str::<Data>("[]").unwrap().is_empty());
    }
}
