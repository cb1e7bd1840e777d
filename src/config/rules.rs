//! What holds between settings. A rule whose settings are wrong by themselves is not asked.

use std::time::Duration;

use crate::config::values::{Entry, Values};
use crate::config::{Complaint, address};
use crate::types::address::host;
use crate::types::member::{Member, is_node_name};
use crate::types::quantity::{format_duration, format_size};
use crate::types::setting::Value;

/// Heartbeats that must fit into a follower's patience.
const BEATS: u32 = 4;
/// What a JSON-RPC request has around the two hex digits of each byte of its block.
const BODY_EXTRA: u64 = 64 << 10;
/// Bound of the label values that metrics get from `feed.watched`.
const WATCHED_MAX: usize = 100;

pub(crate) fn check(values: &Values) -> Vec<Complaint> {
    let mut found = Vec::new();
    check_timeouts(values, &mut found);
    check_body(values, &mut found);
    check_watched(values, &mut found);
    for part in ["peer", "api"] {
        check_exposure(values, part, &mut found);
        check_advertise(values, part, &mut found);
    }
    check_listeners(values, &mut found);
    check_peers(values, &mut found);
    found
}

/// A complaint about `key`, if it has a value.
fn complain(values: &Values, key: &str, rule: String, found: &mut Vec<Complaint>) {
    if let Some(Entry { value, source }) = values.entry(key) {
        found.push(Complaint::at(key, Some(value.to_toml()), rule, source.clone()));
    }
}

fn check_timeouts(values: &Values, found: &mut Vec<Complaint>) {
    let Some(timeout) = values.duration("raft.heartbeat_timeout") else { return };
    let shown = format_duration(timeout);
    if let Some(interval) = values.duration("raft.heartbeat_interval").filter(|i| timeout <= *i * BEATS) {
        let rule = format!(
            "must be more than {BEATS} × raft.heartbeat_interval ({}), so more than {}",
            format_duration(interval),
            format_duration(interval * BEATS),
        );
        complain(values, "raft.heartbeat_timeout", rule, found);
    }
    if values.duration("raft.election_timeout").is_some_and(|t| t < timeout) {
        let rule = format!("must be at least raft.heartbeat_timeout ({shown})");
        complain(values, "raft.election_timeout", rule, found);
    }
    if values.duration("raft.leader_lease_timeout").is_some_and(|lease| timeout < lease * 2) {
        let rule = format!(
            "must be at most 0.5 × raft.heartbeat_timeout ({shown}), so at most {}",
            format_duration(timeout / 2 / 1_000 * 1_000),
        );
        complain(values, "raft.leader_lease_timeout", rule, found);
    }
}

fn check_body(values: &Values, found: &mut Vec<Complaint>) {
    let (Some(body), Some(block)) = (values.integer("api.max_body"), values.integer("chain.max_block_bytes"))
    else {
        return;
    };
    let least = block.saturating_mul(2).saturating_add(BODY_EXTRA);
    if body < least {
        let rule = format!(
            "must be at least 2 × chain.max_block_bytes ({}) + 64KiB, so at least {}",
            format_size(block),
            format_size(least),
        );
        complain(values, "api.max_body", rule, found);
    }
}

fn check_watched(values: &Values, found: &mut Vec<Complaint>) {
    if let Some(Value::List(names)) = values.entry("feed.watched").map(|e| &e.value)
        && WATCHED_MAX < names.len()
    {
        complain(values, "feed.watched", format!("at most {WATCHED_MAX} names"), found);
    }
}

/// What anybody on the network can reach needs protection, or somebody who says that it does not.
fn check_exposure(values: &Values, part: &str, found: &mut Vec<Complaint>) {
    let Some(listen) = values.listen(&format!("{part}.listen")) else { return };
    if !listen.ip().to_canonical().is_loopback() && values.is_on(&format!("{part}.insecure")) == Some(false) {
        let protection = if part == "api" { "api.tls and tokens" } else { "peer.tls" };
        let rule = format!(
            "off loopback it needs {protection} (not available in this version), or {part}.insecure = true"
        );
        complain(values, &format!("{part}.listen"), rule, found);
    }
}

fn check_advertise(values: &Values, part: &str, found: &mut Vec<Complaint>) {
    let key = format!("{part}.advertise");
    let Some(text) = values.text(&key) else { return };
    let rule = match host(text) {
        Some(host) if host.is_unspecified() => "nobody can reach an unspecified address",
        Some(_) => return,
        None => "nobody can reach port 0",
    };
    complain(values, &key, format!("{rule}: set {key} to a host:port that others reach this node at"), found);
}

/// Two listeners at one place would only show when the second one starts.
fn check_listeners(values: &Values, found: &mut Vec<Complaint>) {
    let keys = ["peer.listen", "api.listen", "metrics.listen"];
    for (i, key) in keys.iter().enumerate() {
        let Some(mine) = values.listen(key) else { continue };
        let earlier =
            keys[..i].iter().find(|other| values.listen(other).is_some_and(|o| address::collide(o, mine)));
        if let Some(other) = earlier {
            complain(values, key, format!("{other} already listens there"), found);
        }
    }
}

fn check_peers(values: &Values, found: &mut Vec<Complaint>) {
    let members = values.members();
    let mut rules = Vec::new();
    for (i, member) in members.iter().enumerate() {
        rules.extend(check_peer(i + 1, member, &members[..i]));
    }
    if let (Some(id), Some(name)) = (values.integer("node.id"), values.text("node.name"))
        && let Some(other) = members.iter().find(|m| m.node_id != id && m.name == name)
    {
        rules.push(format!("node {} has this node's name, {name:?}", other.node_id));
    }
    for rule in rules {
        complain(values, "cluster.peers", rule, found);
    }
}

fn check_peer(nth: usize, member: &Member, before: &[Member]) -> Vec<String> {
    let mut rules = Vec::new();
    if before.iter().any(|m| m.node_id == member.node_id) {
        rules.push(format!("entry {nth}: id {} stands there twice", member.node_id));
    } else if before.iter().any(|m| m.name == member.name) {
        rules.push(format!("entry {nth}: name {:?} stands there twice", member.name));
    }
    if !is_node_name(&member.name) {
        rules.push(format!("entry {nth}: name is 1 to 63 of a-z0-9-"));
    }
    let addresses = [("peer", &member.peer_addr), ("api", &member.api_addr)];
    for (field, text) in addresses {
        match host(text) {
            None => rules
                .push(format!("entry {nth}: {field} is host:port, IPv6 in brackets, no scheme: {text:?}")),
            Some(host) if host.is_unspecified() => {
                rules.push(format!(
                    "entry {nth}: nobody can reach {field} = {text:?}, an unspecified address"
                ));
            }
            Some(_)
                if before
                    .iter()
                    .any(|m| m.node_id != member.node_id && [&m.peer_addr, &m.api_addr].contains(&text)) =>
            {
                rules.push(format!("entry {nth}: {field} = {text:?} stands there twice"));
            }
            Some(_) => {}
        }
    }
    if member.peer_addr == member.api_addr {
        rules.push(format!("entry {nth}: peer and api are two ports"));
    }
    rules
}

/// Whether a lease can outlast the time between two heartbeats.
pub(crate) fn lease_spans_heartbeats(lease: Duration, interval: Duration) -> bool {
    interval * 2 <= lease
}
