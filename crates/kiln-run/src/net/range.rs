//! The addresses of a root: one /21 out of 198.18.0.0/15, which RFC 2544 sets aside and nobody
//! routes, so up to 64 roots live on a host. The lower half is for instances, the upper half for
//! virtual addresses.
//!
//! Claims stand in `<run>/ranges`, one JSON object a line, under the lock `<run>/ranges.lock`. The
//! folder is on a tmpfs (`/run/kiln`), so a reboot forgets them together with what they stand for.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kiln_core::Digest;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::NetError;
use super::link::Route;

/// Where claims stand unless told otherwise.
pub const RUN_DIR: &str = "/run/kiln";

/// Prefix length of a root's range.
pub const PREFIX: u8 = 21;
const BASE: u32 = 0xc612_0000; // 198.18.0.0
const RANGES: u8 = 64;
const SIZE: u32 = 1 << (32 - PREFIX);
/// How many virtual addresses a root has.
pub const VIRTUALS: u16 = (SIZE / 2) as u16;
/// How many instance addresses a root has: the first address of the half stays free.
pub const INSTANCES: u16 = VIRTUALS - 1;
/// Routes shorter than this are detours for everything (a VPN's two halves), not a use of the
/// range.
const SPECIFIC: u8 = 9;

/// A root's claimed addresses, and the names that hang on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    index: u8,
    scope: String,
}

impl Range {
    /// The first address of the range; its length is [`PREFIX`].
    pub fn network(&self) -> Ipv4Addr {
        self.at(0)
    }

    fn at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(BASE + u32::from(self.index) * SIZE + offset)
    }

    /// Eight hex digits that stand for the root in the names of tables and interfaces. No two
    /// roots on a host share the first six.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The name of this root's nftables table, and the comment on rules of its in other tables.
    pub fn table(&self) -> String {
        format!("kiln-{}", self.scope)
    }

    /// What the names of this root's interfaces start with; digits follow.
    pub fn interface_prefix(&self) -> String {
        format!("kl{}", &self.scope[..6])
    }

    /// The link group of this root's interfaces. Groups below 2^24 are left to people.
    pub fn group(&self) -> u32 {
        0x4b00_0000 | u32::from(self.index) << 1
    }

    /// The link group in which interfaces are put to be deleted together.
    pub fn dying_group(&self) -> u32 {
        self.group() | 1
    }

    /// Instance address number `n`, from 1 to [`INSTANCES`].
    pub fn instance(&self, n: u16) -> Option<Ipv4Addr> {
        (1..=INSTANCES).contains(&n).then(|| self.at(u32::from(n)))
    }

    /// Virtual address number `n`, below [`VIRTUALS`].
    pub fn virtual_address(&self, n: u16) -> Option<Ipv4Addr> {
        (n < VIRTUALS).then(|| self.at(SIZE / 2 + u32::from(n)))
    }

    /// The first virtual address; they are a network of [`PREFIX`] + 1 bits.
    pub fn virtual_network(&self) -> Ipv4Addr {
        self.at(SIZE / 2)
    }

    /// The number of an instance address of this range: the inverse of [`Self::instance`].
    pub fn number_of(&self, address: Ipv4Addr) -> Option<u16> {
        let offset = u32::from(address).checked_sub(u32::from(self.network()))?;
        let n = u16::try_from(offset).ok()?;
        (1..=INSTANCES).contains(&n).then_some(n)
    }

    /// The number of a virtual address of this range: the inverse of [`Self::virtual_address`].
    pub fn virtual_number_of(&self, address: Ipv4Addr) -> Option<u16> {
        let offset = u32::from(address).checked_sub(u32::from(self.virtual_network()))?;
        u16::try_from(offset).ok().filter(|n| *n < VIRTUALS)
    }

    /// `198.18.8.0/21`
    pub fn cidr(&self) -> String {
        format!("{}/{PREFIX}", self.network())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    index: u8,
    scope: String,
    root: PathBuf,
    /// The process that claimed last, with its start time: process ids come round again.
    pid: u32,
    started: u64,
}

/// The claims of all roots of a host.
#[derive(Debug, Clone)]
pub struct Claims {
    dir: PathBuf,
}

