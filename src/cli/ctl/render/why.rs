//! What keeps the cluster from taking blocks, in words.

use serde_json::Value;

use crate::cli::{
    ctl::render::{Shown, is_true, list, node_name, number, span, text},
    table::Tone,
    units,
};

/// Takes `raft_cluster`, or one node's `raft_status`. With `namedNodeId`, which is no part of an answer but of the
/// command, what that node says of itself comes first.
pub(crate) fn why(answer: &Value, is_colored: bool) -> Shown {
    let lines = match answer["nodes"].as_array() {
        Some(nodes) => cluster(nodes, answer["namedNodeId"].as_u64()),
        None => node(answer),
    };
    let mut out = String::new();
    for (tone, line) in lines {
        out += &tone.paint(&line, is_colored);
        out.push('\n');
    }
    out.into()
}

type Lines = Vec<(Tone, String)>;

fn node(status: &Value) -> Lines {
    let name = format!("Node {}", node_name(&status["nodeId"], &status["name"]));
    if is_true(&status["ready"]) {
        let line = format!(
            "{name} leads and is ready: its producer may act under fence {}.",
            text(&status["fence"])
        );
        return vec![(Tone::Good, line)];
    }
    let mut lines = Lines::new();
    if is_blank(status) {
        lines.extend(alone(status));
    }
    lines.push((Tone::Warn, format!("{name} ({}) is not ready:", text(&status["role"]))));
    lines.extend(blockers(status));
    lines
}

fn blockers(status: &Value) -> Lines {
    let lines: Lines = list(status, "blockers").iter().map(blocker).collect();
    if lines.is_empty() { vec![(Tone::Plain, "  - it does not say why".into())] } else { lines }
}

fn blocker(b: &Value) -> (Tone, String) {
    let hint = b["hint"].as_str().filter(|h| !h.is_empty());
    let since = if b["sinceMs"].is_null() { String::new() } else { format!(", for {}", span(&b["sinceMs"])) };
    let line = match hint {
        Some(hint) => format!("  - {}: {hint}{since}", text(&b["check"])),
        None => format!("  - {}{since}", text(&b["check"])),
    };
    (Tone::Plain, line)
}

fn cluster(nodes: &[Value], named: Option<u64>) -> Lines {
    let leader = nodes
        .iter()
        .filter(|n| answers(n))
        .map(|n| &n["status"])
        .filter(|s| s["role"] == "leader")
        .max_by_key(|s| (is_true(&s["ready"]), number(&s["term"])));
    let seen = Seen { leader, has_membership: nodes.iter().any(|n| !voters(&n["status"]).is_empty()) };
    // Where no node has a membership, what is said first of it is that.
    let named = named.filter(|_| seen.has_membership);
    let is_named = |node: &Value| node["nodeId"].as_u64().is_some_and(|id| named == Some(id));
    let mut lines = Lines::new();
    for node in nodes.iter().filter(|n| is_named(n)) {
        lines.extend(of_itself(node, &seen));
    }
    match leader {
        Some(s) if is_true(&s["ready"]) => {
            let line = format!(
                "The cluster takes blocks: node {} leads in term {}, ready, fence {}.",
                node_name(&s["nodeId"], &s["name"]),
                text(&s["term"]),
                text(&s["fence"])
            );
            lines.push((Tone::Good, line));
        }
        Some(s) => {
            let name = node_name(&s["nodeId"], &s["name"]);
            lines.push((
                Tone::Warn,
                format!("Node {name} leads in term {}, but its producer may not act:", text(&s["term"])),
            ));
            lines.extend(blockers(s));
        }
        None => lines.extend(no_leader(nodes)),
    }
    for node in nodes.iter().filter(|n| !is_named(n)) {
        lines.extend(about(node, &seen));
    }
    lines
}

/// What a look at one node rests on.
struct Seen<'a> {
    /// Of the node that leads; its blockers are told with it.
    leader: Option<&'a Value>,
    /// Some node has a membership.
    has_membership: bool,
}

impl Seen<'_> {
    fn is_leader(&self, status: &Value) -> bool {
        self.leader.is_some_and(|leader| leader["nodeId"] == status["nodeId"])
    }
}

