//! Leadership that moves beside other changes, twice, or to somebody who does not take it.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_hand_over_and_a_change_of_members_take_turns | safety 13: a target that loses its vote meanwhile is succeeded by nobody |
//! | a_change_waits_for_a_quorum_that_holds_everything | design 5: `notCaughtUp`; a chain that stands still in a joint membership |
//! | a_leader_whose_disk_hangs_is_no_quorum_of_a_change | safety 3: what it applied is on its disk |
//! | a_leader_that_is_demoted_hands_over_behind_the_answer | safety 14, design 11: committed, answered, then handed over |
//! | an_operation_is_one_act_on_every_node | design 5, "Once": after the change of leader too |
//! | another_is_asked_when_the_first_does_not_take_over | safety 13: "ask again, or another voter" |
//! | a_pause_that_a_hung_disk_holds_up_is_unknown | design 5: unknown is told as unknown, and comes true |
//! | a_member_is_not_moved_to_a_node_that_lost_its_data | safety 8: its identity is checked first |

use std::thread;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::faults::UNABLE;
use crate::support::{
    block::{Block, Way},
    cluster::{CLUSTER_ID, Cluster},
    config::{Settings, patient, settings},
    disk,
    http::Connection,
    members::{assert_refused, call, ids, one_more_block},
    net, ports, rpc,
    stream::fill,
    wait::{SOON, wait_for},
};

/// Three nodes behind a network that may be slow.
fn patient_three(mut more: Settings) -> (Cluster, net::Net) {
    more.extend(patient());
    Cluster::behind(3, more, |_| {})
}

#[test]
fn a_hand_over_and_a_change_of_members_take_turns() {
    let (mut cluster, net) = patient_three(settings([("raft.send_timeout", "2s".into())]));
    let leader = cluster.leader();
    let [target, other] = cluster.others(leader)[..] else { panic!("three nodes") };
    call(&cluster, leader, "raft_demote", json!({"nodeId": other}));
    // Long enough to act between the target's consent and what raft is told.
    for (from, to) in [(leader, target), (target, leader)] {
        net.set(from, to, net::Way::default().delayed(300));
    }
    let api = cluster.node(leader).api.clone();
    let params = json!({"to": target, "timeoutMs": 20_000});
    let transfer = thread::spawn(move || rpc::call(&api, "raft_transferLeader", &params));
    let demote =
        |is_dry: bool| cluster.node(leader).call("raft_demote", &json!({"nodeId": target, "dryRun": is_dry}));
    wait_for("the hand-over has its turn", SOON, || {
        let answer = demote(true);
        ensure!(answer.is_err_and(|e| e.rpc().reason() == "changeInProgress"), "not yet");
        Ok(())
    });
    let refused = demote(false).expect_err("its target keeps its vote").rpc();
    assert_eq!((refused.code, refused.reason()), (-32036, "changeInProgress"));
    let done = transfer.join().expect("it ends").expect("it is fit");
    assert_eq!((&done["outcome"], &done["leaderId"]), (&json!("transferred"), &json!(target)), "{done}");
    net.heal();
    assert_eq!(cluster.leader(), target);
    one_more_block(&cluster, target);
    call(&cluster, target, "raft_promote", json!({"nodeId": other}));
    cluster.end();
}

#[test]
fn a_change_waits_for_a_quorum_that_holds_everything() {
    let (mut cluster, net) = patient_three(settings([("leadership.stall_after", "600s".into())]));
    let leader = cluster.leader();
    let [near, far] = cluster.others(leader)[..] else { panic!("three nodes") };
    // It is heard, and gets nothing: one that was away, and has much to catch up with.
    net.set(leader, far, net::Way::LOG_CUT);
    fill(&cluster.node(leader).api.clone(), &[Block::new(1, "far")]);
    for method in ["raft_removeMember", "raft_demote"] {
        for is_dry in [true, false] {
            let params = json!({"nodeId": near, "dryRun": is_dry});
            assert_refused(&cluster, leader, method, params, "notCaughtUp");
        }
    }
    // The far one may go: the others hold everything.
    call(&cluster, leader, "raft_removeMember", json!({"nodeId": far, "dryRun": true}));
    net.heal();
    cluster.settled();
    let members = call(&cluster, leader, "raft_demote", json!({"nodeId": near}));
    assert_eq!(ids(&members, "learners"), [near]);
    fill(&cluster.node(leader).api.clone(), &[Block::new(2, "near")]);
    cluster.end();
}

