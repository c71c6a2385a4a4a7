//! Other people's forward chains. An accept in our chain does not overrule a drop in another, so
//! where a chain would drop what instances send or get, two rules that accept it are put at its
//! head, in the form that `iptables -i kl1a2b3c+ -j ACCEPT` would give them: iptables still lists,
//! saves and restores the table. Where there is Docker's DOCKER-USER chain, made for this, they go
//! there. What may really enter is decided in our own chain.

use std::io;
use std::process::Command;

use super::NetError;
use super::expression::Term;
use super::netlink::{Refused, Socket};
use super::nft::{FORWARD, INET, IPV4, Transaction};
use super::range::Range;
use super::ruleset::{BaseChain, ChainName, Rule};

const DOCKER_USER: &str = "DOCKER-USER";

/// Puts our rules where they are needed and missing. Returns the chains that got them.
pub(super) fn accept(socket: &mut Socket, range: &Range) -> Result<Vec<String>, Refused> {
    let comment = range.table();
    let prefix = range.interface_prefix();
    let mut opened = Vec::new();
    for chain in foreign_chains(socket)? {
        let rules = socket.rules(&chain.name)?;
        if !would_drop(&chain, &rules) {
            continue;
        }
        let place = place_for(&chain.name, &rules);
        let there = if place == chain.name { rules } else { socket.rules(&place)? };
        let has = |direction: fn(&Rule) -> &Option<Vec<u8>>| {
            ours_in(&there, &prefix).any(|rule| direction(rule).is_some())
        };
        if has(|rule| &rule.incoming) && has(|rule| &rule.outgoing) {
            continue;
        }
        let mut change = Transaction::new();
        for rule in ours_in(&there, &prefix) {
            change.delete_rule(&place, rule.handle);
        }
        for term in [Term::Out(&prefix), Term::In(&prefix)] {
            change.rule_at_head(&place, &comment, &[term, Term::Counter, Term::Accept]);
        }
        change.commit(socket)?;
        opened.push(place.to_string());
    }
    Ok(opened)
}

/// Removes our rules from wherever [`accept`] puts them.
pub(super) fn withdraw(socket: &mut Socket, range: &Range) -> Result<(), Refused> {
    let prefix = range.interface_prefix();
    for chain in foreign_chains(socket)? {
        let mut places = vec![chain.name.clone()];
        places.push(ChainName { chain: DOCKER_USER.to_owned(), ..chain.name });
        for place in places {
            let rules = socket.rules(&place)?;
            let mut change = Transaction::new();
            let mut any = false;
            for rule in ours_in(&rules, &prefix) {
                change.delete_rule(&place, rule.handle);
                any = true;
            }
            if any {
                change.commit(socket)?;
            }
        }
    }
    Ok(())
}

fn foreign_chains(socket: &mut Socket) -> Result<Vec<BaseChain>, Refused> {
    let mut chains = socket.base_chains()?;
    chains.retain(|chain| {
        chain.hook == FORWARD
            && chain.filter
            && matches!(chain.name.family, IPV4 | INET)
            && !chain.name.table.starts_with("kiln-")
    });
    Ok(chains)
}

/// By its policy, or by what it does with all that is left at its end.
fn would_drop(chain: &BaseChain, rules: &[Rule]) -> bool {
    chain.policy_drops || rules.last().is_some_and(|rule| rule.refuses)
}

fn place_for(chain: &ChainName, rules: &[Rule]) -> ChainName {
    if rules.iter().any(|rule| rule.jumps_to.as_deref() == Some(DOCKER_USER)) {
        return ChainName { chain: DOCKER_USER.to_owned(), ..chain.clone() };
    }
    chain.clone()
}

/// Known by the interfaces that they accept. The comment is for people: iptables-restore turns it
/// into something else.
fn ours_in<'a>(rules: &'a [Rule], prefix: &'a str) -> impl Iterator<Item = &'a Rule> {
    rules.iter().filter(move |rule| {
        let named = rule.incoming.as_ref().or(rule.outgoing.as_ref());
        rule.accepts && named.is_some_and(|name| name == prefix.as_bytes())
    })
}

impl std::fmt::Display for ChainName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = if self.family == INET { "inet" } else { "ip" };
        write!(f, "{family} {} {}", self.table, self.chain)
    }
}

