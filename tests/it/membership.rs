//! Who belongs to the cluster: every change on real nodes, and what must not become of one.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_node_joins_leaves_and_joins_again… | design 5: each change without a restart, recorded once |
//! | leaderships_of_before_a_node_joined… | observability: churn is what a node saw |
//! | a_node_removed_while_it_was_down… | safety 21d: told by the others, kept, taken back |
//! | who_is_not_meant_is_not_added | safety 8, 21b: dialled first, never two answers for one id |
//! | a_voter_that_missed_an_addition_… | safety 21d: only who was removed is told so, and not who was added |
//! | of_those_that_race_on_one_version_one_wins | design 5: compare and set |
//! | callers_that_go_away_leave_nothing_joint | safety 21a |
//! | a_change_that_leaves_no_quorum_is_refused | design 5: quorumRisk, dryRun, force |
//! | the_leader_leaves_and_holds_no_fence | safety 14, 21e |
//! | a_moved_member_is_found_and_updated | safety 21c |
//! | a_running_member_is_called_at_its_new_address_alone | safety 21c: while its old one answers as before |
//!
//! What a leader leaves behind that dies in the middle of a change: [`crate::joint`].

use std::{fs, thread, time::Duration};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::support::{
    block::Block,
    cluster::{CLUSTER_ID, Cluster},
    config::Settings,
    exposition::Scrape,
    members::{
        add, assert_refused, assert_uniform, call, ids, one_more_block, send_and_leave, start_joiner, version,
    },
    node::Node,
    ports, rpc,
    wait::{SOON, wait_for},
};

#[test]
fn a_node_joins_leaves_and_joins_again_without_a_restart() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    one_more_block(&cluster, leader);
    let id = start_joiner(&mut cluster);
    let joiner = add(cluster.node(id));
    let mut params = joiner.clone();
    params["wait"] = true.into();
    params["operationId"] = "join-4".into();
    let members = call(&cluster, leader, "raft_addLearner", params.clone());
    assert_eq!((ids(&members, "voters"), ids(&members, "learners")), (vec![1, 2, 3], vec![4]));
    assert_eq!(members["learners"][0]["name"], "node-4");
    // The same call again is answered, not made: by itself it would be refused.
    assert_eq!(call(&cluster, leader, "raft_addLearner", params), members);
    cluster.settled();
    assert_eq!(cluster.node(id).status().expect("it answers")["role"], "learner");
    let of = |method: &str, more: Value| {
        let mut params = json!({"nodeId": id, "expectedVersion": version(&cluster, leader)});
        for (name, value) in more.as_object().into_iter().flatten() {
            params[name] = value.clone();
        }
        call(&cluster, leader, method, params)
    };
    let dry = of("raft_promote", json!({"dryRun": true}));
    assert_eq!(
        (&dry["quorum"], &dry["tolerance"], &dry["voterIds"]),
        (&json!(3), &json!(1), &json!([1, 2, 3, 4]))
    );
    assert_eq!(version(&cluster, leader), members["version"].as_u64().expect("a number"));
    let promoted = of("raft_promote", json!({"operationId": "vote-4"}));
    assert_eq!((ids(&promoted, "voters"), &promoted["joint"]), (vec![1, 2, 3, 4], &json!(false)));
    one_more_block(&cluster, leader);
    assert_eq!(ids(&of("raft_demote", Value::Null), "learners"), [4]);
    assert_eq!(ids(&of("raft_promote", Value::Null), "voters"), [1, 2, 3, 4]);
    let removed = of("raft_removeMember", Value::Null);
    assert_eq!((ids(&removed, "voters"), ids(&removed, "learners")), (vec![1, 2, 3], vec![]));
    assert_refused(&cluster, leader, "raft_promote", json!({"nodeId": id}), "notMember");
    wait_for("the removed node is told", SOON, || {
        let status = cluster.node(id).status()?;
        let blockers = status["blockers"].as_array().context("a list")?;
        ensure!(blockers.iter().any(|b| b["check"] == "member"), "{blockers:?}");
        ensure!(cluster.node(id).get("/readyz", &[])?.status == 503, "it says that it is ready");
        Ok(())
    });
    // Its log ends with the first entry of the two that removed it.
    let text = cluster.node(id).get("/metrics", &[]).expect("it answers").text();
    let gauge = |name: &str, labels: &[(&str, &str)]| Scrape::parse(&text).get(name, labels);
    assert_eq!(gauge("blockraft_raft_membership_joint", &[]), Some(0.0));
    assert_eq!(gauge("blockraft_raft_members", &[("suffrage", "voter")]), Some(0.0));
    one_more_block(&cluster, leader);
    let mut again = joiner;
    again["wait"] = true.into();
    call(&cluster, leader, "raft_addLearner", again);
    cluster.settled();
    wait_for("it is a member again", SOON, || {
        ensure!(cluster.node(id).get("/readyz?verbose", &[])?.status == 200, "not ready");
        Ok(())
    });
    let events = call(&cluster, leader, "raft_history", json!({"limit": 1000}))["events"].clone();
    let causes: Vec<_> = events
        .as_array()
        .into_iter()
        .flatten()
        .filter(|e| e["kind"] == "membership" && e["cause"] != "founded")
        .map(|e| (e["cause"].as_str().unwrap_or_default(), e["operationId"].as_str()))
        .collect();
    let expected = [
        ("addLearner", Some("join-4")),
        ("promote", Some("vote-4")),
        ("demote", None),
        ("promote", None),
        ("removeMember", None),
        ("addLearner", None),
    ];
    assert_eq!(causes, expected);
    let records = call(&cluster, leader, "audit_list", json!({"limit": 1000}))["records"].clone();
    let made = |r: &&Value| r["operationId"] == "join-4" && r["outcome"] == "ok";
    let made: Vec<&Value> = records.as_array().into_iter().flatten().filter(made).collect();
    assert_eq!(made.iter().map(|r| &r["index"]).collect::<Vec<_>>(), [&members["version"]], "once: {made:?}");
    cluster.end();
}