fn answers(node: &Value) -> bool {
    is_true(&node["reachable"]) && !node["status"].is_null()
}

fn voters(status: &Value) -> &[Value] {
    list(&status["membership"], "voters")
}

/// Tells that it knows no membership.
fn is_blank(status: &Value) -> bool {
    status["membership"].is_object() && voters(status).is_empty()
}

fn no_leader(nodes: &[Value]) -> Lines {
    let statuses = nodes.iter().filter(|n| answers(n)).map(|n| &n["status"]);
    let newest =
        statuses.clone().max_by_key(|s| (!voters(s).is_empty(), number(&s["membership"]["version"])));
    let no_block = "No node leads: no block can be taken.".to_string();
    let Some(newest) = newest else {
        return vec![(Tone::Bad, no_block), (Tone::Bad, "No node tells its state.".into())];
    };
    let voters: Vec<u64> = voters(newest).iter().map(number).collect();
    if voters.is_empty() {
        return alone(newest);
    }
    let n_there = voters.iter().filter(|id| statuses.clone().any(|s| number(&s["nodeId"]) == **id)).count();
    let quorum = voters.len() / 2 + 1;
    let line = if n_there < quorum {
        format!("{n_there} of {} voters answer, and a quorum is {quorum}: start the others.", voters.len())
    } else {
        format!(
            "{n_there} of {} voters answer, a quorum is {quorum}: an election should be under way.",
            voters.len()
        )
    };
    vec![(Tone::Bad, no_block), (Tone::Plain, line)]
}

/// A node without a membership knows of no other, so nothing is said of the cluster.
fn alone(status: &Value) -> Lines {
    let name = node_name(&status["nodeId"], &status["name"]);
    let lines = [
        "  - The cluster is not founded yet: its first nodes have not all been seen, or cluster.peers is empty."
            .to_string(),
        format!("  - There is one that has not added this node yet, or that {REFUSES}. Ask another node."),
    ];
    let first = format!("Node {name} knows no membership, and so no other node. One of two:");
    [(Tone::Bad, first)].into_iter().chain(lines.map(|line| (Tone::Plain, line))).collect()
}

const REFUSES: &str = "refuses it because it lost its data (`peer is refused` in its log): docs/recovery.md, \
     \"A node that lost its disk\"";

/// [`about`] the node that was asked for by name, which is told too when all is well.
fn of_itself(node: &Value, seen: &Seen<'_>) -> Lines {
    let lines = about(node, seen);
    let s = &node["status"];
    if !lines.is_empty() || seen.is_leader(s) {
        return lines;
    }
    let name = node_name(&node["nodeId"], &node["name"]);
    vec![(Tone::Good, format!("Node {name} ({}) finds nothing wrong with itself.", text(&s["role"])))]
}

/// What is wrong with one node, and what else keeps it from leading.
fn about(node: &Value, seen: &Seen<'_>) -> Lines {
    let s = &node["status"];
    let mut lines: Lines = troubles(node, seen).into_iter().map(|t| (Tone::Warn, t)).collect();
    if !answers(node) || is_true(&s["ready"]) || seen.is_leader(s) {
        return lines;
    }
    // That it does not lead is no fault, and a pause has been told.
    let faults = list(s, "blockers").iter().filter(|b| b["check"] != "role" && b["check"] != "paused");
    let faults: Lines = faults.map(blocker).collect();
    if !faults.is_empty() {
        let name = node_name(&node["nodeId"], &node["name"]);
        lines.push((Tone::Warn, format!("Node {name} ({}) is held back by:", text(&s["role"]))));
        lines.extend(faults);
    }
    lines
}