impl Claims {
    /// In the folder `dir`, usually [`RUN_DIR`]; it is made when needed.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Claims a range for `root`, an existing folder; the one it has if it has one. `routes` and
    /// `interfaces` are what the host has now.
    pub(super) fn claim(
        &self,
        root: &Path,
        routes: &[Route],
        interfaces: &[String],
    ) -> Result<Claimed, NetError> {
        let root = fs::canonicalize(root).map_err(|e| NetError::file(root, e))?;
        let _lock = self.lock()?;
        let mut claims = self.read()?;
        if let Some(own) = claims.iter_mut().find(|claim| claim.root == root) {
            (own.pid, own.started) = this_process();
            let range = Range { index: own.index, scope: own.scope.clone() };
            self.write(&claims)?;
            return Ok(Claimed { range, abandoned: Vec::new() });
        }
        let (kept, abandoned): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|claim| claim.root.is_dir());
        let mut claims = kept;
        let mut abandoned: Vec<Range> = abandoned.into_iter().map(Range::from).collect();
        if claims.len() >= usize::from(RANGES) {
            let (kept, ownerless): (Vec<_>, Vec<_>) =
                claims.into_iter().partition(|claim| claim.in_use(interfaces));
            claims = kept;
            abandoned.extend(ownerless.into_iter().map(Range::from));
        }
        let free = (0..RANGES).find(|index| {
            let taken = claims.iter().any(|claim| claim.index == *index);
            !taken && !routes.iter().any(|route| overlaps(route, *index))
        });
        let Some(index) = free else {
            return Err(NetError::NoRange { claims: self.path(), taken: claims.len() });
        };
        let range = Range { index, scope: free_scope(&root, &claims) };
        let (pid, started) = this_process();
        claims.push(Claim { index, scope: range.scope.clone(), root, pid, started });
        self.write(&claims)?;
        Ok(Claimed { range, abandoned })
    }

    /// Gives the range of `root` back. No error if it has none.
    pub(super) fn release(&self, range: &Range) -> Result<(), NetError> {
        let _lock = self.lock()?;
        let mut claims = self.read()?;
        claims.retain(|claim| claim.scope != range.scope);
        self.write(&claims)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("ranges")
    }

    fn lock(&self) -> Result<File, NetError> {
        fs::create_dir_all(&self.dir).map_err(|e| NetError::file(&self.dir, e))?;
        let path = self.dir.join("ranges.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| NetError::file(&path, e))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| NetError::file(&path, e.into()))?;
        Ok(file)
    }

    /// A line that does not parse is dropped: its root claims again when it next starts.
    fn read(&self) -> Result<Vec<Claim>, NetError> {
        match fs::read_to_string(self.path()) {
            Ok(text) => {
                Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(NetError::file(&self.path(), e)),
        }
    }

    fn write(&self, claims: &[Claim]) -> Result<(), NetError> {
        let path = self.path();
        let new = self.dir.join("ranges.new");
        let write = || {
            let mut text = Vec::new();
            for claim in claims {
                serde_json::to_writer(&mut text, claim)?;
                text.push(b'\n');
            }
            File::create(&new)?.write_all(&text)?;
            fs::rename(&new, &path)
        };
        write().map_err(|e| NetError::file(&path, e))
    }
}

/// A claimed range, and those that were taken from roots that are no more: their tables and
/// interfaces are to be removed.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) range: Range,
    pub(super) abandoned: Vec<Range>,
}

impl From<Claim> for Range {
    fn from(claim: Claim) -> Self {
        Self { index: claim.index, scope: claim.scope }
    }
}

impl Claim {
    /// Its process lives, or an instance does.
    fn in_use(&self, interfaces: &[String]) -> bool {
        let prefix = format!("kl{}", &self.scope[..6]);
        start_time(self.pid) == Some(self.started)
            || interfaces.iter().any(|name| name.starts_with(&prefix))
    }
}

fn overlaps(route: &Route, index: u8) -> bool {
    if route.prefix < SPECIFIC || route.protocol == super::link::PROTOCOL {
        return false;
    }
    let bits = route.prefix.min(PREFIX);
    let mask = u32::MAX << (32 - bits);
    u32::from(route.to) & mask == (BASE + u32::from(index) * SIZE) & mask
}

/// A hash of the root's path, unlike that of any other root in its first six digits.
fn free_scope(root: &Path, claims: &[Claim]) -> String {
    let mut text = root.as_os_str().as_encoded_bytes().to_vec();
    loop {
        let scope = Digest::of(&text).hex()[..8].to_owned();
        if !claims.iter().any(|claim| claim.scope[..6] == scope[..6]) {
            return scope;
        }
        text.push(b'+');
    }
}

