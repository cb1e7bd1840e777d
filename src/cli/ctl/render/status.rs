//! `status` of one node and of all.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::cli::{
    ctl::render::{Shown, is_true, list, node_name, number, short_hash, size, span, text, yes_no},
    table::{Cell, Table, Tone},
    units,
};

pub(crate) fn one(s: &Value, is_colored: bool) -> Shown {
    let mut t = Table::pairs();
    let node = format!(
        "{} of {}, blockraft {}",
        node_name(&s["nodeId"], &s["name"]),
        text(&s["clusterId"]),
        text(&s["version"])
    );
    t.pair("node", Cell::new(node, Tone::Strong));
    t.pair("role", role(s));
    t.pair("term", text(&s["term"]));
    t.pair("leader", text(&s["leaderId"]));
    t.pair("head", head(&s["head"]));
    let log = format!(
        "last {} · committed {} (cluster {}) · applied {} · snapshot {} · purged {}",
        text(&s["lastLogIndex"]),
        text(&s["committedIndex"]),
        text(&s["clusterCommittedIndex"]),
        text(&s["appliedIndex"]),
        text(&s["snapshotIndex"]),
        text(&s["purgedIndex"])
    );
    t.pair("log", log);
    t.pair("lag", format!("apply {} · compaction {}", text(&s["applyLag"]), text(&s["compactionLag"])));
    if s["role"] == "leader" {
        t.pair("lease", lease(&s["lease"]));
    }
    let m = &s["membership"];
    let joint = if is_true(&m["joint"]) { ", changing" } else { "" };
    let members = format!(
        "voters {} · learners {} · version {}{joint}",
        text(&m["voters"]),
        text(&m["learners"]),
        text(&m["version"])
    );
    t.pair("members", members);
    let install = &s["install"];
    if install.is_object() {
        let how_far = format!(
            "snapshot {} · {} · {} of {}",
            text(&install["snapshotId"]),
            text(&install["stage"]),
            size(&install["receivedBytes"]),
            size(&install["sizeBytes"])
        );
        t.pair("install", Cell::new(how_far, Tone::Warn));
    }
    if let Some(e) = s["executor"].as_object() {
        let get = |name: &str| e.get(name).map_or("-".into(), text);
        t.pair(
            "executor",
            format!("height {} · lag {} · healthy {}", get("height"), get("lag"), get("healthy")),
        );
    }
    for (field, what) in [
        ("settingsDiffer", "this node's file differs from the cluster's settings"),
        ("addressDiffers", "peer.advertise differs from this node's membership record"),
    ] {
        if is_true(&s[field]) {
            t.pair("note", Cell::new(what, Tone::Warn));
        }
    }
    if let Some(last_exit) = s["lastExit"].as_str() {
        t.pair("last exit", last_exit);
    }
    t.pair("up", span(&s["uptimeMs"]));
    let mut out = t.render(is_colored);
    // That a follower does not lead needs no table.
    let told: Vec<Value> = list(s, "blockers").iter().filter(|b| b["check"] != "role").cloned().collect();
    out += &blockers(&told, is_colored);
    out += &peers(list(s, "peers"), is_colored);
    out.into()
}

/// `leader, ready, fence 3`.
pub(crate) fn role(s: &Value) -> Cell {
    let mut words = vec![text(&s["role"])];
    let is_ready = is_true(&s["ready"]);
    if is_ready {
        words.push("ready".into());
    } else if s["role"] == "leader" {
        words.push("not ready".into());
    }
    if !s["fence"].is_null() {
        words.push(format!("fence {}", text(&s["fence"])));
    }
    let is_paused = is_true(&s["paused"]);
    if is_paused {
        words.push("paused".into());
    }
    let tone = match (is_ready, s["role"].as_str()) {
        (true, _) => Tone::Good,
        (false, Some("leader" | "candidate" | "stopped")) => Tone::Warn,
        (false, _) if is_paused => Tone::Warn,
        (false, _) => Tone::Plain,
    };
    Cell::new(words.join(", "), tone)
}