#[test]
fn leaderships_of_before_a_node_joined_are_no_changes_to_it() {
    let mut cluster = Cluster::three(Settings::new());
    for _ in 0..4 {
        let leader = cluster.leader();
        let term = cluster.node(leader).status().expect("it answers")["term"].as_u64().expect("a number");
        let moved = call(&cluster, leader, "raft_transferLeader", json!({}));
        assert_eq!(moved["outcome"], "transferred");
        cluster.leader_above(term);
    }
    let leader = cluster.leader();
    one_more_block(&cluster, leader);
    let id = start_joiner(&mut cluster);
    let mut params = add(cluster.node(id));
    params["wait"] = true.into();
    call(&cluster, leader, "raft_addLearner", params);
    cluster.settled();
    wait_for("it knows of every leadership", SOON, || {
        let events = cluster.node(id).call("raft_history", &json!({"limit": 1000}))?["events"].clone();
        let n = events.as_array().into_iter().flatten().filter(|e| e["kind"] == "leadership").count();
        ensure!(5 <= n, "{n} so far");
        Ok(())
    });
    let text = cluster.node(id).get("/metrics", &[]).expect("it answers").text();
    let changes = Scrape::parse(&text).get("blockraft_raft_leader_changes_total", &[("reason", "transfer")]);
    // The one that leads as it joins may be one.
    assert!(changes.expect("a series") <= 1.0, "{changes:?}");
    cluster.end();
}

#[test]
fn a_node_removed_while_it_was_down_is_told_when_it_comes_back() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let leader = cluster.leader();
    let gone = cluster.others(leader)[0];
    cluster.node_mut(gone).stop(SOON);
    let members = call(&cluster, leader, "raft_removeMember", json!({"nodeId": gone}));
    cluster.node_mut(gone).start();
    let is_told = |cluster: &Cluster| {
        wait_for("it is told by the others", SOON, || {
            let status = cluster.node(gone).status()?;
            let blockers = status["blockers"].as_array().context("a list")?;
            let told = blockers.iter().find(|b| b["check"] == "member").context("no such blocker")?;
            let version = members["version"].to_string();
            ensure!(told["hint"].as_str().is_some_and(|hint| hint.contains(&version)), "{told}");
            ensure!(status["leaderId"].is_null(), "it names a leader");
            ensure!(cluster.node(gone).get("/readyz", &[])?.status == 503, "ready");
            Ok(())
        });
    };
    is_told(&cluster);
    // Kept: with nobody there to tell it again.
    let term = cluster.node(leader).status().expect("it answers")["term"].clone();
    cluster.node_mut(gone).stop(SOON);
    cluster.node_mut(gone).start();
    is_told(&cluster);
    assert_eq!(cluster.node(leader).status().expect("it answers")["term"], term, "it disturbs the others");
    let mut params = add(cluster.node(gone));
    params["wait"] = true.into();
    call(&cluster, leader, "raft_addLearner", params);
    call(&cluster, leader, "raft_promote", json!({"nodeId": gone}));
    cluster.leader();
    cluster.end();
}