#[test]
fn a_leader_whose_disk_hangs_is_no_quorum_of_a_change() {
    let mut cluster = Cluster::new(3, Settings::new());
    cluster.nodes.iter_mut().for_each(disk::prepare);
    cluster.allow_deaths();
    UNABLE.iter().for_each(|said| cluster.allow(said));
    let leader = cluster.start();
    one_more_block(&cluster, leader);
    let healthy = cluster.others(leader)[0];
    let term = cluster.term_of(leader);
    disk::begin(cluster.node(leader), disk::Fault::Hangs);
    let api = cluster.node(leader).api.clone();
    let head = cluster.height(leader);
    let proposal = thread::spawn(move || {
        let mut conn = Connection::open(&api).expect("it listens");
        Block::new(head + 1, "late").propose(&mut conn, Way::Protobuf, None)
    });
    wait_for("its disk has something to do", SOON, || {
        let status = cluster.node(leader).status()?;
        let index = |name: &str| status[name].as_u64().context("a number");
        ensure!(index("appliedIndex")? < index("lastLogIndex")?, "{status}");
        Ok(())
    });
    assert_refused(&cluster, leader, "raft_demote", json!({"nodeId": healthy}), "notCaughtUp");
    // With all voters as they were another one leads.
    let others = cluster.others(leader);
    cluster.leader_among(&others, term);
    disk::mend(cluster.node(leader));
    let _ = proposal.join().expect("it is answered");
    cluster.end();
}

#[test]
fn a_leader_that_is_demoted_hands_over_behind_the_answer() {
    // Long enough for the leader to look at itself between the two entries.
    let (mut cluster, net) = patient_three(Settings::new());
    let leader = cluster.leader();
    let rest = cluster.others(leader);
    for other in &rest {
        net.set(leader, *other, net::Way::default().delayed(100));
    }
    let params = json!({"nodeId": leader, "operationId": "leave-1"});
    let members = call(&cluster, leader, "raft_demote", params);
    assert_eq!(ids(&members, "learners"), [leader]);
    let next = cluster.leader_among(&rest, 0);
    let leadership = wait_for("the leadership is in the history", SOON, || {
        let events = cluster.node(next).call("raft_history", &json!({"limit": 1000}))?["events"].clone();
        let last = events.as_array().context("a list")?.iter().rfind(|e| e["kind"] == "leadership").cloned();
        let last = last.context("none")?;
        ensure!(last["leaderId"] == next, "{last}");
        Ok(last)
    });
    assert_eq!(
        (&leadership["cause"], &leadership["operationId"]),
        (&json!("removed"), &json!("leave-1")),
        "{leadership}"
    );
    cluster.end();
}

#[test]
fn an_operation_is_one_act_on_every_node() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let others = cluster.others(leader);
    let params = json!({"to": others[0], "operationId": "op-1"});
    // A look beforehand does not use the id up.
    let look = json!({"to": others[0], "operationId": "op-1", "dryRun": true});
    assert!(call(&cluster, leader, "raft_transferLeader", look)["would"].is_string());
    let done = call(&cluster, leader, "raft_transferLeader", params.clone());
    assert_eq!(done["outcome"], "transferred");
    let facts =
        |answer: &Value| ["from", "to", "oldTerm", "newTerm", "outcome"].map(|name| answer[name].clone());
    // The new leader would move leadership on, and the third one knows of none that it holds.
    for id in &others {
        if *id == others[1] {
            // It knows as soon as it has applied the leadership, the new leader at once.
            cluster.settled();
        }
        let again = call(&cluster, *id, "raft_transferLeader", params.clone());
        assert_eq!(facts(&again), facts(&done), "node {id}: {again}");
    }
    assert_eq!(cluster.leader(), others[0]);
    assert_eq!(json!(cluster.term_of(others[0])), done["newTerm"]);
    // After a restart of whoever was asked too.
    cluster.node_mut(leader).stop(SOON);
    cluster.node_mut(leader).start();
    cluster.settled();
    let again = call(&cluster, leader, "raft_transferLeader", params);
    assert_eq!(facts(&again), facts(&done), "{again}");
    // Another id is another act.
    let back = json!({"to": leader, "operationId": "op-2"});
    assert_eq!(call(&cluster, others[0], "raft_transferLeader", back)["outcome"], "transferred");
    // What was not known in time is looked at anew, by whoever was asked first too.
    cluster.leader();
    cluster.settled();
    let hasty = json!({"to": others[1], "operationId": "op-3", "timeoutMs": 1});
    call(&cluster, leader, "raft_transferLeader", hasty.clone());
    assert_eq!(cluster.leader_among(&others, 0), others[1]);
    let term = cluster.term_of(others[1]);
    cluster.settled();
    for id in 1..=3 {
        let again = call(&cluster, id, "raft_transferLeader", hasty.clone());
        assert_eq!(
            (&again["outcome"], &again["newTerm"]),
            (&json!("transferred"), &json!(term)),
            "node {id}: {again}"
        );
    }
    cluster.end();
}

