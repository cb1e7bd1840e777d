//! What waits for one subscriber, case by case.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use prometheus::Registry;
use prost::Message;
use tokio::sync::mpsc;

use crate::feed::backlog::{BYTES_MAX, Backlog, Missed, Next, Pushed};
use crate::feed::hub::{Hub, READ_BYTES, Request};
use crate::feed::live::Live;
use crate::feed::metrics::Worst;
use crate::feed::source::{Replaying, Source};
use crate::feed::turns::Turns;
use crate::feed::{Channel, Config};
use crate::instants::event::Event;
use crate::instants::{Instants, Tracing};
use crate::store::reader::replay::{First, Place, Replay, Replayed};
use crate::store::tap::{Tap, Tapped, Told};
use crate::telemetry::trace::Counts;
use crate::telemetry::trace::sampling::{Sampler, Sampling};
use crate::telemetry::trace::tests::{Kept, tracer};
use crate::types::LogIndex;
use crate::types::block::{Block, StoredBlock};
use crate::types::feed::{Applied, BUFFER_MAX, CaughtUp, EndReason, FeedItem, OnFull, StartAt};
use crate::types::position::LogPos;
use crate::types::proto::RaftBlockState;

fn live(index: LogIndex, n_bytes: usize) -> Arc<Live> {
    let block = Block { height: index, data: Bytes::from(vec![0; n_bytes]), ..Block::default() };
    let applied = Applied { term: 1, index, block, replayed: false, trace: None };
    let instants = Arc::new(Instants::new(&Registry::new()).unwrap());
    Arc::new(Live::new(applied, Instant::now(), instants))
}

fn told(index: LogIndex) -> Told {
    Told { index, height: Some(index) }
}

/// Joined behind an index, and told so.
fn joined(index: LogIndex, capacity: usize, on_full: OnFull) -> Backlog {
    let mut backlog = Backlog::new(capacity, on_full);
    assert!(backlog.join(Place::Index(index + 1), told(index)));
    let Next::CaughtUp(at) = backlog.take() else { panic!("it is not told") };
    assert_eq!(at, CaughtUp { height: Some(index), index });
    backlog
}

fn push(backlog: &mut Backlog, index: LogIndex) -> Pushed {
    backlog.push(&live(index, 0), told(index - 1))
}

#[track_caller]
fn assert_next(backlog: &mut Backlog, index: LogIndex) {
    match backlog.take() {
        Next::Block(live) => assert_eq!(live.applied.index, index),
        other => panic!("{other:?}, not block {index}"),
    }
}

#[track_caller]
fn assert_missed(backlog: &mut Backlog, want: Missed) {
    match backlog.take() {
        Next::Missed(missed) => assert_eq!(missed, want),
        other => panic!("{other:?}, not {want:?}"),
    }
}

#[test]
fn one_block_more_than_fits_takes_all_into_the_gap() {
    let mut backlog = joined(10, 2, OnFull::Drop);
    assert_eq!(push(&mut backlog, 11), Pushed::Queued);
    assert_eq!(push(&mut backlog, 12), Pushed::Queued);
    assert_eq!(push(&mut backlog, 13), Pushed::Dropped { n: 3, is_new_gap: true });
    assert_eq!(push(&mut backlog, 15), Pushed::Dropped { n: 1, is_new_gap: false });
    assert_eq!((backlog.depth(), backlog.gap_entries(15)), (0, 5));
    assert_missed(&mut backlog, Missed { from: 11, to: 15, dropped: 4 });
    // It reads the store, and what is applied meanwhile too.
    assert_eq!(push(&mut backlog, 16), Pushed::Passed);
    backlog.replayed(13);
    assert_eq!(backlog.gap_entries(16), 3);
    assert!(backlog.join(Place::Index(17), told(16)));
    backlog.repaired();
    assert_eq!(backlog.gap_entries(16), 0);
    assert_eq!(push(&mut backlog, 17), Pushed::Queued);
    assert_next(&mut backlog, 17);
    assert!(matches!(backlog.take(), Next::Wait));
}

