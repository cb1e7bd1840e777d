//! Who listens is told of everything once it can be read, and the history is read from any place.

use std::sync::{Arc, Mutex};

use openraft::storage::RaftLogStorage;
use prometheus::Registry;

use crate::feed::hub::{Hub, Request};
use crate::feed::source::Store;
use crate::feed::{Channel, Config, Subscription};
use crate::instants::Instants;
use crate::machine::Command;
use crate::raft::{Entry, log_id_of};
use crate::store::Opened;
use crate::store::reader::Reader;
use crate::store::reader::replay::{Place, ReplayError};
use crate::store::tap::{Tap, Tapped, Told};
use crate::store::tests::snapshot::{filled, install, send};
use crate::store::tests::support::{
    blank, block, blocks, build_snapshot, close, command, commit, configured, folder, open, proposed,
};
use crate::types::feed::{CaughtUp, FeedItem, Gap, OnFull, Repair, StartAt, SubscribeError};
use crate::types::position::LogPos;
use crate::types::proto::ConfigureCommand;
use crate::types::settings::{ClusterSettings, Continuity};
use crate::types::{Height, LogIndex};

/// Checks what it is told against what can be read at that moment.
struct Listener {
    reader: Reader,
    told: Mutex<Vec<(Told, Vec<Tapped>)>>,
    installed: Mutex<Vec<Told>>,
}

impl Tap for Listener {
    fn applied(&self, upto: Told, blocks: &[Tapped]) {
        let view = self.reader.view();
        assert_eq!((view.applied.index, view.head.as_ref().map(|h| h.height)), (upto.index, upto.height));
        for tapped in blocks {
            let stored = self.reader.block(tapped.height).expect("it can be read");
            assert_eq!((stored.term, stored.index), (tapped.pos.term, tapped.pos.index));
            assert_eq!(stored.block, tapped.decode());
        }
        self.told.lock().unwrap().push((upto, blocks.to_vec()));
    }

    fn subscribers(&self) -> u64 {
        1
    }

    fn installed(&self, upto: Told) {
        assert_eq!(self.reader.view().applied.index, upto.index);
        self.installed.lock().unwrap().push(upto);
    }
}

fn listen(opened: &mut Opened) -> Arc<Listener> {
    let (told, installed) = (Mutex::default(), Mutex::default());
    let listener = Arc::new(Listener { reader: opened.reader.clone(), told, installed });
    opened.machine.set_tap(listener.clone());
    listener
}

fn traced(index: LogIndex, height: Height) -> Entry {
    let mut carrier = [7; 26];
    carrier[0] = 1;
    command(1, index, Command::block(block(height, 10), 1, 1, 77, Some(carrier)))
}

#[tokio::test]
async fn the_tap_is_told_of_new_blocks_alone_with_their_traces() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let listener = listen(&mut opened);
    let entries = vec![blank(1, 0), traced(1, 1), proposed(1, 2, block(2, 10)), proposed(1, 3, block(2, 10))];
    commit(&mut opened, entries).await;
    commit(&mut opened, vec![blank(1, 4)]).await;
    let told = listener.told.lock().unwrap();
    let seen: Vec<_> =
        told.iter().flat_map(|(_, blocks)| blocks.iter().map(|b| (b.pos.index, b.height))).collect();
    assert_eq!(seen, [(1, 1), (2, 2)], "the duplicate is not new");
    assert_eq!(told.last().unwrap().0, Told { index: 4, height: Some(2) });
    let traces: Vec<_> = told.iter().flat_map(|(_, blocks)| blocks.iter().map(Tapped::trace)).collect();
    assert_eq!(traces[0].unwrap().trace_id, [7; 16]);
    assert_eq!(traces[1], None);
    drop(told);
    let replayed = opened.reader.replay(Place::Height(1), 10, 1 << 20).unwrap();
    assert_eq!(replayed.blocks[0].trace_id, Some([7; 16]));
    close(opened);
}

#[tokio::test]
async fn a_snapshot_is_told_once_it_can_be_read() {
    let (_guard, dir) = folder();
    let mut sender = filled(&dir.join("from"), 200).await;
    let data = build_snapshot(&mut sender).await;
    let mut receiver = open(&dir.join("to"));
    commit(&mut receiver, blocks(1, 1..=10, 300)).await;
    let listener = listen(&mut receiver);
    let received = send(&data, &receiver.snapshots, |_, _, _| {}).unwrap();
    install(&mut receiver, received).await;
    assert_eq!(*listener.installed.lock().unwrap(), [Told { index: 200, height: Some(200) }]);
    close(receiver);
    close(sender);
}

