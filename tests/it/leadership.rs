//! Who leads, who may not, and how leadership moves.
//!
//! | test | attacks |
//! | --- | --- |
//! | leadership_moves_under_load_… | promises 1 to 3; safety 13, 18, 20: no refused block is there |
//! | who_cannot_take_over_is_refused_… | safety 13: the term and the fence stay |
//! | a_paused_node_… | promise 4; safety 14, 15: also after SIGTERM and kill -9 |
//! | a_leader_that_hands_over_is_no_… | promise 4: who stands though it is not fit |
//! | a_paused_leader_goes_on_… | safety 15: unwilling may lead with its fence |
//! | every_leadership_is_delivered_… | safety 18: none coalesced, from any id |
//! | a_follower_that_wants_to_lead_… | design 5: the leader is asked, since a candidacy would not win |
//! | an_executor_that_… | promise 4: lag, silence and forks; verdicts; the fence |
//! | a_leader_that_stood_still_… | safety 11, 17: SIGSTOP |
//! | a_killed_leader_is_… | safety 11; lever 11 of the failover: the dead-process hint |

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    block::{Answer, Block, Way},
    checker,
    cluster::Cluster,
    config::{Settings, long_history, settings},
    exposition::Scrape,
    feed::WebSocket,
    rpc::RpcError,
    stream::fill,
    wait::{SOON, pause, wait_for},
    writer::{History, Writer},
};

#[track_caller]
fn call(cluster: &Cluster, id: NodeId, method: &str, params: Value) -> Value {
    match cluster.node(id).call(method, &params) {
        Ok(result) => result,
        Err(e) => panic!("{method} {params} on node {id}: {e}"),
    }
}

#[track_caller]
fn refusal(cluster: &Cluster, id: NodeId, method: &str, params: Value) -> RpcError {
    match cluster.node(id).call(method, &params) {
        Ok(result) => panic!("{method} {params} on node {id} went through: {result}"),
        Err(e) => e.rpc(),
    }
}

#[track_caller]
fn metric(cluster: &Cluster, id: NodeId, name: &str, labels: &[(&str, &str)]) -> f64 {
    let text = cluster.node(id).get("/metrics", &[]).expect("it answers").text();
    Scrape::parse(&text).get(name, labels).unwrap_or_else(|| panic!("no {name} {labels:?}"))
}

#[test]
fn leadership_moves_under_load_and_no_refused_block_is_there() {
    let mut cluster = Cluster::three(long_history());
    let history = Arc::new(History::default());
    let writers = [("a", Way::Protobuf), ("b", Way::JsonRpc)]
        .map(|(name, way)| Writer::start(name, way, cluster.endpoints(), history.clone()));
    for n in 0..20 {
        history.wait_for_more(5);
        let from = cluster.leader();
        let term = cluster.term_of(from);
        let moved = match n % 4 {
            3 => call(&cluster, from, "raft_resign", json!({"reason": "test"})),
            _ => {
                let to = cluster.others(from)[n % 2];
                let moved = call(&cluster, from, "raft_transferLeader", json!({"to": to}));
                assert_eq!(moved["to"], to, "{moved}");
                let role = cluster.node(to).status().expect("it answers")["role"].clone();
                assert!(role == "leader", "it returned before the target leads: {moved}, {role}");
                moved
            }
        };
        assert_eq!(moved["outcome"], "transferred", "{moved}");
        assert_eq!((&moved["from"], &moved["oldTerm"]), (&json!(from), &json!(term)), "{moved}");
        assert!(moved["leaderId"] == moved["to"] && Some(term) < moved["newTerm"].as_u64(), "{moved}");
        let new = cluster.leader_above(term);
        assert_eq!(moved["to"], new);
    }
    drop(writers);
    checker::check(&mut cluster, &history);
    let moves: f64 = (1..=3)
        .map(|id| metric(&cluster, id, "blockraft_raft_transfers_total", &[("outcome", "transferred")]))
        .sum();
    assert_eq!(moves, 15.0);
    let resigned: f64 = (1..=3)
        .map(|id| metric(&cluster, id, "blockraft_raft_resignations_total", &[("reason", "resign")]))
        .sum();
    assert_eq!(resigned, 5.0);
    for id in 1..=3 {
        let changes =
            |reason| metric(&cluster, id, "blockraft_raft_leader_changes_total", &[("reason", reason)]);
        assert_eq!((changes("transfer"), changes("resign")), (15.0, 5.0), "every node counts the causes");
    }
    cluster.end();
}