/// Tables of the old iptables, which nftables does not show. Whoever filled them has the program
/// that can change them.
pub(super) fn accept_legacy(range: &Range) -> Result<Option<String>, NetError> {
    if !legacy_filter_exists() {
        return Ok(None);
    }
    let Some(program) = legacy_program() else {
        return Ok(Some(
            "old iptables tables are loaded, but there is no iptables-legacy to look at them: if \
             their FORWARD chain drops, instances have no network"
                .to_owned(),
        ));
    };
    let listed = run(program, &["-S", "FORWARD"])?;
    if !legacy_would_drop(&listed) {
        return Ok(None);
    }
    let docker = listed.lines().any(|line| line.ends_with(&format!("-j {DOCKER_USER}")));
    let chain = if docker { DOCKER_USER } else { "FORWARD" };
    let mut added = false;
    let name = format!("{}+", range.interface_prefix());
    for direction in ["-o", "-i"] {
        if run(program, &["-C", chain, direction, &name, "-j", "ACCEPT"]).is_err() {
            run(program, &["-I", chain, direction, &name, "-j", "ACCEPT"])?;
            added = true;
        }
    }
    Ok(added.then(|| format!("legacy filter {chain}")))
}

/// Removes what [`accept_legacy`] added.
pub(super) fn withdraw_legacy(range: &Range) -> Result<(), NetError> {
    if !legacy_filter_exists() {
        return Ok(());
    }
    let Some(program) = legacy_program() else { return Ok(()) };
    let name = format!("{}+", range.interface_prefix());
    for chain in ["FORWARD", DOCKER_USER] {
        for direction in ["-o", "-i"] {
            let rule = [chain, direction, name.as_str(), "-j", "ACCEPT"];
            if run(program, &[&["-C"], &rule[..]].concat()).is_ok() {
                run(program, &[&["-D"], &rule[..]].concat())?;
            }
        }
    }
    Ok(())
}

/// Of the namespace that the thread is in.
fn legacy_filter_exists() -> bool {
    std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")
        .is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

/// On old systems plain `iptables` is the legacy one.
fn legacy_program() -> Option<&'static str> {
    if run("iptables-legacy", &["--version"]).is_ok() {
        return Some("iptables-legacy");
    }
    let version = run("iptables", &["--version"]).ok()?;
    (!version.contains("nf_tables")).then_some("iptables")
}

fn legacy_would_drop(listed: &str) -> bool {
    let last = listed.lines().rfind(|line| line.starts_with("-A FORWARD"));
    listed.lines().any(|line| line == "-P FORWARD DROP")
        || last.is_some_and(|line| line.contains("-j DROP") || line.contains("-j REJECT"))
}

fn run(program: &'static str, arguments: &[&str]) -> Result<String, NetError> {
    let failed = |source| NetError::Program {
        command: format!("{program} {}", arguments.join(" ")),
        source,
    };
    let mut command = Command::new(program);
    if arguments != ["--version"] {
        command.arg("-w");
    }
    let output = command.args(arguments).output().map_err(failed)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(io::Error::other(text)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_listings() {
        assert!(legacy_would_drop("-P FORWARD DROP\n"));
        assert!(legacy_would_drop("-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with x\n"));
        assert!(!legacy_would_drop(
            "-P FORWARD ACCEPT\n-A FORWARD -i a -j DROP\n-A FORWARD -j B\n"
        ));
        assert!(!legacy_would_drop(""));
    }

    #[test]
    fn a_chain_drops_by_policy_or_at_its_end() {
        let name =
            ChainName { family: IPV4, table: "filter".to_owned(), chain: "FORWARD".to_owned() };
        let chain = |policy_drops| BaseChain {
            name: name.clone(),
            hook: FORWARD,
            filter: true,
            policy_drops,
        };
        let refuses = Rule { refuses: true, ..Rule::default() };
        let docker = Rule { jumps_to: Some(DOCKER_USER.to_owned()), ..Rule::default() };
        assert!(would_drop(&chain(true), &[]));
        assert!(would_drop(&chain(false), std::slice::from_ref(&refuses)));
        assert!(!would_drop(&chain(false), &[refuses, docker.clone()]));
        assert_eq!(place_for(&name, &[docker]).to_string(), "ip filter DOCKER-USER");
        assert_eq!(place_for(&name, &[]), name);
    }
}