/// What is wrong with one node, whoever leads.
fn troubles(node: &Value, seen: &Seen<'_>) -> Vec<String> {
    let name = format!("Node {}", node_name(&node["nodeId"], &node["name"]));
    let s = &node["status"];
    if !answers(node) {
        let why = node["error"].as_str().map_or(String::new(), |why| format!(": {why}"));
        return vec![format!("{name} at {} does not answer{why}.", text(&node["apiAddr"]))];
    }
    let says = |check: &str| list(s, "blockers").iter().any(|b| b["check"] == check);
    let mut out = Vec::new();
    if is_blank(s) && seen.has_membership {
        out.push(format!(
            "{name} knows no membership while the cluster has one: it was added a moment ago, or the cluster {REFUSES}."
        ));
    }
    if is_true(&s["paused"]) {
        out.push(format!(
            "{name} is paused: it leads only while no other can. `ctl --node {} resume` takes it back.",
            text(&node["nodeId"])
        ));
    }
    let behind = number(&s["clusterCommittedIndex"]).saturating_sub(number(&s["appliedIndex"]));
    // By eye: what is on its way at any moment is no trouble.
    const IN_FLIGHT: u64 = 100;
    if seen.leader.is_some() && IN_FLIGHT < behind && !says("caughtUp") {
        out.push(format!("{name} is {behind} entries behind."));
    }
    let executor = &s["executor"];
    let is_ill = is_true(&executor["reported"]) && !is_true(&executor["healthy"]);
    if executor.is_object() && is_ill && !says("executor") {
        let reason = executor["reason"].as_str().map_or(String::new(), |r| format!(": {r}"));
        out.push(format!("{name}'s executor is not healthy{reason}."));
    }
    if is_true(&s["settingsDiffer"]) {
        out.push(format!("{name}'s file differs from the cluster's settings, which hold: `ctl settings`."));
    }
    if is_true(&s["addressDiffers"]) {
        out.push(format!(
            "{name} advertises another peer address than the membership has: `ctl members update`."
        ));
    }
    if let Some(last_exit) = s["lastExit"].as_str().filter(|e| !e.is_empty())
        && number(&s["uptimeMs"]) < RECENT_MS
    {
        let ago = units::duration_ms(number(&s["uptimeMs"]));
        out.push(format!("{name} started {ago} ago; before that it ended with: {last_exit}."));
    }
    out
}