#[test]
fn who_cannot_take_over_is_refused_and_the_fence_stays() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let leader = cluster.leader();
    let before = cluster.node(leader).status().expect("it answers");
    let others = cluster.others(leader);
    // A follower, and the leader itself.
    let error = refusal(&cluster, others[0], "raft_transferLeader", json!({"to": others[1]}));
    assert_eq!((error.code, error.reason()), (-32030, "notLeader"));
    assert_eq!(error.data["leaderId"], leader);
    let resigned = call(&cluster, others[0], "raft_resign", json!({}));
    assert_eq!(resigned["outcome"], "notLeader", "resigning on a non-leader is a no-op");
    let itself = call(&cluster, leader, "raft_transferLeader", json!({"to": leader}));
    assert_eq!((&itself["outcome"], &itself["newTerm"]), (&json!("transferred"), &before["term"]));
    let dry = call(&cluster, leader, "raft_transferLeader", json!({"dryRun": true}));
    assert!(dry["outcome"] == "dryRun" && dry["would"].is_string(), "{dry}");
    let error = refusal(&cluster, leader, "raft_transferLeader", json!({"to": 77}));
    assert_eq!((error.code, error.reason()), (-32036, "notMember"));
    let error = refusal(&cluster, leader, "raft_transferLeader", json!({"to": others[0], "timeoutMs": 0}));
    assert_eq!((error.code, &error.data["param"]), (-32602, &json!("timeoutMs")));
    // One that died, by name; it is no choice either.
    cluster.node_mut(others[0]).kill();
    wait_for("the dead one is not heard any more", SOON, || {
        let error = refusal(&cluster, leader, "raft_transferLeader", json!({"to": others[0]}));
        ensure!((error.code, error.reason()) == (-32036, "unreachable"), "{error}");
        Ok(())
    });
    let after = cluster.node(leader).status().expect("it answers");
    assert_eq!((&after["term"], &after["fence"]), (&before["term"], &before["fence"]));
    assert_eq!(after["ready"], true, "the fence comes back");
    fill(&cluster.node(leader).api.clone(), &[Block::new(1, "on")]);
    let refused = metric(&cluster, leader, "blockraft_raft_transfers_total", &[("outcome", "refused")]);
    assert!(2.0 <= refused, "{refused} refusals are counted");
    // With both others dead nobody can take over, and that is an outcome of a resignation.
    cluster.node_mut(others[1]).kill();
    wait_for("nobody is heard any more", SOON, || {
        let error = refusal(&cluster, leader, "raft_transferLeader", json!({}));
        ensure!(error.reason() == "noTarget", "{error}");
        Ok(())
    });
    let resigned = call(&cluster, leader, "raft_resign", json!({}));
    assert_eq!(resigned["outcome"], "noTarget", "{resigned}");
    for id in others {
        cluster.node_mut(id).start();
    }
    cluster.leader();
    cluster.end();
}

