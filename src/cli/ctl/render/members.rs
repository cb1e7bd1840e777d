//! Who leads and who belongs, and what became of changing it.

use serde_json::Value;

use crate::cli::{
    ctl::render::{Shown, generic, is_true, list, node_name, span, text, yes_no},
    exit,
    table::{Cell, Table, Tone},
};

pub(crate) fn leader(answer: &Value, is_colored: bool) -> Shown {
    if answer["leaderId"].is_null() {
        let text = Tone::Bad.paint("no leader is known", is_colored);
        return Shown { text: format!("{text} (term {})\n", answer["term"]), code: exit::FAILED };
    }
    let mut t = Table::pairs();
    t.pair("leader", Cell::new(text(&answer["leaderId"]), Tone::Strong));
    t.pair("API", text(&answer["leaderApi"]));
    t.pair("term", text(&answer["term"]));
    if is_true(&answer["isSelf"]) {
        t.pair("ready", yes_no(&answer["ready"], true));
        t.pair("fence", text(&answer["fence"]));
        t.pair("lease left", span(&answer["leaseRemainingMs"]));
    }
    t.render(is_colored).into()
}

/// `leader --verify`: exit code 1 when no quorum confirms it.
pub(crate) fn verified_leader(answer: &Value, is_colored: bool) -> Shown {
    let mut shown = leader(answer, is_colored);
    if is_true(&answer["verified"]) {
        shown.text += &format!("{}\n", Tone::Good.paint("a quorum confirms it", is_colored));
    } else {
        shown.text += &format!("{}\n", Tone::Bad.paint("no quorum confirms it", is_colored));
        shown.code = exit::FAILED;
    }
    shown
}

pub(crate) fn members(answer: &Value, is_colored: bool) -> Shown {
    // A dry run answers the new quorum and tolerance instead.
    if !answer["voters"].is_array() {
        return generic(answer, is_colored);
    }
    let mut t = Table::new(&["NODE", "VOTE", "PEER", "API"]);
    for (name, vote) in [("voters", "voter"), ("learners", "learner")] {
        for m in list(answer, name) {
            let node = node_name(&m["nodeId"], &m["name"]);
            t.row([
                Cell::new(node, Tone::Strong),
                vote.into(),
                text(&m["peerAddr"]).into(),
                text(&m["apiAddr"]).into(),
            ]);
        }
    }
    let joint = if is_true(&answer["joint"]) { ", a change is under way" } else { "" };
    format!("{}version {}{joint}\n", t.render(is_colored), text(&answer["version"])).into()
}

/// `transfer` and `resign`: the outcome decides the exit code.
pub(crate) fn handover(answer: &Value, is_colored: bool) -> Shown {
    let (tone, code, words) = match answer["outcome"].as_str() {
        // Raft was not told: nothing moved.
        Some("transferred") if answer["to"].is_u64() && answer["from"] == answer["to"] => {
            let (node_id, term) = (&answer["to"], &answer["newTerm"]);
            return format!("nothing to do: node {node_id} leads already (term {term})\n").into();
        }
        Some("transferred") => (Tone::Good, exit::DONE, "handed over"),
        Some("notLeader") => (Tone::Plain, exit::DONE, "nothing to do: this node does not lead"),
        Some("otherLeads") => (Tone::Warn, exit::FAILED, "another node leads instead"),
        Some("noTarget") => (Tone::Warn, exit::FAILED, "no voter can take over"),
        Some("timedOut") => (Tone::Warn, exit::UNKNOWN, "not in time: it may still happen"),
        Some(_) | None => return generic(answer, is_colored),
    };
    let mut t = Table::pairs();
    t.pair("outcome", Cell::new(words, tone));
    t.pair("from", text(&answer["from"]));
    t.pair("to", text(&answer["to"]));
    t.pair("leader", text(&answer["leaderId"]));
    t.pair("term", format!("{} to {}", text(&answer["oldTerm"]), text(&answer["newTerm"])));
    t.pair("took", span(&answer["elapsedMs"]));
    t.pair("operation", text(&answer["operationId"]));
    Shown { text: t.render(is_colored), code }
}

pub(crate) fn election(answer: &Value, _is_colored: bool) -> Shown {
    let started =
        if is_true(&answer["started"]) { "an election was started" } else { "no election was started" };
    format!("{started} (term {})\n", text(&answer["term"])).into()
}

pub(crate) fn pause(answer: &Value, _is_colored: bool) -> Shown {
    let paused = if is_true(&answer["paused"]) { "paused" } else { "not paused" };
    format!("{paused}, {}\n", text(&answer["role"])).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_outcome_of_a_hand_over_is_the_exit_code() {
        for (outcome, code) in [
            ("transferred", exit::DONE),
            ("notLeader", exit::DONE),
            ("otherLeads", exit::FAILED),
            ("noTarget", exit::FAILED),
            ("timedOut", exit::UNKNOWN),
        ] {
            assert_eq!(handover(&json!({"outcome": outcome}), false).code, code, "{outcome}");
        }
    }

    #[test]
    fn a_hand_over_to_the_leader_itself_moves_nothing() {
        let answer = json!({"outcome": "transferred", "from": 2, "to": 2, "oldTerm": 5, "newTerm": 5});
        let shown = handover(&answer, false);
        assert_eq!(
            (shown.text.as_str(), shown.code),
            ("nothing to do: node 2 leads already (term 5)\n", exit::DONE)
        );
    }

    #[test]
    fn a_leader_that_no_quorum_confirms_is_exit_code_1() {
        let mut answer =
            json!({"leaderId": 2, "leaderApi": "a:1", "term": 3, "isSelf": false, "verified": true});
        let shown = verified_leader(&answer, false);
        assert_eq!(
            (shown.text.as_str(), shown.code),
            ("leader  2\nAPI     a:1\nterm    3\na quorum confirms it\n", exit::DONE)
        );
        answer["verified"] = false.into();
        assert_eq!(verified_leader(&answer, false).code, exit::FAILED);
        assert_eq!(
            leader(&json!({"leaderId": null, "term": 3}), false).text,
            "no leader is known (term 3)\n"
        );
    }

    #[test]
    fn members_and_a_dry_run() {
        let answer = json!({"version": 9, "joint": false,
            "voters": [{"nodeId": 1, "name": "node-1", "peerAddr": "a:1", "apiAddr": "a:2"}],
            "learners": [{"nodeId": 12, "name": "x", "peerAddr": "b:1", "apiAddr": "b:2"}]});
        assert_eq!(
            members(&answer, false).text,
            "NODE        VOTE     PEER  API\n1 (node-1)  voter    a:1   a:2\n12 (x)      learner  b:1   b:2\nversion 9\n"
        );
        assert_eq!(
            members(&json!({"quorum": 2, "tolerance": 1}), false).text,
            "quorum     2\ntolerance  1\n"
        );
    }
}