/// By eye: an exit longer ago explains nothing about this moment.
const RECENT_MS: u64 = 600_000;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(id: u64, role: &str, blockers: Value) -> Value {
        json!({"nodeId": id, "name": "", "apiAddr": format!("n{id}:7400"), "reachable": true, "ageMs": 1, "status": {
            "nodeId": id, "role": role, "ready": false, "term": 2, "paused": false, "uptimeMs": 9_000_000,
            "membership": {"version": 3, "voters": [1, 2, 3], "learners": []}, "blockers": blockers}})
    }

    fn follower(id: u64) -> Value {
        node(id, "follower", json!([role()]))
    }

    fn role() -> Value {
        json!({"check": "role", "sinceMs": 9_000, "hint": "this node follows; node 1 leads"})
    }

    fn leaderless(id: u64) -> Value {
        let leader = json!({"check": "leader", "sinceMs": 1_500, "hint": "no leader is heard"});
        node(id, "follower", json!([leader, role()]))
    }

    fn leader(id: u64) -> Value {
        let mut leader = node(id, "leader", json!([]));
        leader["status"]["ready"] = true.into();
        leader["status"]["fence"] = 2.into();
        leader
    }

    fn blank(id: u64) -> Value {
        let mut node = leaderless(id);
        node["status"]["role"] = "learner".into();
        node["status"]["membership"] = json!({"version": 0, "voters": [], "learners": []});
        node
    }

    fn down(id: u64) -> Value {
        json!({"nodeId": id, "name": "c", "apiAddr": format!("n{id}:7400"), "reachable": false, "ageMs": null})
    }

    fn said(nodes: &[Value], named: Option<u64>) -> String {
        why(&json!({"nodes": nodes, "namedNodeId": named}), false).text
    }

    const TAKES: &str = "The cluster takes blocks: node 1 leads in term 2, ready, fence 2.\n";

    #[test]
    fn a_ready_cluster_with_one_node_down() {
        let shown = said(&[leader(1), follower(2), down(3)], None);
        assert_eq!(shown, format!("{TAKES}Node 3 (c) at n3:7400 does not answer.\n"));
    }

    #[test]
    fn what_keeps_a_follower_from_leading_is_told_and_its_role_is_not() {
        let storage = json!({"check": "storage", "sinceMs": 3_000, "hint": "free some"});
        let nodes = [leader(1), follower(2), node(3, "follower", json!([storage, role()]))];
        let of_3 = "Node 3 (follower) is held back by:\n  - storage: free some, for 3.0 s\n";
        assert_eq!(said(&nodes, None), format!("{TAKES}{of_3}"));
        assert_eq!(said(&nodes, Some(3)), format!("{of_3}{TAKES}"), "the one that was named comes first");
        let well = "Node 2 (follower) finds nothing wrong with itself.\n";
        assert_eq!(said(&nodes, Some(2)), format!("{well}{TAKES}{of_3}"));
        assert_eq!(said(&nodes, Some(1)), format!("{TAKES}{of_3}"));
    }

    #[test]
    fn a_fault_is_told_once() {
        let blockers = json!([
            {"check": "caughtUp", "sinceMs": 1_000, "hint": "applied 5 of 900 entries"},
            {"check": "executor", "sinceMs": 1_000, "hint": "it is behind"},
            {"check": "paused", "sinceMs": 1_000, "hint": "asked not to lead"}
        ]);
        let mut third = node(3, "follower", blockers);
        third["status"]["paused"] = true.into();
        third["status"]["clusterCommittedIndex"] = 900.into();
        third["status"]["appliedIndex"] = 5.into();
        third["status"]["executor"] = json!({"reported": true, "healthy": false});
        let shown = said(&[leader(1), third], None);
        let rest = shown.strip_prefix(TAKES).expect("the leader first");
        let lines: Vec<&str> = rest.lines().collect();
        assert!(lines[0].starts_with("Node 3 is paused:"), "{shown}");
        assert_eq!(
            lines[1..],
            [
                "Node 3 (follower) is held back by:",
                "  - caughtUp: applied 5 of 900 entries, for 1.0 s",
                "  - executor: it is behind, for 1.0 s"
            ]
        );
    }

    #[test]
    fn without_a_quorum_it_says_how_many_are_needed() {
        let shown = said(&[down(1), leaderless(2), down(3)], None);
        let mut lines = shown.lines();
        assert_eq!(lines.next(), Some("No node leads: no block can be taken."));
        assert_eq!(lines.next(), Some("1 of 3 voters answer, and a quorum is 2: start the others."));
        assert!(
            shown.contains("Node 2 (follower) is held back by:\n  - leader: no leader is heard, for 1.5 s\n")
        );
        assert!(!shown.contains("role:"), "{shown}");
    }

    #[test]
    fn a_node_without_a_membership_beside_a_cluster_is_not_called_unfounded() {
        for nodes in [[leader(1), follower(2), blank(3)], [leaderless(1), leaderless(2), blank(3)]] {
            let shown = said(&nodes, Some(3));
            let first = "Node 3 knows no membership while the cluster has one: it was added a moment ago, or";
            assert!(shown.starts_with(first), "{shown}");
            assert!(shown.contains("docs/recovery.md") && !shown.contains("not founded"), "{shown}");
        }
    }

    #[test]
    fn a_node_that_sees_itself_alone_does_not_know_whether_there_is_a_cluster() {
        for shown in
            [said(&[blank(3)], None), said(&[blank(3)], Some(3)), why(&blank(3)["status"], false).text]
        {
            assert!(
                shown.starts_with("Node 3 knows no membership, and so no other node. One of two:\n"),
                "{shown}"
            );
            assert!(shown.contains("not founded yet") && shown.contains("lost its data"), "{shown}");
            assert!(shown.contains("  - leader: no leader is heard, for 1.5 s\n"), "{shown}");
        }
    }

    #[test]
    fn one_status_is_enough() {
        let storage = json!([{"check": "storage", "sinceMs": 1_500, "hint": "free some"}]);
        let shown = why(&node(2, "follower", storage)["status"], false).text;
        assert_eq!(shown, "Node 2 (follower) is not ready:\n  - storage: free some, for 1.5 s\n");
    }
}