/// Heights with holes, indexes with holes, a history that is pruned: every place of each is looked for.
#[tokio::test]
async fn a_place_in_the_log_is_found_whatever_lies_between() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    let with_gaps = |index, history_blocks| {
        let settings = ClusterSettings {
            continuity: Continuity::Monotonic,
            history_blocks,
            ..ClusterSettings::default()
        };
        let settings = Some(crate::machine::apply::settings_to_proto(&settings));
        command(1, index, Command::configure(&ConfigureCommand { settings, expected_index: 0 }))
    };
    commit(&mut opened, vec![blank(1, 0), with_gaps(1, 10_000)]).await;
    let (mut index, mut height) = (1, 3);
    let mut all = Vec::new();
    for i in 0..60u64 {
        // Every third entry is none, and heights leap.
        index += 1;
        if i % 3 == 0 {
            commit(&mut opened, vec![blank(1, index)]).await;
            index += 1;
        }
        height += 1 + (i % 4) * (i % 7) * 1_000;
        commit(&mut opened, vec![proposed(1, index, block(height, 10))]).await;
        all.push((index, height));
    }
    let found = |place| {
        let replay = opened.reader.replay(place, 3, 1 << 20).unwrap();
        replay.blocks.iter().map(|b| (b.stored.index, b.stored.block.height)).collect::<Vec<_>>()
    };
    for index in 0..all.last().unwrap().0 + 3 {
        let want: Vec<_> = all.iter().filter(|(i, _)| index <= *i).take(3).copied().collect();
        assert_eq!(found(Place::Index(index)), want, "from index {index}");
    }
    for (_, at) in &all {
        for height in [at - 1, *at, at + 1] {
            let want: Vec<_> = all.iter().filter(|(_, h)| height <= *h).take(3).copied().collect();
            assert_eq!(found(Place::Height(height)), want, "from height {height}");
        }
    }
    assert!(opened.reader.replay(Place::Index(0), 3, 1 << 20).unwrap().has_more);
    assert!(!opened.reader.replay(Place::Index(0), 60, 1 << 20).unwrap().has_more);
    let small = opened.reader.replay(Place::Index(0), 60, 1).unwrap();
    let needs = small.needs.expect("the first block is larger");
    assert!(small.blocks.is_empty() && small.has_more, "it is not read");
    let one = opened.reader.replay(Place::Index(0), 60, needs.bytes).unwrap();
    assert_eq!((one.blocks.len(), one.has_more, one.needs), (1, true, None));

    commit(&mut opened, vec![with_gaps(index + 1, 20)]).await;
    let oldest = all[all.len() - 20];
    let pruned = Err(ReplayError::Pruned { height: oldest.1, index: oldest.0 });
    assert_eq!(opened.reader.replay(Place::Index(oldest.0 - 1), 3, 1 << 20), pruned);
    assert_eq!(opened.reader.replay(Place::Height(1), 3, 1 << 20), pruned);
    let kept = opened.reader.replay(Place::Index(oldest.0), 60, 1 << 20).unwrap();
    assert_eq!(kept.blocks.len(), 20);
    close(opened);
}

fn hub(opened: &mut Opened) -> Hub {
    let registry = Registry::new();
    let instants = Arc::new(Instants::new(&registry).unwrap());
    let config = Config { buffer: 4, watched: Vec::new() };
    let hub = Hub::new(config, Arc::new(Store::new(opened.reader.clone())), instants, &registry).unwrap();
    opened.machine.set_tap(Arc::new(hub.clone()));
    hub
}

fn from(start: StartAt) -> Request {
    let (on_full, channel) = (OnFull::Drop, Channel::Internal);
    Request { start, buffer: None, on_full, channel, name: None, may_be_pruned: false }
}

/// Heights of blocks, and the other items as they are.
async fn take(subscription: &mut Subscription, n: usize) -> Vec<Result<Height, FeedItem>> {
    let mut items = Vec::new();
    while items.len() < n {
        items.push(match subscription.next().await.expect("it goes on") {
            FeedItem::Applied(applied) => Ok(applied.block.height),
            other => Err(other),
        });
    }
    items
}

fn heights(range: std::ops::RangeInclusive<Height>) -> Vec<Result<Height, FeedItem>> {
    range.map(Ok).collect()
}

fn caught_up(index: LogIndex) -> Result<Height, FeedItem> {
    Err(FeedItem::CaughtUp(CaughtUp { height: Some(index), index }))
}

