//! The addresses of a root: blocks of a /21 out of 198.18.0.0/15, which RFC 2544 sets aside and
//! nobody routes. A root begins with one and claims further ones as it grows; 64 are on a host. The
//! lower half of a block is for instances, the upper half for virtual addresses.
//!
//! Claims stand in `<run>/ranges`, one JSON object a line, under the lock `<run>/ranges.lock`. The
//! folder is on a tmpfs (`/run/kiln`), so a reboot forgets them together with what they stand for.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kiln_core::Digest;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::NetError;
use super::link::Route;

/// Where claims stand unless told otherwise.
pub const RUN_DIR: &str = "/run/kiln";

/// Prefix length of a block.
pub const PREFIX: u8 = 21;
const BASE: u32 = 0xc612_0000; // 198.18.0.0
const BLOCKS: u8 = 64;
const SIZE: u32 = 1 << (32 - PREFIX);
/// How many virtual addresses a block has.
pub const VIRTUALS: u16 = (SIZE / 2) as u16;
/// How many instance addresses a block has: the first address of the half stays free.
pub const INSTANCES: u16 = VIRTUALS - 1;
/// Below these, link groups stand for roots.
const NETWORK_GROUPS: u32 = 0x4c00_0000;
/// Routes shorter than this are detours for everything (a VPN's two halves), not a use of the
/// range.
const SPECIFIC: u8 = 9;

/// One block of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    index: u8,
    /// Whether its root began with it: its instances have numbers without the block's.
    first: bool,
}

impl Block {
    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(BASE + u32::from(self.index) * SIZE + offset)
    }

    /// The first address; the length is [`PREFIX`].
    pub fn network(self) -> Ipv4Addr {
        self.at(0)
    }

    /// The first virtual address; they are a network of [`PREFIX`] + 1 bits.
    pub fn virtual_network(self) -> Ipv4Addr {
        self.at(SIZE / 2)
    }

    /// `198.18.8.0/21`
    pub fn cidr(self) -> String {
        format!("{}/{PREFIX}", self.network())
    }

    /// All instance addresses.
    pub fn instances(self) -> impl Iterator<Item = Ipv4Addr> {
        (1..=INSTANCES).map(move |n| self.at(u32::from(n)))
    }

    /// All virtual addresses.
    pub fn virtuals(self) -> impl Iterator<Item = Ipv4Addr> {
        (0..VIRTUALS).map(move |n| self.at(SIZE / 2 + u32::from(n)))
    }

    /// Where in the block an address is.
    fn offset(self, address: Ipv4Addr) -> Option<u32> {
        let offset = u32::from(address).checked_sub(u32::from(self.network()))?;
        (offset < SIZE).then_some(offset)
    }

    /// What is added to numbers of instances of this block, so that no two of a root have one.
    fn base(self) -> u32 {
        if self.first { 0 } else { SIZE / 2 * (1 + u32::from(self.index)) }
    }
}

/// A root's claimed addresses, and the names that hang on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// In the order in which they were claimed; never empty.
    blocks: Vec<Block>,
    scope: String,
}

impl Range {
    /// Of blocks with these indices, the one that its root began with first.
    fn new(scope: String, indices: impl IntoIterator<Item = u8>) -> Self {
        let block = |(nth, index)| Block { index, first: nth == 0 };
        Self { blocks: indices.into_iter().enumerate().map(block).collect(), scope }
    }

    /// In the order in which they were claimed.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    #[cfg(test)]
    pub(super) fn example() -> Self {
        Self::new("1a2b3c4d".into(), [1])
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
        let first = self.blocks.first().map_or(0, |block| block.index);
        0x4b00_0000 | u32::from(first) << 1
    }

    /// The link group in which interfaces are put to be deleted together.
    pub fn dying_group(&self) -> u32 {
        self.group() | 1
    }