#[test]
fn who_is_not_meant_is_not_added() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    cluster.allow_deaths();
    let leader = cluster.leader();
    let before = call(&cluster, leader, "raft_members", Value::Null);
    let id = start_joiner(&mut cluster);
    let joiner = add(cluster.node(id));
    let with = |field: &str, value: Value| {
        let mut params = joiner.clone();
        params[field] = value;
        params
    };
    let refused =
        |params: Value, reason: &str| assert_refused(&cluster, leader, "raft_addLearner", params, reason);
    refused(with("peerAddr", ports::free_addr().into()), "unreachable");
    refused(with("nodeId", 9.into()), "unreachable");
    refused(with("peerAddr", cluster.node(leader).peer.clone().into()), "unreachable");
    refused(with("nodeId", 2.into()), "alreadyMember");
    refused(with("expectedVersion", 1_000.into()), "versionMismatch");
    // A node of another cluster.
    let dir = cluster.node(1).config.with_file_name("other");
    fs::create_dir_all(&dir).expect("writable");
    let mut other = Node::new(7, &dir);
    other.write_config("another-cluster", &[other.founder()], &Settings::new());
    other.start();
    wait_for("the other cluster answers", SOON, || other.get("/livez", &[]));
    refused(add(&other), "unreachable");
    for (field, value) in
        [("nodeId", json!(0)), ("peerAddr", json!("nowhere")), ("apiAddr", json!("0.0.0.0:1"))]
    {
        let error = cluster.node(leader).call("raft_addLearner", &with(field, value)).expect_err(field).rpc();
        assert_eq!((error.code, error.data["param"].as_str()), (-32602, Some(field)), "{error}");
    }
    let follower = cluster.others(leader)[0];
    let error = cluster.node(follower).call("raft_addLearner", &joiner).expect_err("a follower").rpc();
    assert_eq!((error.code, &error.data["leaderId"]), (-32030, &json!(leader)));
    assert_eq!(call(&cluster, leader, "raft_members", Value::Null), before);
    // By force one that is not there is added, and is a learner that nobody can promote.
    let nobody = ports::free_addr();
    let forced = json!({"nodeId": 8, "peerAddr": nobody, "force": true});
    assert_eq!(ids(&call(&cluster, leader, "raft_addLearner", forced), "learners"), [8]);
    assert_refused(&cluster, leader, "raft_promote", json!({"nodeId": 8}), "notCaughtUp");
    call(&cluster, leader, "raft_removeMember", json!({"nodeId": 8}));
    cluster.nodes.pop();
    cluster.leader();
    cluster.end();
}

#[test]
fn a_voter_that_missed_an_addition_elects_who_was_added() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    cluster.allow_deaths();
    let leader = cluster.leader();
    let [second, away] = cluster.others(leader)[..] else { panic!("two others") };
    one_more_block(&cluster, leader);
    cluster.settled();
    cluster.node_mut(away).kill();
    let added = start_joiner(&mut cluster);
    let mut params = add(cluster.node(added));
    params["wait"] = true.into();
    call(&cluster, leader, "raft_addLearner", params);
    call(&cluster, leader, "raft_promote", json!({"nodeId": added}));
    cluster.settled();
    cluster.node_mut(second).kill();
    // On two of four disks: nothing is agreed on, and nobody but who was added can be elected behind it.
    let last = |id: u64| cluster.node(id).status()?["lastLogIndex"].as_u64().context("a number");
    let before: u64 = last(leader).expect("it answers");
    let block = Block::new(cluster.height(leader) + 1, "one of four").to_json();
    let params = json!({"block": block, "timeoutMs": 500});
    cluster.node(leader).call("block_propose", &params).expect_err("two are no quorum of four");
    wait_for("the entry is there", SOON, || {
        let is_there = before < last(added)?;
        ensure!(is_there, "it ends at {before} still");
        Ok(())
    });
    cluster.node_mut(leader).kill();
    cluster.node_mut(second).start();
    cluster.node_mut(away).start();
    assert_eq!(cluster.leader(), added);
    one_more_block(&cluster, added);
    cluster.end();
}