#[test]
fn a_paused_node_does_not_lead_while_another_can() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let paused = cluster.leader();
    let term = cluster.term_of(paused);
    let answer = call(&cluster, paused, "raft_pause", json!({"reason": "test"}));
    assert_eq!(answer["paused"], true);
    let new = cluster.leader_above(term);
    assert_ne!(new, paused, "a paused leader hands over");
    let status = cluster.node(paused).status().expect("it answers");
    assert_eq!(status["paused"], true);
    assert!(status["blockers"].to_string().contains("raft_resume"), "{}", status["blockers"]);
    assert_eq!(cluster.node(paused).get("/readyz", &[]).expect("it answers").status, 200);
    assert_eq!(metric(&cluster, paused, "blockraft_raft_paused", &[]), 1.0);
    assert_eq!(call(&cluster, paused, "raft_pause", json!({}))["paused"], true, "again");
    // Both ends of a process.
    cluster.node_mut(paused).stop(SOON);
    cluster.node_mut(paused).start();
    cluster.leader();
    assert_eq!(cluster.node(paused).status().expect("it answers")["paused"], true);
    cluster.node_mut(paused).kill();
    cluster.node_mut(paused).start();
    cluster.leader();
    // No transfer to it, and no election of it.
    let leader = cluster.leader();
    wait_for("the leader knows", SOON, || {
        let error = refusal(&cluster, leader, "raft_transferLeader", json!({"to": paused}));
        ensure!((error.code, error.reason()) == (-32036, "notFit"), "{error}");
        Ok(())
    });
    for _ in 0..3 {
        let leader = cluster.leader();
        let term = cluster.term_of(leader);
        cluster.node_mut(leader).kill();
        let new = cluster.leader_above(term);
        assert_ne!(new, paused, "a paused node leads though a fit one could");
        cluster.node_mut(leader).start();
        cluster.leader();
        cluster.settled();
    }
    // By force, it is made to.
    let leader = cluster.leader();
    let forced = call(&cluster, leader, "raft_transferLeader", json!({"to": paused, "force": true}));
    assert_eq!((&forced["outcome"], &forced["leaderId"]), (&json!("transferred"), &json!(paused)));
    let term = forced["newTerm"].as_u64().expect("a term");
    assert_eq!(cluster.leader(), paused);
    fill(&cluster.node(paused).api.clone(), &[Block::new(1, "forced")]);
    assert_eq!((cluster.leader(), cluster.term_of(paused)), (paused, term), "it stays, with its fence");
    assert_eq!(call(&cluster, paused, "raft_resume", json!({}))["paused"], false);
    cluster.leader();
    cluster.end();
}

/// It hears of the next leader a moment after it gave its office up. Until then it is no last resort, however long
/// it led: a fit one that wants to lead would lose against it.
#[test]
fn a_leader_that_hands_over_is_no_last_resort() {
    let mut cluster = Cluster::three(settings([("leadership.last_resort_after", "2s".into())]));
    for _ in 0..2 {
        let leader = cluster.leader();
        let term = cluster.term_of(leader);
        pause(Duration::from_millis(2_200));
        call(&cluster, leader, "raft_pause", json!({}));
        assert_ne!(cluster.leader_above(term), leader);
        assert_eq!(metric(&cluster, leader, "blockraft_raft_last_resorts_total", &[]), 0.0);
        call(&cluster, leader, "raft_resume", json!({}));
    }
    cluster.end();
}

#[test]
fn a_paused_leader_goes_on_when_nobody_fit_is_there() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let before = cluster.node(leader).status().expect("it answers");
    let others = cluster.others(leader);
    for id in &others {
        call(&cluster, *id, "raft_pause", json!({}));
    }
    wait_for("the leader knows that nobody would take over", SOON, || {
        let error = refusal(&cluster, leader, "raft_transferLeader", json!({}));
        ensure!(error.reason() == "noTarget", "{error}");
        Ok(())
    });
    assert_eq!(call(&cluster, leader, "raft_resign", json!({}))["outcome"], "noTarget");
    assert_eq!(call(&cluster, leader, "raft_pause", json!({}))["role"], "leader");
    fill(&cluster.node(leader).api.clone(), &[Block::new(1, "paused"), Block::new(2, "paused")]);
    let after = cluster.node(leader).status().expect("it answers");
    assert_eq!((&after["fence"], &after["term"]), (&before["fence"], &before["term"]));
    // As soon as one can, it hands over.
    call(&cluster, others[0], "raft_resume", json!({}));
    let term = before["term"].as_u64().expect("a term");
    assert_eq!(cluster.leader_above(term), others[0]);
    let mut socket = WebSocket::open(&cluster.node(leader).api, None);
    socket.subscribe("raft_subscribeLeadership", &json!({}));
    assert_eq!(socket.item()["cause"], "pause");
    cluster.end();
}

