//! What keeps the cluster from taking blocks, in words.

use serde_json::Value;

use crate::cli::{
    ctl::render::{Shown, is_true, list, node_name, number, span, text},
    table::Tone,
    units,
};

/// Takes `raft_cluster`, or one node's `raft_status`.
pub(crate) fn why(answer: &Value, is_colored: bool) -> Shown {
    let lines = match answer["nodes"].as_array() {
        Some(nodes) => cluster(nodes),
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
    let mut lines = vec![(Tone::Warn, format!("{name} ({}) is not ready:", text(&status["role"])))];
    lines.extend(blockers(status));
    lines
}

fn blockers(status: &Value) -> Lines {
    let words = |b: &Value| {
        let hint = b["hint"].as_str().filter(|h| !h.is_empty());
        let since =
            if b["sinceMs"].is_null() { String::new() } else { format!(", for {}", span(&b["sinceMs"])) };
        match hint {
            Some(hint) => format!("  - {}: {hint}{since}", text(&b["check"])),
            None => format!("  - {}{since}", text(&b["check"])),
        }
    };
    let lines: Lines = list(status, "blockers").iter().map(|b| (Tone::Plain, words(b))).collect();
    if lines.is_empty() { vec![(Tone::Plain, "  - it does not say why".into())] } else { lines }
}

fn cluster(nodes: &[Value]) -> Lines {
    let answering = || nodes.iter().filter(|n| is_true(&n["reachable"]) && !n["status"].is_null());
    let leader = answering()
        .map(|n| &n["status"])
        .filter(|s| s["role"] == "leader")
        .max_by_key(|s| (is_true(&s["ready"]), number(&s["term"])));
    let mut lines = Lines::new();
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
    for node in nodes {
        lines.extend(troubles(node, leader.is_some()).into_iter().map(|t| (Tone::Warn, t)));
    }
    lines
}

fn no_leader(nodes: &[Value]) -> Lines {
    let mut lines = vec![(Tone::Bad, "No node leads: no block can be taken.".to_string())];
    let statuses = || nodes.iter().map(|n| &n["status"]).filter(|s| !s.is_null());
    let Some(newest) = statuses().max_by_key(|s| number(&s["membership"]["version"])) else {
        lines.push((Tone::Bad, "No node tells its state.".into()));
        return lines;
    };
    let voters: Vec<u64> = list(&newest["membership"], "voters").iter().map(number).collect();
    let is_there = |id: &u64| {
        nodes
            .iter()
            .any(|n| number(&n["nodeId"]) == *id && is_true(&n["reachable"]) && !n["status"].is_null())
    };
    let n_there = voters.iter().filter(|id| is_there(id)).count();
    let quorum = voters.len() / 2 + 1;
    let line = if voters.is_empty() {
        "The cluster has not been founded: its first nodes have not all been seen, or cluster.peers is empty."
            .into()
    } else if n_there < quorum {
        format!("{n_there} of {} voters answer, and a quorum is {quorum}: start the others.", voters.len())
    } else {
        format!(
            "{n_there} of {} voters answer, a quorum is {quorum}: an election should be under way.",
            voters.len()
        )
    };
    lines.push((Tone::Plain, line));
    for status in statuses() {
        lines.push((
            Tone::Plain,
            format!("Node {} ({}):", node_name(&status["nodeId"], &status["name"]), text(&status["role"])),
        ));
        lines.extend(blockers(status));
    }
    lines
}

/// What is wrong with one node, whoever leads.
fn troubles(node: &Value, has_leader: bool) -> Vec<String> {
    let name = format!("Node {}", node_name(&node["nodeId"], &node["name"]));
    let s = &node["status"];
    if s.is_null() || !is_true(&node["reachable"]) {
        return vec![format!("{name} at {} does not answer.", text(&node["apiAddr"]))];
    }
    let mut out = Vec::new();
    if is_true(&s["paused"]) {
        out.push(format!(
            "{name} is paused: it leads only while no other can. `ctl --node {} resume` takes it back.",
            text(&node["nodeId"])
        ));
    }
    let behind = number(&s["clusterCommittedIndex"]).saturating_sub(number(&s["appliedIndex"]));
    // By eye: what is on its way at any moment is no trouble.
    const IN_FLIGHT: u64 = 100;
    if has_leader && IN_FLIGHT < behind {
        out.push(format!("{name} is {behind} entries behind."));
    }
    let executor = &s["executor"];
    if executor.is_object() && is_true(&executor["reported"]) && !is_true(&executor["healthy"]) {
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

    fn follower(id: u64) -> Value {
        json!({"nodeId": id, "name": "", "apiAddr": format!("n{id}:7400"), "reachable": true, "ageMs": 1, "status": {
            "nodeId": id, "role": "follower", "ready": false, "term": 2, "paused": false, "uptimeMs": 9_000_000,
            "membership": {"version": 3, "voters": [1, 2, 3], "learners": []},
            "blockers": [{"check": "leader", "sinceMs": 1_500, "hint": "no leader is heard"}]}})
    }

    #[test]
    fn a_ready_cluster_with_one_node_down() {
        let mut leader = follower(1);
        leader["status"]["role"] = "leader".into();
        leader["status"]["ready"] = true.into();
        leader["status"]["fence"] = 2.into();
        let down = json!({"nodeId": 3, "name": "c", "apiAddr": "n3:7400", "reachable": false, "ageMs": null});
        let answer = json!({"nodes": [leader, follower(2), down]});
        assert_eq!(
            why(&answer, false).text,
            "The cluster takes blocks: node 1 leads in term 2, ready, fence 2.\nNode 3 (c) at n3:7400 does not answer.\n"
        );
    }

    #[test]
    fn without_a_quorum_it_says_how_many_are_needed() {
        let down = |id| json!({"nodeId": id, "name": "", "apiAddr": "x:1", "reachable": false});
        let answer = json!({"nodes": [down(1), follower(2), down(3)]});
        let shown = why(&answer, false).text;
        assert!(shown.starts_with("No node leads: no block can be taken.\n1 of 3 voters answer, and a quorum is 2: start the others.\n"), "{shown}");
        assert!(shown.contains("  - leader: no leader is heard, for 1.5 s\n"), "{shown}");
    }

    #[test]
    fn one_status_is_enough() {
        let shown = why(&follower(2)["status"], false).text;
        assert_eq!(shown, "Node 2 (follower) is not ready:\n  - leader: no leader is heard, for 1.5 s\n");
    }
}
