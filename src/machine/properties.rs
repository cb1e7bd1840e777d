//! Every node that applies the same log holds the same state, byte for byte.
//!
//! Promises 1, 2 and 8 rest on it: a snapshot, a restart and a batch of another size must not show in
//! the state. The logs are random, with few heights and hashes, so that every outcome comes up.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use crate::machine::{
    apply::{Applying, Machine, Outcome, settings_to_proto},
    command::{Command, Kind},
    memory::Memory,
};
use crate::types::{
    Height,
    block::Block,
    error::Refusal,
    position::LogPos,
    proto,
    settings::{ClusterSettings, Continuity, Timestamps},
};

/// One entry and how far the log moves on with it.
#[derive(Debug, Clone)]
struct Step {
    entry: What,
    /// The next term begins here.
    is_new_term: bool,
}

#[derive(Debug, Clone)]
enum What {
    Blank,
    Membership(u32),
    /// A block so many heights above the head (or below it), of one of a few contents; the flags are
    /// whether it names the right fence and the right parent.
    Block {
        ahead: i8,
        content: u8,
        late: i8,
        is_fenced: bool,
        parent: Parent,
    },
    Lead(u64),
    Configure(ClusterSettings, bool),
    Garbage(Kind, Vec<u8>),
}

#[derive(Debug, Clone, Copy)]
enum Parent {
    None,
    Right,
    Wrong,
}

fn settings() -> impl Strategy<Value = ClusterSettings> {
    (any::<bool>(), any::<bool>(), 1..12u64, prop_oneof![Just(1u64), Just(700), Just(1 << 30)]).prop_map(
        |(is_strict, is_later, history_blocks, history_bytes)| ClusterSettings {
            continuity: if is_strict { Continuity::Strict } else { Continuity::Monotonic },
            timestamps: if is_later { Timestamps::Strict } else { Timestamps::Nondecreasing },
            history_blocks,
            history_bytes,
            ..ClusterSettings::default()
        },
    )
}

fn what() -> impl Strategy<Value = What> {
    let parent = prop_oneof![4 => Just(Parent::None), 2 => Just(Parent::Right), 1 => Just(Parent::Wrong)];
    let ahead = prop_oneof![8 => Just(1i8), 2 => -8..8i8];
    let late = prop_oneof![8 => Just(1i8), 1 => -1..2i8];
    let block = (ahead, 0..3u8, late, prop::bool::weighted(0.95), parent).prop_map(
        |(ahead, content, late, is_fenced, parent)| What::Block { ahead, content, late, is_fenced, parent },
    );
    let kind = prop_oneof![Just(Kind::Block), Just(Kind::Leadership), Just(Kind::Configure)];
    prop_oneof![
        20 => block,
        1 => Just(What::Blank),
        1 => any::<u32>().prop_map(What::Membership),
        2 => (1..4u64).prop_map(What::Lead),
        1 => (settings(), any::<bool>()).prop_map(|(s, is_against)| What::Configure(s, is_against)),
        1 => (kind, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(k, b)| What::Garbage(k, b)),
    ]
}

fn log() -> impl Strategy<Value = Vec<Step>> {
    let step =
        (what(), prop::bool::weighted(0.05)).prop_map(|(entry, is_new_term)| Step { entry, is_new_term });
    prop::collection::vec(step, 1..300)
}

/// A machine, its rows, and the record of its last batch.
#[derive(Default)]
struct Node {
    machine: Machine,
    rows: Memory,
    record: Option<Vec<u8>>,
}

impl Node {
    fn apply(&mut self, pos: LogPos, entry: &Entry) -> Outcome {
        let entry = match entry {
            Entry::Blank => Applying::Blank,
            Entry::Membership(crc) => Applying::Membership { crc: *crc, length: 9 },
            Entry::Command(c) => Applying::Command(c),
        };
        self.machine.apply(&mut self.rows, pos, entry)
    }

    fn end_batch(&mut self) {
        self.record = Some(self.machine.record());
    }

    fn restart(&mut self) {
        self.machine = self.rows.load(self.record.as_deref()).expect("what was stored loads");
    }
}

enum Entry {
    Blank,
    Membership(u32),
    Command(Command),
}

