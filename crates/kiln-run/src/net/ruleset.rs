//! Reading nf_tables: chains at hooks and their rules, of whatever table, and the elements of ours.

use std::net::Ipv4Addr;

use rustix::io::Errno;

use super::expression::{ACCEPT, DROP, META_IIFNAME, META_OIFNAME};
use super::message::{Attributes, Batch, DUMP};
use super::netlink::{Answers, Refused, Socket};
use super::nft::{IPV4, body, kind};

const GETTABLE: u16 = 1;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const GETSETELEM: u16 = 13;
const GETGEN: u16 = 16;
const JUMP: u32 = -3i32 as u32;
const GOTO: u32 = -4i32 as u32;

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChainName {
    pub(super) family: u8,
    pub(super) table: String,
    pub(super) chain: String,
}

/// A chain at a hook, of any table.
#[derive(Debug, Clone)]
pub(super) struct BaseChain {
    pub(super) name: ChainName,
    pub(super) hook: u32,
    pub(super) filter: bool,
    pub(super) policy_drops: bool,
}

/// A rule, as far as it matters here.
#[derive(Debug, Clone, Default)]
pub(super) struct Rule {
    pub(super) handle: u64,
    /// What the incoming interface's name starts with, or is with its end.
    pub(super) incoming: Option<Vec<u8>>,
    /// The same of the outgoing one.
    pub(super) outgoing: Option<Vec<u8>>,
    pub(super) accepts: bool,
    /// It drops or rejects what it matches.
    pub(super) refuses: bool,
    pub(super) jumps_to: Option<String>,
}

impl Socket {
    /// The number of the ruleset: another one after each change by anybody.
    pub(super) fn generation(&mut self) -> Result<u32, Refused> {
        let mut batch = Batch::new();
        batch.message("read the ruleset's generation", kind(GETGEN), 0, &body(0));
        let answers = self.query(batch)?;
        Ok(answers.iter().find_map(|(_, answer)| attributes(answer).be32(1)).unwrap_or_default())
    }

    /// The comment of an IPv4 table, empty if it has none; `None` if there is no such table.
    pub(super) fn table_comment(&mut self, name: &str) -> Result<Option<String>, Refused> {
        let mut batch = Batch::new();
        batch.message("look for the nftables table", kind(GETTABLE), 0, &body(IPV4));
        batch.put_str(1, name);
        let answers = absent_is_fine(self.query(batch))?;
        Ok(answers.iter().next().map(|(_, answer)| {
            attributes(answer).find(6).and_then(comment_of).unwrap_or_default().to_owned()
        }))
    }

    /// All chains at hooks, of tables of any family.
    pub(super) fn base_chains(&mut self) -> Result<Vec<BaseChain>, Refused> {
        let mut batch = Batch::new();
        batch.message("list the nftables chains", kind(GETCHAIN), DUMP, &body(0));
        let answers = self.query(batch)?;
        Ok(answers.iter().filter_map(|(_, answer)| parse_chain(answer)).collect())
    }

    /// The rules of a chain in their order; none if there is no such chain.
    pub(super) fn rules(&mut self, at: &ChainName) -> Result<Vec<Rule>, Refused> {
        let mut batch = Batch::new();
        batch.message("list the nftables rules", kind(GETRULE), DUMP, &body(at.family));
        batch.put_str(1, &at.table);
        batch.put_str(2, &at.chain);
        let answers = absent_is_fine(self.query(batch))?;
        // Old kernels do not filter for us.
        let here = |rule: &Attributes<'_>| {
            rule.text(1) == Some(&at.table) && rule.text(2) == Some(&at.chain)
        };
        let rules = answers.iter().map(|(_, answer)| attributes(answer)).filter(here);
        Ok(rules.map(parse_rule).collect())
    }

    /// The elements of a map from address to address.
    pub(super) fn map_elements(
        &mut self,
        table: &str,
        map: &str,
    ) -> Result<Vec<(Ipv4Addr, Ipv4Addr)>, Refused> {
        let mut batch = Batch::new();
        batch.message("list the nftables map", kind(GETSETELEM), DUMP, &body(IPV4));
        batch.put_str(1, table);
        batch.put_str(2, map);
        let answers = absent_is_fine(self.query(batch))?;
        let lists = answers.iter().map(|(_, answer)| attributes(answer).inside(3));
        Ok(lists.flatten().filter_map(|(_, element)| parse_element(element)).collect())
    }
}