fn this_process() -> (u32, u64) {
    let pid = std::process::id();
    (pid, start_time(pid).unwrap_or_default())
}

/// Field 22 of /proc/PID/stat; the program's name before it may hold anything but ends with `)`.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(to: [u8; 4], prefix: u8) -> Route {
        Route {
            to: to.into(),
            prefix,
            protocol: 3,
            interface: None,
            main_table: true,
            local: false,
        }
    }

    #[test]
    fn halves_numbers_and_names() {
        let range = Range { index: 1, scope: "0123abcd".to_owned() };
        assert_eq!(range.cidr(), "198.18.8.0/21");
        assert_eq!(range.instance(1), Some([198, 18, 8, 1].into()));
        assert_eq!(range.instance(INSTANCES), Some([198, 18, 11, 255].into()));
        assert_eq!(range.virtual_address(0), Some([198, 18, 12, 0].into()));
        assert_eq!(range.virtual_address(VIRTUALS - 1), Some([198, 18, 15, 255].into()));
        assert_eq!((range.instance(0), range.instance(INSTANCES + 1)), (None, None));
        assert_eq!(range.virtual_address(VIRTUALS), None);
        assert_eq!(range.number_of([198, 18, 8, 7].into()), Some(7));
        assert_eq!(range.number_of([198, 18, 12, 0].into()), None);
        assert_eq!(range.virtual_number_of([198, 18, 12, 9].into()), Some(9));
        assert_eq!(range.virtual_number_of([198, 18, 16, 0].into()), None);
        assert_eq!(range.interface_prefix(), "kl0123ab");
        assert!(format!("{}{INSTANCES}", range.interface_prefix()).len() <= 15);
    }

    #[test]
    fn claims_are_kept_shared_out_and_given_back() {
        let run = tempfile::tempdir().unwrap();
        let claims = Claims::at(run.path());
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = claims.claim(a.path(), &[], &[]).unwrap().range;
        let second = claims.claim(b.path(), &[], &[]).unwrap().range;
        assert_ne!(first.index, second.index);
        assert_ne!(first.scope[..6], second.scope[..6]);
        assert_eq!(claims.claim(a.path(), &[], &[]).unwrap().range, first);
        claims.release(&first).unwrap();
        claims.release(&first).unwrap();
        let c = tempfile::tempdir().unwrap();
        assert_eq!(claims.claim(c.path(), &[], &[]).unwrap().range.index, first.index);
    }

    #[test]
    fn a_root_that_is_gone_loses_its_claim() {
        let run = tempfile::tempdir().unwrap();
        let claims = Claims::at(run.path());
        let gone = tempfile::tempdir().unwrap();
        let old = claims.claim(gone.path(), &[], &[]).unwrap().range;
        drop(gone);
        let new = tempfile::tempdir().unwrap();
        let claimed = claims.claim(new.path(), &[], &[]).unwrap();
        assert_eq!(claimed.abandoned, [old]);
    }

    #[test]
    fn routes_of_the_host_are_avoided() {
        let run = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let routes = [
            route([0, 0, 0, 0], 0),
            route([128, 0, 0, 0], 1),
            route([198, 18, 0, 0], 20),
            route([198, 18, 23, 7], 32),
        ];
        let range = Claims::at(run.path()).claim(root.path(), &routes, &[]).unwrap().range;
        assert_eq!(range.cidr(), "198.18.24.0/21", "0, 8 and 16 are in use");
    }

    #[test]
    fn a_full_table_says_so_and_takes_from_the_dead() {
        let run = tempfile::tempdir().unwrap();
        let claims = Claims::at(run.path());
        let roots: Vec<_> = (0..=RANGES).map(|_| tempfile::tempdir().unwrap()).collect();
        for root in &roots[..usize::from(RANGES)] {
            claims.claim(root.path(), &[], &[]).unwrap();
        }
        let last = roots[usize::from(RANGES)].path();
        let refused = claims.claim(last, &[], &[]).unwrap_err();
        assert!(refused.to_string().contains("64"), "{refused}");
        let mut list = claims.read().unwrap();
        list[5].started += 1;
        list[6].started += 1;
        let alive = format!("kl{}12", &list[6].scope[..6]);
        claims.write(&list).unwrap();
        let claimed = claims.claim(last, &[], &[alive]).unwrap();
        assert_eq!(claimed.range.index, list[5].index);
        assert_eq!(claimed.abandoned.len(), 1);
    }
}