#[test]
fn of_those_that_race_on_one_version_one_wins() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let api = cluster.node(leader).api.clone();
    for round in 0..5 {
        let at = version(&cluster, leader);
        let racers: Vec<_> = (0..6)
            .map(|i| {
                let api = api.clone();
                let params =
                    json!({"nodeId": 1 + i % 3, "name": format!("r{round}-{i}"), "expectedVersion": at});
                thread::spawn(move || rpc::call(&api, "raft_updateMember", &params))
            })
            .collect();
        let outcomes: Vec<_> = racers.into_iter().map(|r| r.join().expect("no panic")).collect();
        let won = outcomes.iter().filter(|o| o.is_ok()).count();
        assert_eq!(won, 1, "round {round}: {outcomes:?}");
        for error in outcomes.into_iter().filter_map(Result::err).map(rpc::CallError::rpc) {
            assert!(matches!(error.reason(), "versionMismatch" | "changeInProgress"), "{error}");
        }
        assert!(at < version(&cluster, leader));
    }
    cluster.end();
}

#[test]
fn callers_that_go_away_leave_nothing_joint() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let other = cluster.others(leader)[0];
    for round in 0..20u64 {
        let membership = assert_uniform(&mut cluster);
        let is_voter = membership["voters"].as_array().is_some_and(|v| v.contains(&json!(other)));
        let method = if is_voter { "raft_demote" } else { "raft_promote" };
        // From before it is read to after it is over.
        let moment = Duration::from_micros(300 * round);
        send_and_leave(cluster.node(leader), method, &json!({"nodeId": other}), moment);
    }
    assert_uniform(&mut cluster);
    // Whatever was begun is over: the next call is taken.
    wait_for("the next change is taken", SOON, || {
        let params = json!({"nodeId": other, "name": "free"});
        Ok(cluster.node(leader).call("raft_updateMember", &params)?)
    });
    cluster.end();
}

#[test]
fn a_change_that_leaves_no_quorum_is_refused() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let leader = cluster.leader();
    let [dead, live] = cluster.others(leader)[..] else { panic!("three nodes") };
    cluster.node_mut(dead).kill();
    wait_for("the dead one is not heard", SOON, || {
        let status = cluster.node(leader).status()?;
        let peer = status["peers"].as_array().context("a list")?.iter().find(|p| p["nodeId"] == dead);
        ensure!(peer.is_some_and(|p| p["reachable"] == false), "it still is");
        Ok(())
    });
    for method in ["raft_demote", "raft_removeMember"] {
        assert_refused(&cluster, leader, method, json!({"nodeId": live}), "quorumRisk");
        assert_refused(&cluster, leader, method, json!({"nodeId": live, "dryRun": true}), "quorumRisk");
    }
    assert_refused(&cluster, leader, "raft_removeMember", json!({"nodeId": leader}), "quorumRisk");
    let dry = call(&cluster, leader, "raft_removeMember", json!({"nodeId": dead, "dryRun": true}));
    assert_eq!((&dry["quorum"], &dry["tolerance"], &dry["reachable"]), (&json!(2), &json!(0), &json!(2)));
    // The dead one may go: two of two are there.
    let members = call(&cluster, leader, "raft_removeMember", json!({"nodeId": dead}));
    assert_eq!(ids(&members, "voters").len(), 2);
    one_more_block(&cluster, leader);
    cluster.end();
}