#[test]
fn every_leadership_is_delivered_from_any_id() {
    let mut cluster = Cluster::three(Settings::new());
    let first = cluster.leader();
    let mut sockets: Vec<(NodeId, WebSocket)> =
        (1..=3).map(|id| (id, WebSocket::open(&cluster.node(id).api, None))).collect();
    let mut terms = vec![cluster.term_of(first)];
    for (id, socket) in &mut sockets {
        socket.subscribe("raft_subscribeLeadership", &json!({}));
        let item = socket.item();
        assert_eq!((&item["term"], &item["leaderId"]), (&json!(terms[0]), &json!(first)), "{item}");
        assert_eq!(item["isSelf"], first == *id);
        let wanted = if first == *id { json!([true, terms[0]]) } else { json!([null, null]) };
        assert_eq!(json!([item["ready"], item["fence"]]), wanted, "{item}");
    }
    for _ in 0..6 {
        let from = cluster.leader();
        let moved = call(&cluster, from, "raft_resign", json!({}));
        terms.push(moved["newTerm"].as_u64().expect("a term"));
        cluster.leader();
    }
    for (id, socket) in &mut sockets {
        let items: Vec<Value> = (1..terms.len()).map(|_| socket.item()).collect();
        let told: Vec<u64> = items.iter().filter_map(|i| i["term"].as_u64()).collect();
        assert_eq!(told, terms[1..], "node {id}");
        assert!(items.iter().all(|i| i["cause"] == "resign"), "{items:?}");
        let ids: Vec<u64> = items.iter().filter_map(|i| i["id"].as_u64()).collect();
        assert!(ids.windows(2).all(|w| w[0] + 1 == w[1]), "ids without a hole: {ids:?}");
        // What was delivered comes again from any id, by the topic's other name too.
        let from = ids[2];
        let mut again = WebSocket::open(&cluster.node(*id).api, None);
        again.subscribe("raft_subscribe", &json!(["leadership", {"fromId": from}]));
        let late: Vec<Value> = (2..items.len()).map(|_| again.item()).collect();
        let of = |i: &Value| json!([i["id"], i["term"], i["leaderId"], i["cause"], i["at"]]);
        assert_eq!(late.iter().map(of).collect::<Vec<_>>(), items[2..].iter().map(of).collect::<Vec<_>>());
    }
    // Ids outlive the process.
    let id =
        cluster.others(cluster.node(1).status().expect("it answers")["leaderId"].as_u64().unwrap_or(1))[0];
    let last = |cluster: &Cluster| {
        let mut socket = WebSocket::open(&cluster.node(id).api, None);
        socket.subscribe("raft_subscribeLeadership", &json!({}));
        socket.item()["id"].clone()
    };
    let before = last(&cluster);
    cluster.allow_deaths();
    cluster.node_mut(id).stop(SOON);
    cluster.node_mut(id).start();
    cluster.leader();
    assert_eq!(last(&cluster), before);
    cluster.end();
}

#[test]
fn a_follower_that_wants_to_lead_asks_the_leader() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let term = cluster.term_of(leader);
    let follower = cluster.others(leader)[0];
    assert_eq!(call(&cluster, leader, "raft_triggerElection", json!({}))["started"], false);
    assert_eq!(call(&cluster, follower, "raft_triggerElection", json!({}))["started"], false);
    assert_eq!(cluster.term_of(leader), term, "a leader that all hear is not moved");
    // Its refusal is the error.
    call(&cluster, follower, "raft_pause", json!({}));
    wait_for("the leader knows", SOON, || {
        let error = refusal(&cluster, follower, "raft_triggerElection", json!({"force": true}));
        ensure!((error.code, error.reason()) == (-32036, "notFit"), "{error}");
        Ok(())
    });
    call(&cluster, follower, "raft_resume", json!({}));
    wait_for("the leader takes it up", SOON, || {
        match cluster.node(follower).call("raft_triggerElection", &json!({"force": true})) {
            Ok(answer) => ensure!(answer["started"] == true, "{answer}"),
            Err(e) => anyhow::bail!("{e}"),
        }
        Ok(())
    });
    assert_eq!(cluster.leader_above(term), follower);
    cluster.end();
}