#[test]
fn another_is_asked_when_the_first_does_not_take_over() {
    // Nobody is so unfit by himself, and nobody stands as a last resort, for as long as this takes.
    let long = settings([
        ("leadership.stall_after", "600s".into()),
        ("leadership.last_resort_after", "600s".into()),
    ]);
    let mut cluster = Cluster::new(3, long);
    cluster.nodes.iter_mut().for_each(disk::prepare);
    cluster.allow_deaths();
    let leader = cluster.start();
    let [hung, paused] = cluster.others(leader)[..] else { panic!("three nodes") };
    cluster.settled();
    call(&cluster, paused, "raft_pause", json!({}));
    let term = cluster.term_of(leader);
    disk::begin(cluster.node(hung), disk::Fault::Hangs);
    let params = json!({"to": hung, "timeoutMs": 30_000});
    let done = call(&cluster, leader, "raft_transferLeader", params);
    assert_eq!((&done["outcome"], &done["leaderId"]), (&json!("otherLeads"), &json!(paused)), "{done}");
    disk::mend(cluster.node(hung));
    cluster.leader_above(term);
    cluster.end();
}

#[test]
fn a_pause_that_a_hung_disk_holds_up_is_unknown() {
    let mut cluster = Cluster::new(3, settings([("raft.resign_timeout", "1s".into())]));
    cluster.nodes.iter_mut().for_each(disk::prepare);
    cluster.allow_deaths();
    let leader = cluster.start();
    let node = cluster.others(leader)[0];
    for (method, is_paused) in [("raft_pause", true), ("raft_resume", false)] {
        disk::begin(cluster.node(node), disk::Fault::Hangs);
        let error = cluster.node(node).call(method, &json!({})).expect_err("the disk hangs").rpc();
        assert_eq!((error.code, &error.data["kind"]), (-32035, &json!("unknown")), "{method}: {error}");
        disk::mend(cluster.node(node));
        wait_for("it has come true", SOON, || {
            ensure!(cluster.node(node).status()?["paused"] == is_paused, "not yet");
            Ok(())
        });
        let records = cluster.node(node).call("audit_list", &json!({"limit": 1000})).expect("it lists");
        let records = records["records"].as_array().expect("a list").clone();
        let last = records.iter().rfind(|r| r["method"] == method).expect("it is recorded");
        assert_eq!(last["outcome"], "unknown", "{last}");
    }
    cluster.end();
}

#[test]
fn a_member_is_not_moved_to_a_node_that_lost_its_data() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    cluster.allow_strangers();
    let leader = cluster.leader();
    one_more_block(&cluster, leader);
    cluster.settled();
    let wiped = cluster.others(leader)[0];
    let (old, fixed) = (cluster.founders(), cluster.settings.clone());
    cluster.node_mut(wiped).stop(SOON);
    cluster.node_mut(wiped).wipe();
    cluster.node_mut(wiped).peer = ports::free_addr();
    cluster.node(wiped).write_config(CLUSTER_ID, &old, &fixed);
    cluster.node_mut(wiped).start();
    let rest: Vec<_> = (1..=3).filter(|id| *id != wiped).collect();
    let leader = cluster.leader_among(&rest, 0);
    wait_for("it listens", SOON, || {
        std::net::TcpStream::connect(&cluster.node(wiped).peer)?;
        Ok(())
    });
    let before = call(&cluster, leader, "raft_members", json!({}));
    let params = json!({"nodeId": wiped, "peerAddr": cluster.node(wiped).peer.clone()});
    let refused = cluster.node(leader).call("raft_updateMember", &params).expect_err("another life").rpc();
    assert_eq!((refused.code, refused.reason()), (-32036, "unreachable"), "{refused}");
    assert!(refused.message.contains("lost its data"), "{refused}");
    assert_eq!(call(&cluster, leader, "raft_members", json!({})), before);
    cluster.node_mut(wiped).stop(SOON);
    cluster.end();
}
