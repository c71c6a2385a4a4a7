//! The network of instances: routed, without a bridge, and without any program but this one.
//!
//! | module | noun |
//! |---|---|
//! | `attach` | an instance's veth pair; used by its shim |
//! | `host` | what a root has on its host; used by the agent |
//! | `range` | the addresses of a root, claimed host-wide |
//! | `translation` | virtual address → instance, in the kernel |
//! | `places` | who may reach whom by address |
//! | `forward` | forward chains of Docker, firewalld and others |
//! | `conntrack` | flows that must not stay with an old instance |
//! | `names` | /etc/hosts and /etc/resolv.conf |
//! | `listening` | where the processes of an instance listen |
//! | `message`, `netlink` | speaking with the kernel |
//! | `link` | interfaces, addresses, routes: rtnetlink |
//! | `nft`, `expression`, `ruleset` | nf_tables: changes, rules, and reading what is there |
//!
//! `docs/network.md` says why it is so, and what it costs.

mod attach;
mod conntrack;
mod expression;
mod forward;
mod host;
mod link;
pub(crate) mod listening;
mod message;
mod names;
mod netlink;
mod nft;
mod places;
mod range;
mod ruleset;
mod translation;

#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

pub use attach::{GATEWAY, INNER_NAME, NetSpec, attach, attach_to, detach, loopback_only};
pub use host::{Host, RuleWatch};
pub use listening::Listening;
pub use names::{ResolvConf, hosts_file, resolv_conf, with_dns};
pub use netlink::Refused;
pub use places::Networks;
pub use range::{Block, Claims, INSTANCES, PREFIX, RUN_DIR, Range, VIRTUALS};

/// What can go wrong with the network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused a request that concerns no single instance.
    #[error("network: {0}")]
    Kernel(#[source] Refused),
    /// The table that translates could not be made.
    #[error(
        "network: {0}; this needs a kernel with nf_tables and its NAT, masquerade and reject \
         expressions, and CAP_NET_ADMIN"
    )]
    Translation(#[source] Refused),
    /// An instance could not be attached.
    #[error("network of {address} ({ifname}): {source}")]
    Attach {
        /// The host's end.
        ifname: String,
        /// The instance's address.
        address: Ipv4Addr,
        /// What the kernel refused.
        #[source]
        source: Refused,
    },
    /// The instance's network namespace could not be entered.
    #[error("enter the instance's network namespace: {0} (this needs CAP_SYS_ADMIN)")]
    Enter(#[source] io::Error),
    /// The thread is still in the instance's network namespace: the process should end.
    #[error("return from the instance's network namespace: {0}")]
    Return(#[source] io::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program of the host failed.
    #[error("`{command}`: {source}")]
    Program {
        /// With its arguments.
        command: String,
        /// Why, or what it said.
        #[source]
        source: io::Error,
    },
    /// All ranges are taken.
    #[error(
        "no free /21 in 198.18.0.0/15: roots hold {taken} of 64 (see {}) and routes of this host \
         overlap the others; shut roots down that are not needed, with `kiln shutdown`",
        claims.display()
    )]
    NoRange {
        /// The list of claims.
        claims: PathBuf,
        /// How many claims there are.
        taken: usize,
    },
    /// An address that is to be admitted is no instance's of this root.
    #[error("{0} is no instance's address of this root")]
    NotInstance(Ipv4Addr),
    /// There are more networks than numbers for them.
    #[error("this root has 65,535 networks: take stages down that are no longer needed")]
    NoGroup,
    /// An address that is to be translated is no virtual address of this root.
    #[error("{address} is no virtual address of this root: they are the upper halves of {range}")]
    NotVirtual {
        /// The address.
        address: Ipv4Addr,
        /// The root's range.
        range: String,
    },
}

impl NetError {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }
}