    /// The link group of interfaces of network number `n`, which no other root has.
    pub fn network_group(&self, n: u16) -> u32 {
        let first = self.blocks.first().map_or(0, |block| block.index);
        NETWORK_GROUPS | u32::from(first) << 16 | u32::from(n)
    }

    /// The inverse of [`Self::network_group`].
    pub fn network_of_group(&self, group: u32) -> Option<u16> {
        let n = u16::try_from(group & 0xffff).ok()?;
        (group == self.network_group(n)).then_some(n)
    }

    /// Instance address number `n`: from 1 to [`INSTANCES`] in the first block.
    pub fn instance(&self, n: u32) -> Option<Ipv4Addr> {
        self.blocks.iter().find_map(|block| {
            let offset = n.checked_sub(block.base())?;
            (1..=u32::from(INSTANCES)).contains(&offset).then(|| block.at(offset))
        })
    }

    /// Virtual address number `n` of the first block, below [`VIRTUALS`].
    pub fn virtual_address(&self, n: u16) -> Option<Ipv4Addr> {
        self.blocks.first().filter(|_| n < VIRTUALS).map(|block| block.at(SIZE / 2 + u32::from(n)))
    }

    /// The number of an instance address of this range: the inverse of [`Self::instance`].
    pub fn number_of(&self, address: Ipv4Addr) -> Option<u32> {
        self.blocks.iter().find_map(|block| {
            let offset = block.offset(address)?;
            (1..=u32::from(INSTANCES)).contains(&offset).then(|| block.base() + offset)
        })
    }

    /// The name of the host's end of the interface of an instance with that address.
    pub fn interface_of(&self, address: Ipv4Addr) -> Option<String> {
        Some(format!("{}{}", self.interface_prefix(), self.number_of(address)?))
    }

    /// Whether it is a virtual address of this range.
    pub fn is_virtual(&self, address: Ipv4Addr) -> bool {
        let offsets = self.blocks.iter().filter_map(|block| block.offset(address));
        offsets.into_iter().any(|offset| offset >= SIZE / 2)
    }

    /// `198.18.8.0/21`; all blocks, apart by commas.
    pub fn cidr(&self) -> String {
        let all: Vec<String> = self.blocks.iter().map(|block| block.cidr()).collect();
        all.join(", ")
    }
}