#[test]
fn the_leader_leaves_and_holds_no_fence() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let leader = cluster.leader();
    one_more_block(&cluster, leader);
    let rest = cluster.others(leader);
    // Demoted it stays and follows; removed it is told.
    let members = call(&cluster, leader, "raft_demote", json!({"nodeId": leader}));
    assert_eq!(ids(&members, "learners"), [leader]);
    let next = cluster.leader_among(&rest, 0);
    wait_for("the demoted leader follows", SOON, || {
        let status = cluster.node(leader).status()?;
        ensure!(
            status["role"] == "learner" && status["leaderId"] == next && status["fence"].is_null(),
            "{status}"
        );
        Ok(())
    });
    call(&cluster, next, "raft_promote", json!({"nodeId": leader}));
    let leader = cluster.leader();
    let rest = cluster.others(leader);
    let members = call(&cluster, leader, "raft_removeMember", json!({"nodeId": leader}));
    assert_eq!(ids(&members, "voters"), rest);
    let status = cluster.node(leader).status().expect("it answers");
    assert_eq!(
        (&status["ready"], &status["fence"]),
        (&json!(false), &Value::Null),
        "right behind the answer"
    );
    let next = cluster.leader_among(&rest, 0);
    one_more_block(&cluster, next);
    wait_for("the removed leader is told", SOON, || {
        let status = cluster.node(leader).status()?;
        let blockers = status["blockers"].as_array().context("a list")?;
        ensure!(status["role"] != "leader" && blockers.iter().any(|b| b["check"] == "member"), "{status}");
        Ok(())
    });
    // Nobody tells it of the new term: it asked, and records what came of it once.
    let records = wait_for("its hand-over has ended", SOON, || {
        let all = cluster.node(leader).call("audit_list", &json!({"limit": 1000}))?["records"].clone();
        let all = all.as_array().context("a list")?.clone();
        let own: Vec<Value> = all.into_iter().filter(|r| r["params"]["cause"] == "removed").collect();
        ensure!(own.iter().any(|r| r["outcome"] != "started"), "{own:?}");
        Ok(own)
    });
    let outcomes: Vec<&Value> = records.iter().map(|r| &r["outcome"]).collect();
    assert_eq!(outcomes[outcomes.len() - 2..], ["started", "ok"], "{records:?}");
    assert_eq!(cluster.node(leader).status().expect("it answers")["role"], "learner");
    cluster.node_mut(leader).stop(SOON);
    cluster.end();
}

#[test]
fn a_moved_member_is_found_and_updated() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    cluster.allow_strangers();
    let leader = cluster.leader();
    let [moved, other] = cluster.others(leader)[..] else { panic!("three nodes") };
    let (old, fixed) = (cluster.founders(), cluster.settings.clone());
    cluster.node_mut(moved).stop(SOON);
    cluster.node_mut(moved).peer = ports::free_addr();
    cluster.node(moved).write_config(CLUSTER_ID, &old, &fixed);
    cluster.node_mut(moved).start();
    // It says where it is, so it follows before anybody acts.
    let leader = cluster.leader();
    wait_for("it says that its address differs", SOON, || {
        ensure!(cluster.node(moved).status()?["addressDiffers"] == true, "it does not");
        Ok(())
    });
    let update = |addr: &str| json!({"nodeId": moved, "peerAddr": addr});
    let nobody = ports::free_addr();
    assert_refused(&cluster, leader, "raft_updateMember", update(&nobody), "unreachable");
    let taken = cluster.node(other).peer.clone();
    assert_refused(&cluster, leader, "raft_updateMember", update(&taken), "unreachable");
    let now = cluster.node(moved).peer.clone();
    let members = call(&cluster, leader, "raft_updateMember", update(&now));
    let voters = members["voters"].as_array().expect("a list");
    assert!(voters.iter().any(|m| m["nodeId"] == moved && m["peerAddr"] == now.as_str()), "{members}");
    wait_for("its address is the membership's", SOON, || {
        ensure!(cluster.node(moved).status()?["addressDiffers"] == false, "it differs");
        Ok(())
    });
    one_more_block(&cluster, leader);
    cluster.end();
}

#[test]
fn a_running_member_is_called_at_its_new_address_alone() {
    let (mut cluster, net) = Cluster::behind(3, Settings::new(), |_| {});
    let leader = cluster.leader();
    let moved = cluster.others(leader)[0];
    let term = cluster.term_of(leader);
    let old = cluster.node(moved).advertise.clone().expect("it has one");
    let new = net.before(moved, &cluster.node(moved).peer);
    wait_for("it is called at the old one", SOON, || {
        ensure!(3 <= net.n_open(&old), "{} connections", net.n_open(&old));
        Ok(())
    });
    call(&cluster, leader, "raft_updateMember", json!({"nodeId": moved, "peerAddr": new}));
    // The old one answers as before: nothing but the membership says that it is not to be called.
    wait_for("both others call the new one, and nobody the old one", SOON, || {
        let (at_old, at_new) = (net.n_open(&old), net.n_open(&new));
        ensure!(at_old == 0 && 3 <= at_new, "{at_old} connections to the old one, {at_new} to the new one");
        Ok(())
    });
    one_more_block(&cluster, leader);
    cluster.settled();
    assert_eq!(cluster.term_of(leader), term, "the leader sat all the time");
    cluster.end();
}