/// A block as the executor names it.
fn at(block: &Block) -> Value {
    json!({"height": block.height, "hash": block.hash_hex()})
}

#[test]
fn an_executor_that_lags_costs_leadership_and_learns_the_fence() {
    let mut all = settings([("executor.sync_timeout", "300ms".into())]);
    all.insert("executor.report_timeout".into(), "60s".into());
    let mut cluster = Cluster::three(all);
    cluster.allow("this leader is not fit");
    let leader = cluster.leader();
    let term = cluster.term_of(leader);
    let empty = json!({"height": 0, "hash": "0x"});
    assert_eq!(call(&cluster, leader, "block_reconcile", empty.clone())["verdict"], "inSync");
    let blocks: Vec<Block> = (1..=10).map(|h| Block::new(h, "exec")).collect();
    fill(&cluster.node(leader).api.clone(), &blocks);
    cluster.settled();
    // Every verdict, on any node.
    for id in 1..=3 {
        let judged = |params: Value| call(&cluster, id, "block_reconcile", params);
        assert_eq!(judged(at(&blocks[9]))["verdict"], "inSync");
        assert_eq!(judged(at(&blocks[6])), json!({"verdict": "behind", "by": 3}));
        assert_eq!(judged(empty.clone()), json!({"verdict": "behind", "by": 10}));
        let other = Block::new(7, "other");
        assert_eq!(judged(at(&other)), json!({"verdict": "forked", "heightDiffers": 7}));
        let mut ahead = at(&Block::new(12, "exec"));
        let answer = judged(ahead.clone());
        assert_eq!((&answer["verdict"], &answer["by"]), (&json!("ahead"), &json!(2)));
        assert_eq!(answer["head"]["hash"], blocks[9].hash_hex());
        ahead["hashAtHead"] = json!(blocks[9].hash_hex());
        assert_eq!(judged(ahead.clone())["verdict"], "aheadOfStaleState");
        ahead["hashAtHead"] = json!(other.hash_hex());
        assert_eq!(judged(ahead), json!({"verdict": "forked", "heightDiffers": 10}));
    }
    let error = refusal(&cluster, leader, "block_reconcile", json!({"height": 3, "hash": "0x"}));
    assert_eq!((error.code, &error.data["param"]), (-32602, &json!("hash")));
    // Reporting teaches the fence; one behind is well.
    let report = |cluster: &Cluster, id, block: &Block| call(cluster, id, "executor_report", at(block));
    let answer = report(&cluster, leader, &blocks[8]);
    assert_eq!(answer["verdict"], "behind");
    assert_eq!(json!([answer["lag"], answer["ready"], answer["fence"]]), json!([1, true, term]));
    let others = cluster.others(leader);
    let behind = report(&cluster, others[0], &blocks[4]);
    assert_eq!(json!([behind["lag"], behind["ready"], behind["fence"]]), json!([5, false, null]));
    let status = cluster.node(others[0]).status().expect("it answers");
    assert_eq!(json!([status["executor"]["lag"], status["executor"]["healthy"]]), json!([5, false]));
    assert!(status["blockers"].to_string().contains("executor.max_lag"), "{}", status["blockers"]);
    // Behind by five and never catching up: no target, and the leader that lags hands over, once.
    wait_for("the leader knows", SOON, || {
        let error = refusal(&cluster, leader, "raft_transferLeader", json!({"to": others[0]}));
        ensure!(error.reason() == "notFit", "{error}");
        Ok(())
    });
    report(&cluster, leader, &blocks[4]);
    assert_eq!(cluster.leader_above(term), others[1]);
    assert_eq!(
        metric(&cluster, others[1], "blockraft_raft_leader_changes_total", &[("reason", "unfit")]),
        1.0
    );
    // Nobody asked for it, and it is counted all the same.
    let unfit = [("reason", "unfit")];
    assert_eq!(metric(&cluster, leader, "blockraft_raft_resignations_total", &unfit), 1.0);
    let handovers = [("outcome", "transferred")];
    assert_eq!(metric(&cluster, leader, "blockraft_raft_handover_seconds_count", &handovers), 1.0);
    assert_eq!(metric(&cluster, leader, "blockraft_executor_lag_blocks", &[]), 5.0);
    assert_eq!(metric(&cluster, leader, "blockraft_executor_verdicts_total", &[("verdict", "behind")]), 2.0);
    // A fork costs it at once; the only fit one is gone, so nobody holds the fence until one is well.
    let term = cluster.term_of(others[1]);
    report(&cluster, leader, &blocks[9]);
    let forked = Block::new(9, "fork");
    report(&cluster, others[1], &forked);
    assert_eq!(cluster.leader_above(term), leader);
    cluster.end();
}

