use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;

use super::chain::{Act, Ended, Outcome};
use super::history::{Event, EventJson, Kind};
use super::journal::{Entry, Journal, Spec};
use super::*;
use crate::instants::Instants;
use crate::store::Opened;

const ACTIONS: &[&str] = &["raft_pause", "raft_promote"];

fn open(dir: &Path) -> (Opened, Handle) {
    let registry = Registry::new();
    let instants = Arc::new(Instants::new(&registry).unwrap());
    let config = store::Config { data_dir: dir.join("data"), min_free: 0, snapshot_retain: 3 };
    let who = store::Who { cluster_id: "c".into(), node_id: 3 };
    let opened = store::open(&config, &who, &registry, instants).unwrap_or_else(|e| panic!("{e}"));
    let handle = Handle::open(opened.local.clone(), opened.health.clone(), 3, ACTIONS, &registry).unwrap();
    (opened, handle)
}

fn close(opened: Opened) {
    drop((opened.log, opened.machine, opened.reader, opened.local, opened.snapshots));
    opened.closer.close();
}

fn act(method: &'static str) -> Act {
    Act {
        who: "-".into(),
        role: "-".into(),
        remote_addr: "127.0.0.1:9".into(),
        method,
        params: serde_json::value::RawValue::from_string(r#"{"nodeId":2}"#.into()).unwrap(),
        operation_id: Some("op-1".into()),
        trace_id: Some([0xab; 16]),
    }
}

fn ended(outcome: Outcome) -> Ended {
    Ended { outcome, reason: None, term: 4, index: Some(9) }
}

async fn records(handle: &Handle) -> Vec<Value> {
    let (texts, next) = handle.chain.page(None, 1_000).await.unwrap();
    assert_eq!(next, None);
    texts.iter().map(|t| serde_json::from_str(t).unwrap()).collect()
}

#[tokio::test]
async fn a_call_has_two_records_that_survive_and_verify() {
    let dir = TempDir::new().unwrap();
    let (opened, handle) = open(dir.path());
    let writing = tokio::spawn(handle.clone().run());
    let started = handle.chain.started(act("raft_pause"), 4);
    started.durable().await;
    // What is durable needs no writer to be read again.
    assert_eq!(opened.local.scan(b"audit/", b"audit/", 9).unwrap().len(), 1);
    started.end(&ended(Outcome::Ok));
    drop(handle.chain.started(act("raft_promote"), 4));
    assert!(handle.flush(Duration::from_secs(60)).await);
    let before = records(&handle).await;
    let outcomes: Vec<_> = before.iter().map(|r| r["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["started", "ok", "started", "unknown"]);
    assert_eq!((&before[1]["startedId"], &before[1]["index"]), (&1.into(), &9.into()));
    assert_eq!(before[3]["reason"], "broke off");
    assert_eq!(before[0]["prevHash"], format!("0x{}", "0".repeat(64)));
    for pair in before.windows(2) {
        assert_eq!(pair[0]["hash"], pair[1]["prevHash"]);
    }
    writing.abort();
    let _ = writing.await;
    drop(handle);
    close(opened);

    let (opened, handle) = open(dir.path());
    assert_eq!(records(&handle).await, before);
    let writing = tokio::spawn(handle.clone().run());
    handle.chain.started(act("raft_pause"), 5).end(&ended(Outcome::Refused));
    assert!(handle.flush(Duration::from_secs(60)).await);
    let verdict = handle.chain.verify().await.unwrap();
    assert_eq!((verdict.checked, verdict.problems), (6, vec![]));
    writing.abort();
    let _ = writing.await;
    drop(handle);
    close(opened);
}

#[tokio::test]
async fn the_hash_is_that_of_the_answer_without_its_last_two_fields() {
    let dir = TempDir::new().unwrap();
    let (opened, handle) = open(dir.path());
    handle.chain.started(act("raft_pause"), 4).end(&ended(Outcome::Ok));
    let (texts, _) = handle.chain.page(None, 2).await.unwrap();
    let (json, tail) = texts[1].split_once(r#","prevHash":"0x"#).unwrap();
    let (prev, tail) = tail.split_at(64);
    let hash = tail.strip_prefix(r#"","hash":"0x"#).unwrap().strip_suffix(r#""}"#).unwrap();
    let prev = hex_simd::decode_to_vec(prev).unwrap();
    let computed = blake3::hash(&[&prev[..], json.as_bytes(), b"}"].concat());
    assert_eq!(computed.to_hex().as_str(), hash);
    drop(handle);
    close(opened);
}

#[tokio::test]
async fn what_was_changed_left_out_or_cut_off_is_found() {
    let dir = TempDir::new().unwrap();
    let (opened, handle) = open(dir.path());
    let writing = tokio::spawn(handle.clone().run());
    for _ in 0..5 {
        handle.chain.started(act("raft_pause"), 4).end(&ended(Outcome::Ok));
    }
    assert!(handle.flush(Duration::from_secs(60)).await);
    let key = |id: u64| [&b"audit/"[..], &id.to_be_bytes()].concat();
    let local = opened.local.clone();
    let value = |id| local.get(&key(id)).unwrap().unwrap();
    let cases: [(&str, u64, Option<Bytes>, u64); 4] = [
        ("a changed word", 4, Some(swap(&value(4), "raft_pause", "raft_pausE")), 4),
        ("one left out", 6, None, 6),
        ("the newest cut off", 10, None, 10),
        ("the oldest cut off", 1, None, 1),
    ];
    for (what, id, with, found) in cases {
        let there = value(id);
        local.write(vec![(key(id), with)]).await.unwrap();
        let verdict = handle.chain.verify().await.unwrap();
        assert_eq!(verdict.problems.first().map(|p| p.id), Some(found), "{what}: {verdict:?}");
        local.write(vec![(key(id), Some(there))]).await.unwrap();
        assert_eq!(handle.chain.verify().await.unwrap().problems, [], "{what}, taken back");
    }
    // A record that was made anew with its own hash does not fit the one after it.
    let there = value(4);
    let changed = swap(&there, "raft_pause", "raft_pausE");
    let hash = blake3::hash(&[&changed[..32], &changed[64..]].concat());
    let forged = [&changed[..32], hash.as_bytes(), &changed[64..]].concat();
    local.write(vec![(key(4), Some(forged.into()))]).await.unwrap();
    let problems = handle.chain.verify().await.unwrap().problems;
    assert_eq!(problems.iter().map(|p| p.id).collect::<Vec<_>>(), [5]);
    writing.abort();
    let _ = writing.await;
    drop((handle, local));
    close(opened);
}

fn swap(value: &Bytes, from: &str, to: &str) -> Bytes {
    let json = std::str::from_utf8(&value[64..]).unwrap();
    assert!(json.contains(from));
    [&value[..64], json.replace(from, to).as_bytes()].concat().into()
}

fn number(id: u64) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

const SMALL: Spec = Spec {
    prefix: b"test/",
    kept: 5,
    beside: |newest, dropped| {
        let id = |e: &Entry| Some(number(e.id));
        [Some((b"test-newest".to_vec(), id(newest))), dropped.map(|d| (b"test-dropped".to_vec(), id(d)))]
            .into_iter()
            .flatten()
            .collect()
    },
};

#[tokio::test]
async fn the_oldest_go_and_the_ids_go_on() {
    let dir = TempDir::new().unwrap();
    let (opened, handle) = open(dir.path());
    let journal = Journal::open(opened.local.clone(), SMALL, None).unwrap();
    for id in 1..=12 {
        assert_eq!(journal.append(|id, _| number(id)), Ok(id));
    }
    let ids = |page: &super::journal::Page| page.entries.iter().map(|e| e.id).collect::<Vec<_>>();
    // Nothing is written yet, and everything can be read.
    let page = journal.page(Some(2), 3).await.unwrap();
    assert_eq!((ids(&page), page.next), (vec![2, 3, 4], Some(5)));
    let writing = tokio::spawn({
        let journal = journal.clone();
        async move { journal.run().await }
    });
    journal.flush().await;
    assert_eq!(journal.ends(), (8, 12));
    assert_eq!(opened.local.scan(b"test/", b"test/", 99).unwrap().len(), 5);
    assert_eq!(opened.local.get(b"test-newest").unwrap(), Some(number(12)));
    assert_eq!(opened.local.get(b"test-dropped").unwrap(), Some(number(7)));
    let page = journal.page(None, 2).await.unwrap();
    assert_eq!((ids(&page), page.next), (vec![11, 12], None));
    let page = journal.page(Some(1), 2).await.unwrap();
    assert_eq!((ids(&page), page.next), (vec![8, 9], Some(10)));
    assert!(ids(&journal.page(Some(13), 2).await.unwrap()).is_empty());
    let even = |e: &Entry| e.id.is_multiple_of(2);
    let page = journal.search(Some(1), 2, even).await.unwrap();
    assert_eq!((ids(&page), page.next), (vec![8, 10], Some(12)));
    let page = journal.search(None, 2, even).await.unwrap();
    assert_eq!((ids(&page), page.next), (vec![10, 12], None));
    writing.abort();
    let _ = writing.await;
    drop(journal);
    let journal = Journal::open(opened.local.clone(), SMALL, None).unwrap();
    assert_eq!(journal.append(|id, last| [number(id), last.unwrap().clone()].concat().into()), Ok(13));
    assert_eq!(journal.read(13, 13).await.unwrap()[0].value, [number(13), number(12)].concat());
    drop((journal, handle));
    close(opened);
}

#[tokio::test]
async fn what_finds_no_room_is_counted_and_told_once_there_is_some() {
    let dir = TempDir::new().unwrap();
    let (opened, handle) = open(dir.path());
    // Nobody writes: as with a full disk.
    for _ in 0..super::journal::PENDING_MAX {
        assert!(handle.history.record(Event::new(Kind::Pause, 1, "paused")).is_some());
    }
    assert_eq!(handle.history.record(Event::new(Kind::Pause, 1, "paused")), None);
    let started = handle.chain.started(act("raft_pause"), 4);
    // A full disk does not hold it up.
    tokio::time::timeout(Duration::from_secs(60), started.durable()).await.unwrap();
    started.end(&ended(Outcome::Ok));
    let writing = tokio::spawn(handle.clone().run());
    assert!(handle.flush(Duration::from_secs(60)).await);
    handle.history.record(Event::new(Kind::Pause, 2, "resumed"));
    let page = handle.history.page(None, 2, None).await.unwrap();
    let events: Vec<EventJson> = page.entries.iter().map(|e| EventJson::parse(e).unwrap()).collect();
    assert_eq!((events[0].cause.as_str(), events[0].detail["events"].as_u64()), ("eventsLost", Some(1)));
    assert_eq!(events[1].cause, "resumed");
    writing.abort();
    let _ = writing.await;
    drop(handle);
    close(opened);
}

#[tokio::test]
async fn events_are_found_by_operation_and_leaderships_by_term() {
    let dir = TempDir::new().unwrap();
    let (opened, handle) = open(dir.path());
    assert_eq!(handle.history.last_leadership().await, 0);
    let led = Event { leader_id: Some(2), index: Some(7), ..Event::new(Kind::Leadership, 6, "election") };
    handle.history.record(led);
    let of = |n: u64| Event {
        operation_id: Some(format!("op-{n}")),
        ..Event::new(Kind::Membership, 6, "promote").with("nodeId", n)
    };
    (0..600).for_each(|n| {
        handle.history.record(of(n % 3));
    });
    assert_eq!(handle.history.last_leadership().await, 6);
    let page = handle.history.page(None, 1_000, Some("op-1")).await.unwrap();
    assert_eq!((page.entries.len(), page.next), (200, None));
    let event = EventJson::parse(&page.entries[0]).unwrap();
    assert_eq!((event.id, event.detail["nodeId"].as_u64()), (3, Some(1)));
    assert!(handle.history.page(None, 1_000, Some("op")).await.unwrap().entries.is_empty());
    drop(handle);
    close(opened);
}