fn head(head: &Value) -> String {
    if head.is_null() {
        return "no block yet".into();
    }
    let timestamp = head["timestamp"].as_str().and_then(|t| t.parse::<u128>().ok()).unwrap_or(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let age = match now.checked_sub(timestamp) {
        Some(age) => format!("{} old", units::duration_ms((age / 1_000_000) as u64)),
        None => "ahead of this clock".into(),
    };
    format!("{}  {}  {age}", text(&head["height"]), short_hash(&head["hash"]))
}

fn lease(lease: &Value) -> Cell {
    let age = format!("quorum heard {} ago", span(&lease["quorumAckAgeMs"]));
    if is_true(&lease["valid"]) {
        Cell::new(format!("{} left, {age}", span(&lease["remainingMs"])), Tone::Good)
    } else {
        Cell::new(format!("not valid, {age}"), Tone::Warn)
    }
}

/// Why a node is not ready, one line each; nothing when nothing blocks.
pub(crate) fn blockers(blockers: &[Value], is_colored: bool) -> String {
    if blockers.is_empty() {
        return String::new();
    }
    let mut t = Table::new(&["NOT READY BECAUSE", "SINCE", "HINT"]);
    for b in blockers {
        t.row([
            Cell::new(text(&b["check"]), Tone::Warn),
            span(&b["sinceMs"]).into(),
            text(&b["hint"]).into(),
        ]);
    }
    format!("\n{}", t.render(is_colored))
}

fn peers(peers: &[Value], is_colored: bool) -> String {
    if peers.is_empty() {
        return String::new();
    }
    let mut t = Table::new(&["PEER", "MATCHED", "LAG", "LAST ACK", "REACHABLE"]);
    for p in peers {
        t.row([
            text(&p["nodeId"]).into(),
            text(&p["matchedIndex"]).into(),
            text(&p["lag"]).into(),
            span(&p["lastAckAgeMs"]).into(),
            yes_no(&p["reachable"], true),
        ]);
    }
    format!("\n{}", t.render(is_colored))
}

pub(crate) fn all(cluster: &Value, is_colored: bool) -> Shown {
    let mut t = Table::new(&["NODE", "API", "ROLE", "TERM", "HEAD", "APPLIED", "BEHIND", "SNAPSHOT", "UP"]);
    for node in list(cluster, "nodes") {
        let name = node_name(&node["nodeId"], &node["name"]);
        let api = text(&node["apiAddr"]);
        let s = &node["status"];
        if s.is_null() {
            t.row([name.into(), api.into(), Cell::new("does not answer", Tone::Bad)]);
            continue;
        }
        let behind = number(&s["clusterCommittedIndex"]).saturating_sub(number(&s["appliedIndex"]));
        let height = if s["head"].is_null() { "-".into() } else { text(&s["head"]["height"]) };
        let mut role = role(s);
        if !is_true(&node["reachable"]) {
            role = Cell::new(format!("not reachable for {}", span(&node["ageMs"])), Tone::Bad);
        }
        t.row([
            Cell::new(name, Tone::Strong),
            api.into(),
            role,
            text(&s["term"]).into(),
            height.into(),
            text(&s["appliedIndex"]).into(),
            behind.into(),
            text(&s["snapshotIndex"]).into(),
            span(&s["uptimeMs"]).into(),
        ]);
    }
    t.render(is_colored).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_nodes_in_one_table() {
        let status = |id: u64, role: &str, applied: u64| {
            json!({"nodeId": id, "role": role, "ready": role == "leader", "fence": if role == "leader" { json!(2) } else { json!(null) },
                   "term": 2, "head": {"height": 41}, "appliedIndex": applied, "clusterCommittedIndex": 45,
                   "snapshotIndex": 0, "uptimeMs": 61_000})
        };
        let cluster = json!({"nodes": [
            {"nodeId": 1, "name": "node-1", "apiAddr": "127.0.0.1:7401", "reachable": true, "ageMs": 0, "status": status(1, "leader", 45)},
            {"nodeId": 2, "name": "node-2", "apiAddr": "127.0.0.1:7402", "reachable": true, "ageMs": 3, "status": status(2, "follower", 43)},
            {"nodeId": 3, "name": "node-3", "apiAddr": "127.0.0.1:7403", "reachable": false, "ageMs": null},
        ]});
        assert_eq!(
            all(&cluster, false).text,
            "\
NODE        API             ROLE                    TERM  HEAD  APPLIED  BEHIND  SNAPSHOT  UP
1 (node-1)  127.0.0.1:7401  leader, ready, fence 2     2    41       45       0         0  1 min 1 s
2 (node-2)  127.0.0.1:7402  follower                   2    41       43       2         0  1 min 1 s
3 (node-3)  127.0.0.1:7403  does not answer
"
        );
    }

    #[test]
    fn one_node_says_why_it_is_not_ready() {
        let status = json!({"nodeId": 1, "name": "a", "clusterId": "c", "version": "0.1.0", "role": "leader", "ready": false, "term": 4,
            "leaderId": 1, "fence": null, "paused": true, "head": null, "blockers": [{"check": "role", "sinceMs": 1, "hint": ""}, {"check": "catchUp", "sinceMs": 120, "hint": "behind by 7"}],
            "lease": {"valid": true, "remainingMs": 100, "quorumAckAgeMs": 5}, "membership": {"version": 1, "voters": [1, 2], "learners": [], "joint": false},
            "peers": [{"nodeId": 2, "matchedIndex": 5, "lag": 1, "lastAckAgeMs": 9, "reachable": true}]});
        let shown = one(&status, false).text;
        for want in [
            "role     leader, not ready, paused\n",
            "head     no block yet\n",
            "lease    100 ms left, quorum heard 5 ms ago\n",
            "members  voters 1 2 · learners - · version 1\n",
            "catchUp            120 ms  behind by 7\n",
        ] {
            assert!(shown.contains(want), "{want} in {shown}");
        }
        // Once as what it is, and not among the reasons too.
        assert_eq!(shown.matches("\nrole  ").count(), 1, "{shown}");
    }
}