#[test]
fn an_executor_that_falls_silent_costs_leadership() {
    let all =
        settings([("executor.sync_timeout", "200ms".into()), ("executor.report_timeout", "500ms".into())]);
    let mut cluster = Cluster::three(all);
    cluster.allow("this leader is not fit");
    let leader = cluster.leader();
    let term = cluster.term_of(leader);
    let params = json!({"height": 0, "hash": "0x", "healthy": true, "active": true});
    let answer = call(&cluster, leader, "executor_report", params);
    assert_eq!(json!([answer["verdict"], answer["ready"]]), json!(["inSync", true]));
    // It never reports again.
    let new = cluster.leader_above(term);
    assert_ne!(new, leader);
    let status = cluster.node(leader).status().expect("it answers");
    assert!(status["blockers"].to_string().contains("executor.report_timeout"), "{}", status["blockers"]);
    cluster.end();
}

#[test]
fn a_leader_that_stood_still_has_lost_its_fence() {
    let mut cluster = Cluster::three(long_history());
    cluster.allow_deaths();
    let history = Arc::new(History::default());
    let writer = Writer::start("a", Way::Protobuf, cluster.endpoints(), history.clone());
    for time in [1_000, 3_000].map(Duration::from_millis) {
        history.wait_for_more(20);
        let leader = cluster.leader();
        let status = cluster.node(leader).status().expect("it answers");
        let (term, fence) = (status["term"].as_u64().expect("a term"), status["fence"].as_u64());
        let began = Instant::now();
        cluster.node(leader).signal(Signal::STOP);
        let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).collect();
        let new = cluster.leader_among(&others, term);
        pause(time.saturating_sub(began.elapsed()));
        cluster.node(leader).signal(Signal::CONT);
        // Its first answer is true already: the lease is over by its own clock.
        let woken = cluster.node(leader).status().expect("it answers");
        assert_eq!(woken["ready"], false, "ready after standing still: {woken}");
        let late = Block::new(1_000_000_000, "late");
        let answer = late.propose(&mut cluster.node(leader).connect(), Way::JsonRpc, fence);
        assert!(matches!(answer, Answer::Refused { .. }), "a producer with its old fence: {answer}");
        cluster.leader_above(term);
        let answer = late.propose(&mut cluster.node(new).connect(), Way::JsonRpc, fence);
        assert!(matches!(answer, Answer::Refused { .. }), "nor anywhere else: {answer}");
    }
    history.wait_for_more(20);
    drop(writer);
    checker::check(&mut cluster, &history);
    cluster.end();
}

#[test]
fn a_killed_leader_is_known_to_be_dead() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    for _ in 0..3 {
        let leader = cluster.leader();
        let term = cluster.term_of(leader);
        cluster.node_mut(leader).kill();
        let new = cluster.leader_above(term);
        assert_ne!(new, leader);
        cluster.node_mut(leader).start();
        cluster.leader();
        cluster.settled();
    }
    let said = cluster.nodes.iter().flat_map(|n| n.lines()).filter(|l| l.names(&["process is gone"])).count();
    assert!(2 <= said, "the others noticed {said} times that the process was gone");
    cluster.end();
}