#[tokio::test]
async fn history_goes_over_into_what_is_applied() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    commit(&mut opened, blocks(1, 1..=700, 10)).await;
    let hub = hub(&mut opened);
    let mut all = hub.subscribe(from(StartAt::Height(1))).await.unwrap();
    let mut late = hub.subscribe(from(StartAt::Index(699))).await.unwrap();
    let mut live = hub.subscribe(from(StartAt::Live)).await.unwrap();
    assert_eq!(take(&mut live, 1).await, [caught_up(700)]);
    assert_eq!(take(&mut late, 3).await, [Ok(699), Ok(700), caught_up(700)]);
    assert_eq!(take(&mut all, 300).await, heights(1..=300));
    commit(&mut opened, blocks(1, 701..=703, 10)).await;
    assert_eq!(take(&mut live, 3).await, heights(701..=703));
    assert_eq!(take(&mut late, 3).await, heights(701..=703));
    assert_eq!(take(&mut all, 404).await, [heights(301..=703), vec![caught_up(703)]].concat());
    // Five do not fit into a buffer of four.
    commit(&mut opened, blocks(1, 704..=708, 10)).await;
    let gap = Gap { from_index: 704, to_index: 708, dropped: 5, repair: Repair::Replay };
    let want = [vec![Err(FeedItem::Gap(gap))], heights(704..=708)].concat();
    assert_eq!(take(&mut live, 6).await, want);
    hub.stop();
    assert!(matches!(all.next().await, Some(FeedItem::End(end)) if end.last_index == Some(703)));
    assert_eq!(all.next().await, None);
    assert_eq!(hub.subscribe(from(StartAt::Live)).await.err(), Some(SubscribeError::ShuttingDown));
    drop((all, late, live, hub));
    close(opened);
}

#[tokio::test]
async fn what_came_by_snapshot_is_a_gap_that_is_read() {
    let (_guard, dir) = folder();
    let mut sender = filled(&dir.join("from"), 200).await;
    let data = build_snapshot(&mut sender).await;
    close(sender);
    let mut receiver = open(&dir.join("to"));
    commit(&mut receiver, blocks(1, 1..=10, 300)).await;
    let hub = hub(&mut receiver);
    let mut live = hub.subscribe(from(StartAt::Live)).await.unwrap();
    let mut ahead = hub.subscribe(from(StartAt::Height(150))).await.unwrap();
    assert_eq!(take(&mut live, 1).await, [caught_up(10)]);
    let received = send(&data, &receiver.snapshots, |_, _, _| {}).unwrap();
    install(&mut receiver, received).await;
    let gap = Gap { from_index: 11, to_index: 200, dropped: 0, repair: Repair::Replay };
    assert_eq!(take(&mut live, 191).await, [vec![Err(FeedItem::Gap(gap))], heights(11..=200)].concat());
    assert_eq!(take(&mut ahead, 52).await, [heights(150..=200), vec![caught_up(200)]].concat());
    // What openraft does after an install: the log begins behind the snapshot.
    receiver.log.purge(log_id_of(LogPos { term: 1, index: 200 })).await.unwrap();
    commit(&mut receiver, blocks(1, 201..=201, 300)).await;
    assert_eq!(take(&mut live, 1).await, [Ok(201)]);
    drop((live, ahead, hub));
    close(receiver);
}

#[tokio::test]
async fn a_forgotten_beginning_is_refused_or_told() {
    let (_guard, dir) = folder();
    let mut opened = open(&dir);
    commit(&mut opened, vec![blank(1, 0), configured(1, 1, 5)]).await;
    commit(&mut opened, blocks(1, 2..=30, 10)).await;
    let hub = hub(&mut opened);
    for start in [StartAt::Height(25), StartAt::Index(25)] {
        let refused = hub.subscribe(from(start)).await.err();
        assert_eq!(refused, Some(SubscribeError::Pruned { oldest_height: 26 }));
    }
    let told = Request { may_be_pruned: true, ..from(StartAt::Index(4)) };
    let mut told = hub.subscribe(told).await.unwrap();
    let pruned = Repair::Pruned { oldest_height: 26 };
    let gap = Gap { from_index: 4, to_index: 25, dropped: 0, repair: pruned };
    let want = [vec![Err(FeedItem::Gap(gap))], heights(26..=30), vec![caught_up(30)]].concat();
    assert_eq!(take(&mut told, 7).await, want);
    // Forgotten while it waits to be repaired.
    let mut slow = hub.subscribe(from(StartAt::Live)).await.unwrap();
    assert_eq!(take(&mut slow, 1).await, [caught_up(30)]);
    commit(&mut opened, blocks(1, 31..=50, 10)).await;
    let pruned = Repair::Pruned { oldest_height: 46 };
    let gap = Gap { from_index: 31, to_index: 45, dropped: 20, repair: pruned };
    assert_eq!(take(&mut slow, 6).await, [vec![Err(FeedItem::Gap(gap))], heights(46..=50)].concat());
    drop((told, slow, hub));
    close(opened);
}