#[test]
fn a_gap_that_opens_during_a_repair_is_not_taken_for_repaired() {
    let mut backlog = joined(10, 1, OnFull::Drop);
    (11..=12).for_each(|i| {
        let _ = push(&mut backlog, i);
    });
    assert_missed(&mut backlog, Missed { from: 11, to: 12, dropped: 2 });
    assert!(backlog.join(Place::Index(12), told(12)), "block 12 is still to be read");
    (13..=14).for_each(|i| {
        let _ = push(&mut backlog, i);
    });
    backlog.replayed(12);
    backlog.repaired();
    assert_eq!(backlog.gap_entries(14), 2);
    assert_missed(&mut backlog, Missed { from: 13, to: 14, dropped: 2 });
}

#[test]
fn who_asked_for_it_is_closed_and_holds_nothing() {
    let mut backlog = joined(10, 1, OnFull::Close);
    assert_eq!(push(&mut backlog, 11), Pushed::Queued);
    assert_eq!(push(&mut backlog, 12), Pushed::Closed { n: 2 });
    assert_eq!(push(&mut backlog, 13), Pushed::Passed);
    assert!(matches!(backlog.take(), Next::End(EndReason::Slow)));
    assert_eq!(backlog.end(EndReason::ShuttingDown), 0);
    assert!(matches!(backlog.take(), Next::End(EndReason::Slow)), "the first reason stays");
    assert!(!backlog.join(Place::Index(14), told(13)));
}

#[test]
fn bytes_bound_a_queue_too_but_one_block_always_fits() {
    let mut backlog = joined(0, 100, OnFull::Drop);
    let large = BYTES_MAX as usize;
    assert_eq!(backlog.push(&live(1, large), told(0)), Pushed::Queued);
    assert_eq!(backlog.push(&live(2, 0), told(1)), Pushed::Dropped { n: 2, is_new_gap: true });
    assert_missed(&mut backlog, Missed { from: 1, to: 2, dropped: 2 });
    assert!(backlog.join(Place::Index(3), told(2)));
    let half = large / 2;
    assert_eq!(backlog.push(&live(3, half - 2_000), told(2)), Pushed::Queued);
    assert_eq!(backlog.push(&live(4, half), told(3)), Pushed::Queued);
    assert_next(&mut backlog, 3);
    assert_eq!(
        backlog.push(&live(5, half - 2_000), told(4)),
        Pushed::Queued,
        "what was taken counts no more"
    );
}

#[test]
fn a_snapshot_is_a_gap_behind_what_waits_and_costs_nothing() {
    let mut backlog = joined(10, 3, OnFull::Drop);
    push(&mut backlog, 11);
    assert!(backlog.installed(told(11), told(500)));
    assert_eq!(push(&mut backlog, 501), Pushed::Passed, "it is read with the gap");
    assert_eq!(backlog.gap_entries(501), 490);
    assert_next(&mut backlog, 11);
    assert_missed(&mut backlog, Missed { from: 12, to: 501, dropped: 0 });
}

#[test]
fn a_beginning_ahead_is_waited_for() {
    for (place, first) in [(Place::Index(14), 14), (Place::Height(14), 14)] {
        let mut backlog = Backlog::new(3, OnFull::Drop);
        assert!(!backlog.join(place, told(10)));
        assert_eq!(push(&mut backlog, 11), Pushed::Passed);
        assert!(!backlog.told(told(12)));
        assert!(matches!(backlog.take(), Next::Wait));
        assert_eq!(push(&mut backlog, first), Pushed::Queued);
        let Next::CaughtUp(at) = backlog.take() else { panic!("it is not told") };
        assert_eq!(at.index, 13);
        assert_next(&mut backlog, 14);
    }
    // Entries that are no blocks get it there too.
    let mut backlog = Backlog::new(3, OnFull::Drop);
    backlog.join(Place::Index(14), told(10));
    assert!(backlog.told(Told { index: 15, height: Some(10) }));
    assert!(matches!(backlog.take(), Next::CaughtUp(CaughtUp { height: Some(10), index: 15 })));
    // It came with a snapshot: there is something to read.
    let mut backlog = Backlog::new(3, OnFull::Drop);
    backlog.join(Place::Height(14), told(10));
    assert!(!backlog.installed(told(10), told(20)));
    assert!(matches!(backlog.take(), Next::Read));
}