impl Socket {
    /// The keys of a set's elements.
    pub(super) fn set_keys(&mut self, table: &str, set: &str) -> Result<Vec<Vec<u8>>, Refused> {
        let mut batch = Batch::new();
        batch.message("list the nftables set", kind(GETSETELEM), DUMP, &body(IPV4));
        batch.put_str(1, table);
        batch.put_str(2, set);
        let answers = absent_is_fine(self.query(batch))?;
        let lists = answers.iter().map(|(_, answer)| attributes(answer).inside(3));
        let key = |element: &[u8]| Attributes(element).inside(1).find(1).map(<[u8]>::to_vec);
        Ok(lists.flatten().filter_map(|(_, element)| key(element)).collect())
    }
}

fn absent_is_fine(result: Result<Answers, Refused>) -> Result<Answers, Refused> {
    match result {
        Err(refused) if refused.is(Errno::NOENT) => Ok(Answers::default()),
        other => other,
    }
}

fn parse_chain(answer: &[u8]) -> Option<BaseChain> {
    let chain = attributes(answer);
    Some(BaseChain {
        name: ChainName {
            family: *answer.first()?,
            table: chain.text(1)?.to_owned(),
            chain: chain.text(3)?.to_owned(),
        },
        hook: chain.inside(4).be32(1)?,
        filter: chain.text(7) == Some("filter"),
        policy_drops: chain.be32(5) == Some(DROP),
    })
}

fn parse_element(element: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let element = Attributes(element);
    Some((element.inside(1).address(1)?, element.inside(2).address(1)?))
}

fn attributes(answer: &[u8]) -> Attributes<'_> {
    Attributes(answer.get(4..).unwrap_or_default())
}

fn parse_rule(rule: Attributes<'_>) -> Rule {
    let mut parsed = Rule { handle: rule.be64(3).unwrap_or_default(), ..Rule::default() };
    let mut loaded = None;
    for (_, expression) in rule.inside(4) {
        let expression = Attributes(expression);
        match expression.text(1) {
            Some("meta") => loaded = expression.inside(2).be32(2),
            Some("cmp") => {
                let value = expression.inside(2).inside(3).find(1).map(<[u8]>::to_vec);
                match loaded.take() {
                    Some(META_IIFNAME) => parsed.incoming = value,
                    Some(META_OIFNAME) => parsed.outgoing = value,
                    _ => {}
                }
            }
            Some("reject") => parsed.refuses = true,
            Some("immediate") => {
                let verdict = expression.inside(2).inside(2).inside(2);
                match verdict.be32(1) {
                    Some(DROP) => parsed.refuses = true,
                    Some(ACCEPT) => parsed.accepts = true,
                    Some(JUMP | GOTO) => parsed.jumps_to = verdict.text(2).map(str::to_owned),
                    _ => {}
                }
            }
            // iptables' REJECT is a target of its own: family name "target", then its name.
            Some("target") => {
                let target = expression.inside(2).text(1);
                parsed.refuses |= matches!(target, Some("REJECT" | "DROP"));
            }
            _ => {}
        }
    }
    parsed
}

fn comment_of(user_data: &[u8]) -> Option<&str> {
    let [0, length, rest @ ..] = user_data else { return None };
    let text = rest.get(..usize::from(*length))?;
    std::str::from_utf8(text.strip_suffix(&[0]).unwrap_or(text)).ok()
}