/// The entry a step stands for, made against the state of one node: all are given the same bytes.
fn entry_of(step: &Step, pos: LogPos, node: &Node) -> Entry {
    let view = node.machine.view();
    match &step.entry {
        What::Blank => Entry::Blank,
        What::Membership(crc) => Entry::Membership(*crc),
        What::Lead(node_id) => Entry::Command(Command::leadership(&proto::LeadershipCommand {
            node_id: *node_id,
            started_at_ms: pos.index,
            ..Default::default()
        })),
        What::Configure(settings, is_against) => {
            Entry::Command(Command::configure(&proto::ConfigureCommand {
                settings: Some(settings_to_proto(settings)),
                expected_index: if *is_against { view.settings.index } else { 3 },
            }))
        }
        What::Garbage(kind, payload) => Entry::Command(Command::new(*kind, Bytes::copy_from_slice(payload))),
        What::Block { ahead, content, late, is_fenced, parent } => {
            let (head, timestamp) = view.head.as_ref().map_or((0, 0), |h| (h.height, h.timestamp));
            let height = head.saturating_add_signed(i64::from(*ahead));
            // Below the head a timestamp of the height alone, so that duplicates come up.
            let timestamp = match height <= head {
                true => height * 10,
                false => timestamp.max(height * 10 - 1).saturating_add_signed(i64::from(*late)),
            };
            let block = Block {
                height,
                hash: Bytes::from(format!("{height}-{content}")),
                timestamp,
                data: Bytes::from(vec![*content; 40]),
                parent_hash: match (parent, &view.head) {
                    (Parent::None, _) | (Parent::Right, None) => None,
                    (Parent::Right, Some(h)) => Some(h.hash.clone()),
                    (Parent::Wrong, _) => Some(Bytes::from_static(b"wrong")),
                },
                ..Block::default()
            };
            let fence = if *is_fenced { pos.term } else { pos.term + 1 };
            Entry::Command(Command::block(block, fence, 1, pos.index, None))
        }
    }
}

/// Promise 2 and the bounds of the history, after every entry.
fn check_invariants(node: &Node, accepted: &mut BTreeMap<Height, Bytes>, outcome: &Outcome) {
    let v = node.machine.view();
    if let Outcome::Accepted(a) = outcome {
        let first = accepted.entry(a.height).or_insert_with(|| a.hash.clone());
        assert_eq!(first, &a.hash, "two blocks were accepted at height {}", a.height);
    }
    if let Outcome::Refused { refusal: Refusal::Conflict, .. } = outcome {
        assert!(v.head.is_some(), "a conflict with nothing");
    }
    let heights = node.rows.heights();
    assert_eq!(heights.len() as u64, v.history_blocks);
    assert_eq!(heights.last().copied(), v.head.as_ref().map(|h| h.height), "the head is kept");
    assert_eq!(heights.first().copied(), v.oldest_height);
    let settings = &v.settings.settings;
    assert!(v.history_blocks <= settings.history_blocks, "more blocks than are to be kept");
    assert!(
        v.history_bytes <= settings.history_bytes || v.history_blocks == 1,
        "more bytes than are to be kept"
    );
    assert_eq!(
        accepted.last_key_value().map(|(h, _)| *h),
        v.head.as_ref().map(|h| h.height),
        "the head fell"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// One node applies entry by entry, one in batches, one restarts between batches, one is made of a
    /// copy of another's state half way, as by a snapshot.
    #[test]
    fn the_same_log_makes_the_same_state(
        log in log(),
        cuts in prop::collection::vec(any::<bool>(), 300),
        restarts in prop::collection::vec(prop::bool::weighted(0.2), 300),
        copied_at in 0..300usize,
    ) {
        let (mut one, mut batched, mut restarted) = (Node::default(), Node::default(), Node::default());
        let mut copied: Option<Node> = None;
        let mut accepted = BTreeMap::new();
        let mut pos = LogPos { term: 1, index: 0 };
        for (i, step) in log.iter().enumerate() {
            pos.term += u64::from(step.is_new_term);
            pos.index += 1;
            let entry = entry_of(step, pos, &one);
            let outcome = one.apply(pos, &entry);
            one.end_batch();
            check_invariants(&one, &mut accepted, &outcome);
            prop_assert_eq!(&batched.apply(pos, &entry), &outcome);
            if cuts[i] {
                batched.end_batch();
            }
            prop_assert_eq!(&restarted.apply(pos, &entry), &outcome);
            restarted.end_batch();
            if restarts[i] {
                restarted.restart();
            }
            if let Some(node) = &mut copied {
                prop_assert_eq!(&node.apply(pos, &entry), &outcome);
            } else if i == copied_at {
                let mut node = Node { record: one.record.clone(), rows: one.rows.clone(), ..Node::default() };
                node.restart();
                copied = Some(node);
            }
        }
        for node in [Some(&mut batched), Some(&mut restarted), copied.as_mut()].into_iter().flatten() {
            node.end_batch();
            prop_assert_eq!(&node.record, &one.record, "the records differ");
            prop_assert_eq!(&node.rows, &one.rows, "the rows differ");
            prop_assert_eq!(node.machine.view(), one.machine.view());
        }
    }

    /// The state hash tells two logs apart that differ in one entry.
    #[test]
    fn another_log_makes_another_hash(log in log(), at in any::<prop::sample::Index>()) {
        let at = at.index(log.len());
        let (mut one, mut other) = (Node::default(), Node::default());
        let mut pos = LogPos { term: 1, index: 0 };
        for (i, step) in log.iter().enumerate() {
            pos.term += u64::from(step.is_new_term);
            pos.index += 1;
            let entry = entry_of(step, pos, &one);
            one.apply(pos, &entry);
            let changed = Entry::Membership(u32::MAX - 1);
            other.apply(pos, if i == at { &changed } else { &entry });
        }
        prop_assert_ne!(one.machine.view().state_hash, other.machine.view().state_hash);
    }
}