/// One block of a root. A root that has grown has several, the first that it claimed first.
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

    /// Claims a block for `root`, an existing folder; those it has if it has any. `routes` and
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
        let (pid, started) = this_process();
        for own in claims.iter_mut().filter(|claim| claim.root == root) {
            (own.pid, own.started) = (pid, started);
        }
        if let Some(range) = range_of(&root, &claims) {
            self.write(&claims)?;
            return Ok(Claimed { range, abandoned: Vec::new() });
        }
        let (kept, gone): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|claim| claim.root.is_dir());
        let mut claims = kept;
        let mut abandoned = ranges(gone);
        if claims.len() >= usize::from(BLOCKS) {
            let (kept, ownerless): (Vec<_>, Vec<_>) =
                claims.into_iter().partition(|claim| claim.in_use(interfaces));
            claims = kept;
            abandoned.extend(ranges(ownerless));
        }
        let index = self.free(&claims, routes)?;
        let scope = free_scope(&root, &claims);
        claims.push(Claim { index, scope: scope.clone(), root, pid, started });
        self.write(&claims)?;
        Ok(Claimed { range: Range::new(scope, [index]), abandoned })
    }

    /// Claims one more block for the root of `range`, which has claimed. What it claimed besides,
    /// and then could not use, is free again.
    pub(super) fn grow(&self, range: &Range, routes: &[Route]) -> Result<Range, NetError> {
        let _lock = self.lock()?;
        let mut claims = self.read()?;
        let in_use = |index| range.blocks.iter().any(|block| block.index == index);
        claims.retain(|claim| claim.scope != range.scope || in_use(claim.index));
        let own = claims.iter().find(|claim| claim.scope == range.scope);
        let lost = || NetError::NoRange { claims: self.path(), taken: claims.len() };
        let root = own.ok_or_else(lost)?.root.clone();
        let index = self.free(&claims, routes)?;
        let (pid, started) = this_process();
        claims.push(Claim { index, scope: range.scope.clone(), root, pid, started });
        self.write(&claims)?;
        let mut grown = range.clone();
        grown.blocks.push(Block { index, first: false });
        Ok(grown)
    }

    /// A block that nobody has claimed and no route of the host overlaps.
    fn free(&self, claims: &[Claim], routes: &[Route]) -> Result<u8, NetError> {
        let free = (0..BLOCKS).find(|index| {
            let taken = claims.iter().any(|claim| claim.index == *index);
            !taken && !routes.iter().any(|route| overlaps(route, *index))
        });
        free.ok_or_else(|| NetError::NoRange { claims: self.path(), taken: claims.len() })
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
        // Who may write here names the files that root writes; under another umask that was all.
        let closed = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        closed
            .and_then(|()| fs::set_permissions(&self.dir, Permissions::from_mode(0o700)))
            .map_err(|e| NetError::file(&self.dir, e))?;
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

fn range_of(root: &Path, claims: &[Claim]) -> Option<Range> {
    let own = || claims.iter().filter(|claim| claim.root == root);
    let scope = own().next()?.scope.clone();
    Some(Range::new(scope, own().map(|claim| claim.index)))
}

/// The ranges that claims make up.
fn ranges(claims: Vec<Claim>) -> Vec<Range> {
    let mut all: Vec<Range> = Vec::new();
    for claim in claims {
        let block = |first| Block { index: claim.index, first };
        match all.iter_mut().find(|range| range.scope == claim.scope) {
            Some(range) => range.blocks.push(block(false)),
            None => all.push(Range { blocks: vec![block(true)], scope: claim.scope.clone() }),
        }
    }
    all
}

/// A claimed range, and those that were taken from roots that are no more: their tables and
/// interfaces are to be removed.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) range: Range,
    pub(super) abandoned: Vec<Range>,
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
        let range = Range::new("0123abcd".to_owned(), [1]);
        assert_eq!(range.cidr(), "198.18.8.0/21");
        assert_eq!(range.instance(1), Some([198, 18, 8, 1].into()));
        let last = u32::from(INSTANCES);
        assert_eq!(range.instance(last), Some([198, 18, 11, 255].into()));
        assert_eq!(range.virtual_address(0), Some([198, 18, 12, 0].into()));
        assert_eq!(range.virtual_address(VIRTUALS - 1), Some([198, 18, 15, 255].into()));
        assert_eq!((range.instance(0), range.instance(last + 1)), (None, None));
        assert_eq!(range.virtual_address(VIRTUALS), None);
        assert_eq!(range.number_of([198, 18, 8, 7].into()), Some(7));
        assert_eq!(range.number_of([198, 18, 12, 0].into()), None);
        assert!(range.is_virtual([198, 18, 12, 9].into()));
        assert!(!range.is_virtual([198, 18, 16, 0].into()));
        assert!(!range.is_virtual([198, 18, 11, 255].into()));
        assert_eq!(range.interface_prefix(), "kl0123ab");
    }

    #[test]
    fn every_instance_of_a_grown_root_has_a_number_of_its_own() {
        let range = Range::new("0123abcd".to_owned(), [5, 0, 63]);
        let mut seen = std::collections::BTreeSet::new();
        for block in range.blocks() {
            for address in block.instances() {
                let number = range.number_of(address).unwrap();
                assert!(seen.insert(number), "{address}");
                assert_eq!(range.instance(number), Some(address));
                assert!(format!("{}{number}", range.interface_prefix()).len() <= 15);
                assert!(!range.is_virtual(address));
            }
            for address in block.virtuals() {
                assert!(range.is_virtual(address) && range.number_of(address).is_none());
            }
        }
        assert_eq!(seen.len(), 3 * usize::from(INSTANCES));
        assert_eq!(range.number_of([198, 18, 40, 7].into()), Some(7), "as before it grew");
        assert_eq!(range.cidr(), "198.18.40.0/21, 198.18.0.0/21, 198.19.248.0/21");
    }

    #[test]
    fn a_root_grows_beside_others_and_is_found_again_and_gone_as_a_whole() {
        let run = tempfile::tempdir().unwrap();
        let claims = Claims::at(run.path());
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = claims.claim(a.path(), &[], &[]).unwrap().range;
        let other = claims.claim(b.path(), &[], &[]).unwrap().range;
        let taken = [route([198, 18, 16, 0], 21)];
        let grown = claims.grow(&first, &taken).unwrap();
        assert_eq!(grown.cidr(), "198.18.0.0/21, 198.18.24.0/21");
        assert_eq!(claims.claim(a.path(), &[], &[]).unwrap().range, grown);
        assert_eq!(claims.claim(b.path(), &[], &[]).unwrap().range, other);
        drop(a);
        let c = tempfile::tempdir().unwrap();
        assert_eq!(claims.claim(c.path(), &[], &[]).unwrap().abandoned, [grown]);
        let again = claims.grow(&other, &[]).unwrap();
        claims.release(&again).unwrap();
        assert_eq!(claims.read().unwrap().len(), 1);
    }

    #[test]
    fn growing_that_failed_takes_no_block_from_anybody() {
        let run = tempfile::tempdir().unwrap();
        let claims = Claims::at(run.path());
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = claims.claim(a.path(), &[], &[]).unwrap().range;
        let other = claims.claim(b.path(), &[], &[]).unwrap().range;
        let grown = claims.grow(&first, &[]).unwrap();
        // The kernel refused what else that takes, each time: the range is as it was.
        for _ in 0..usize::from(BLOCKS) {
            assert_eq!(claims.grow(&first, &[]).unwrap(), grown);
        }
        assert_eq!(claims.read().unwrap().len(), 3);
        assert_eq!(claims.claim(b.path(), &[], &[]).unwrap().range, other);
        let further = claims.grow(&grown, &[]).unwrap();
        assert_eq!(claims.claim(a.path(), &[], &[]).unwrap().range, further);
    }

    #[test]
    fn claims_are_kept_shared_out_and_given_back() {
        let run = tempfile::tempdir().unwrap();
        let claims = Claims::at(run.path());
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = claims.claim(a.path(), &[], &[]).unwrap().range;
        let second = claims.claim(b.path(), &[], &[]).unwrap().range;
        assert_ne!(first.blocks, second.blocks);
        assert_ne!(first.scope[..6], second.scope[..6]);
        assert_eq!(claims.claim(a.path(), &[], &[]).unwrap().range, first);
        claims.release(&first).unwrap();
        claims.release(&first).unwrap();
        let c = tempfile::tempdir().unwrap();
        assert_eq!(claims.claim(c.path(), &[], &[]).unwrap().range.blocks, first.blocks);
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
        let roots: Vec<_> = (0..=BLOCKS).map(|_| tempfile::tempdir().unwrap()).collect();
        for root in &roots[..usize::from(BLOCKS)] {
            claims.claim(root.path(), &[], &[]).unwrap();
        }
        let last = roots[usize::from(BLOCKS)].path();
        let refused = claims.claim(last, &[], &[]).unwrap_err();
        assert!(refused.to_string().contains("64"), "{refused}");
        let mut list = claims.read().unwrap();
        list[5].started += 1;
        list[6].started += 1;
        let alive = format!("kl{}12", &list[6].scope[..6]);
        claims.write(&list).unwrap();
        let claimed = claims.claim(last, &[], &[alive]).unwrap();
        assert_eq!(claimed.range.blocks[0].index, list[5].index);
        assert_eq!(claimed.abandoned.len(), 1);
    }
}