#[test]
fn the_worst_of_a_label_is_shown_with_its_own_capacity() {
    let mut worst = Worst::default();
    worst.add(0, 1_000, 0);
    worst.add(4, 5, 7);
    worst.add(3, 3, 9);
    assert_eq!(format!("{worst:?}"), "Worst { n: 3, depth: 4, capacity: 5, gap: 9 }");
}

struct Nothing;

impl Source for Nothing {
    fn replay(&self, _: Place, _: usize, _: u64) -> Replaying {
        Box::pin(async { Ok(Replay::default()) })
    }

    fn applied(&self) -> Told {
        Told::default()
    }
}

/// Five blocks, one a read, each of them larger than a page.
struct Large;

impl Source for Large {
    fn replay(&self, from: Place, _: usize, max_bytes: u64) -> Replaying {
        let (Place::Index(first) | Place::Height(first)) = from;
        let stored = (first.max(1)..=5).next().map(stored);
        let size = stored.as_ref().map(|s| First { index: s.index, bytes: s.block.payload_bytes() });
        let needs = size.filter(|first| max_bytes < first.bytes);
        let has_more = first < 5 || needs.is_some();
        let blocks = stored.filter(|_| needs.is_none()).map(|stored| Replayed { stored, trace_id: None });
        let replay = Replay { blocks: blocks.into_iter().collect(), has_more, needs };
        Box::pin(async { Ok(replay) })
    }

    fn applied(&self) -> Told {
        told(5)
    }
}

fn stored(index: LogIndex) -> StoredBlock {
    let data = Bytes::from(vec![0; 2 * READ_BYTES as usize]);
    StoredBlock { block: Block { height: index, data, ..Block::default() }, term: 1, index }
}

fn hub_of(source: impl Source, registry: &Registry) -> Hub {
    let config = Config { buffer: 3, watched: Vec::new() };
    let instants = Arc::new(Instants::new(registry).unwrap());
    Hub::new(config, Arc::new(source), instants, registry).unwrap()
}

fn request(start: StartAt) -> Request {
    Request {
        start,
        buffer: None,
        on_full: OnFull::Drop,
        channel: Channel::Internal,
        name: None,
        may_be_pruned: false,
    }
}

#[tokio::test]
async fn a_reader_in_turns_holds_one_large_block_and_gets_them_all() {
    let hub = hub_of(Large, &Registry::new());
    let subscription = hub.subscribe(request(StartAt::Height(1))).await.unwrap();
    let mut turns = Turns::new(subscription, hub.outlet(|| {}));
    for height in 1..=5 {
        let item = turns.first().await;
        assert!(matches!(&item, Some(FeedItem::Applied(a)) if a.block.height == height), "{item:?}");
        assert!(turns.charge().is_some(), "its bytes are counted");
        let more = turns.more();
        assert!(!matches!(more, Some(FeedItem::Applied(_))), "the next one is for the next turn");
        assert_eq!(more.is_some(), height == 5, "behind the last one it has caught up");
        let charge = turns.end_turn();
        assert!(turns.first().now_or_never().is_none(), "nothing is read before this one was written");
        drop(charge);
    }
    hub.stop();
    assert!(matches!(turns.first().await, Some(FeedItem::End(_))));
    assert_eq!(turns.first().await, None);
}

#[tokio::test]
async fn the_end_is_told_to_who_waits_for_room() {
    let hub = hub_of(Large, &Registry::new());
    let outlet = hub.outlet(|| {});
    let _turn = outlet.clone().take(1).await;
    let mut turns = Turns::new(hub.subscribe(request(StartAt::Height(1))).await.unwrap(), outlet);
    assert!(turns.first().now_or_never().is_none());
    hub.stop();
    assert!(matches!(turns.first().await, Some(FeedItem::End(_))));
}

#[test]
fn a_gap_is_open_until_its_last_block_is_handed_over() {
    /// The last two of four entries.
    struct Page;
    impl Source for Page {
        fn replay(&self, _: Place, _: usize, _: u64) -> Replaying {
            let blocks = (3..=4).map(|index| Replayed { stored: stored(index), trace_id: None });
            let replay = Replay { blocks: blocks.collect(), ..Replay::default() };
            Box::pin(async { Ok(replay) })
        }

        fn applied(&self) -> Told {
            Told::default()
        }
    }
    let registry = Registry::new();
    let hub = hub_of(Page, &registry);
    let mut slow = hub.subscribe(request(StartAt::Live)).now_or_never().unwrap().unwrap();
    let mut next = || slow.next().now_or_never().unwrap().unwrap();
    assert!(matches!(next(), FeedItem::CaughtUp(_)));
    hub.installed(told(4));
    let gap = || {
        let all = registry.gather();
        let family = all.iter().find(|f| f.name().ends_with("subscriber_gap_entries")).unwrap();
        family.get_metric().iter().map(|m| m.get_gauge().get_value() as u64).sum::<u64>()
    };
    assert_eq!(gap(), 4);
    assert!(matches!(next(), FeedItem::Gap(_)));
    assert_eq!(gap(), 4, "its blocks are read, and nobody has them");
    assert!(matches!(next(), FeedItem::Applied(_)));
    assert_eq!(gap(), 1);
    assert!(matches!(next(), FeedItem::Applied(_)));
    assert_eq!(gap(), 0);
}

fn tapped(indexes: std::ops::RangeInclusive<LogIndex>) -> Vec<Tapped> {
    let one = |index| Tapped {
        pos: LogPos { term: 1, index },
        height: index,
        block: RaftBlockState::from(Block { height: index, ..Block::default() }).encode_to_vec().into(),
        command: Bytes::new(),
    };
    indexes.map(one).collect()
}

#[test]
fn blocks_that_somebody_was_counted_for_are_told_of_though_nobody_is_left() {
    let (hub, mut events, _) = traced_hub();
    let gone = hub.subscribe(request(StartAt::Live)).now_or_never().unwrap().unwrap();
    assert_eq!(Tap::subscribers(&hub), 1);
    drop(gone);
    hub.applied(told(2), &tapped(1..=2));
    let Ok(Event::Delivered(delivered)) = events.try_recv() else { panic!("their spans would be pending") };
    let seen: Vec<_> = delivered.iter().map(|d| (d.pos.index, d.subscribers)).collect();
    assert_eq!(seen, [(1, 0), (2, 0)]);
    assert_eq!(Tap::subscribers(&hub), 0);
    hub.applied(told(3), &tapped(3..=3));
    assert!(events.try_recv().is_err(), "nobody waits for it");
}

#[test]
fn a_slow_reader_with_a_large_buffer_costs_nobody_elses_spans() {
    let (hub, mut events, counts) = traced_hub();
    let subscribe = || hub.subscribe(request(StartAt::Live)).now_or_never().unwrap().unwrap();
    let (slow, gone) = (subscribe(), subscribe());
    let mut n_told = 0;
    let mut tell = |n: u64| {
        let blocks = tapped(n_told + 1..=n_told + n);
        n_told += n;
        hub.applied(told(n_told), &blocks);
    };
    let mut n_events = || {
        let mut delivered = Vec::new();
        while let Ok(event) = events.try_recv() {
            let Event::Delivered(some) = event else { panic!("of something else") };
            delivered.push(some.len());
        }
        delivered
    };
    (0..10).for_each(|_| tell(BUFFER_MAX as u64 / 10));
    assert_eq!(n_events(), [0; 0], "all of them wait");
    // Its reader leaves, then the buffer of the other one is one block too small.
    drop(gone);
    assert_eq!(n_events(), [0; 0], "somebody else holds them");
    tell(1);
    assert_eq!(n_events(), [BUFFER_MAX + 1], "in one piece");
    tell(3);
    assert_eq!(n_events(), [3], "a batch at a time");
    drop(slow);
    assert_eq!(counts.dropped_queue.get(), 0);
}

fn traced_hub() -> (Hub, mpsc::Receiver<Event>, Counts) {
    let (tracer, counts) = tracer(&Kept::default(), 10, Duration::from_secs(60));
    let (instants, events) = Instants::new(&Registry::new()).unwrap().traced(Tracing {
        tracer,
        sampler: Sampler::new(Sampling::none()),
        cluster_id: String::new(),
        node_id: 1,
    });
    let config = Config { buffer: BUFFER_MAX, watched: Vec::new() };
    let hub = Hub::new(config, Arc::new(Nothing), Arc::new(instants), &Registry::new()).unwrap();
    (hub, events, counts)
}
