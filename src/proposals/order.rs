//! What follows for a proposal, given what is applied and in flight. Pure.

use std::collections::BTreeMap;

use crate::machine::apply::{View, check_successor};
use crate::types::{
    Height,
    block::{Block, BlockRef},
    error::Refusal,
    settings::Continuity,
};

/// The last block handed to raft and not yet applied, by height; what it carries is `T`.
pub(crate) type Flights<T> = BTreeMap<Height, (Block, T)>;

/// What is to be done with a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Hand it to raft.
    Append,
    /// The same block is in flight: its answer is this one's too.
    Join,
    /// Its predecessors are missing: wait for them.
    Wait,
    /// The height is applied or taken in flight; which refusal it is, the history tells.
    Taken,
    /// The height is free and not the next one: what becomes of those in flight behind it is not known yet.
    Unsettled,
    Refuse(Refusal),
}

/// Decides, by the rules of the state machine, against the last block handed to raft.
///
/// `now_ns` is the leader's clock: it alone refuses a block from the far future.
pub(crate) fn decide<T>(
    view: &View,
    flights: &Flights<T>,
    block: &Block,
    now_ns: u64,
    reorder_window: u64,
) -> Next {
    if let Some((flying, _)) = flights.get(&block.height) {
        return if flying.is_same(block) { Next::Join } else { Next::Taken };
    }
    let settings = &view.settings.settings;
    let last_flying = flights.last_key_value().map(|(_, (b, _))| b.to_ref());
    let head: Option<&BlockRef> = match (&last_flying, &view.head) {
        (Some(flying), Some(head)) if flying.height < head.height => Some(head),
        (Some(flying), _) => Some(flying),
        (None, head) => head.as_ref(),
    };
    match head {
        None => {
            if settings.first_height.is_some_and(|first| block.height != first) {
                return Next::Refuse(Refusal::Gap);
            }
        }
        Some(head) if block.height <= head.height => {
            // Free, and yet behind something in flight: what flew there failed, and those after it
            // will. Their verdicts come first.
            let is_free = view.head.as_ref().is_none_or(|applied| applied.height < block.height);
            return match is_free {
                true if reorder_window != 0 => Next::Wait,
                true => Next::Unsettled,
                false => Next::Taken,
            };
        }
        Some(head) => {
            let ahead = block.height - head.height - 1;
            if settings.continuity == Continuity::Strict && 0 < ahead && ahead <= reorder_window {
                return Next::Wait;
            }
            if let Err(refusal) = check_successor(settings, head, block) {
                return Next::Refuse(refusal);
            }
        }
    }
    let ahead_max = u64::try_from(settings.max_ahead.as_nanos()).unwrap_or(u64::MAX);
    if ahead_max != 0 && now_ns.saturating_add(ahead_max) < block.timestamp {
        return Next::Refuse(Refusal::BadTimestamp);
    }
    Next::Append
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::settings::{ClusterSettings, SettingsInForce};

    fn block(height: Height) -> Block {
        Block { height, hash: vec![height as u8].into(), timestamp: 1_000 + height, ..Block::default() }
    }

    fn view(head: Option<Height>) -> View {
        View { head: head.map(|h| block(h).to_ref()), ..View::default() }
    }

    fn flying(heights: &[Height]) -> Flights<()> {
        heights.iter().map(|h| (*h, (block(*h), ()))).collect()
    }

    fn decide_at(head: Option<Height>, in_flight: &[Height], b: &Block) -> Next {
        decide(&view(head), &flying(in_flight), b, 2_000, 8)
    }

    #[test]
    fn the_next_height_follows_what_is_in_flight_not_the_applied_head() {
        assert_eq!(decide_at(Some(5), &[6, 7], &block(8)), Next::Append);
        assert_eq!(decide_at(Some(5), &[], &block(6)), Next::Append);
        assert_eq!(decide_at(None, &[], &block(100)), Next::Append);
        // What was applied meanwhile counts more than what flew before it.
        assert_eq!(decide_at(Some(9), &[6, 7], &block(10)), Next::Append);
    }

    #[test]
    fn the_same_block_joins_and_another_one_finds_the_height_taken() {
        assert_eq!(decide_at(Some(5), &[6], &block(6)), Next::Join);
        let other = Block { data: vec![1].into(), ..block(6) };
        assert_eq!(decide_at(Some(5), &[6], &other), Next::Taken);
        assert_eq!(decide_at(Some(5), &[], &block(3)), Next::Taken);
    }

    #[test]
    fn a_free_height_behind_one_in_flight_is_never_told_to_be_taken() {
        assert_eq!(decide_at(Some(5), &[7], &block(6)), Next::Wait);
        let at_once = |head, b: &Block| decide(&view(head), &flying(&[7]), b, 2_000, 0);
        assert_eq!(at_once(Some(5), &block(6)), Next::Unsettled);
        assert_eq!(at_once(None, &block(6)), Next::Unsettled);
        assert_eq!(at_once(Some(6), &block(6)), Next::Taken, "once it is applied");
    }

    #[test]
    fn a_height_inside_the_window_waits_and_beyond_it_is_a_gap() {
        assert_eq!(decide_at(Some(5), &[], &block(7)), Next::Wait);
        assert_eq!(decide_at(Some(5), &[], &block(14)), Next::Wait);
        assert_eq!(decide_at(Some(5), &[], &block(15)), Next::Refuse(Refusal::Gap));
    }

    #[test]
    fn parent_timestamp_and_clock_are_checked_in_this_order() {
        let with_parent = |p: u8| Block { parent_hash: Some(vec![p].into()), ..block(6) };
        assert_eq!(decide_at(Some(5), &[], &with_parent(5)), Next::Append);
        let both_wrong = Block { timestamp: 1, ..with_parent(9) };
        assert_eq!(decide_at(Some(5), &[], &both_wrong), Next::Refuse(Refusal::BadParent));
        let early = Block { timestamp: 1_005, ..block(6) };
        assert_eq!(decide_at(Some(5), &[], &early), Next::Refuse(Refusal::BadTimestamp));
        let far = Block { timestamp: 2_000 + 15_000_000_001, ..block(6) };
        assert_eq!(decide_at(Some(5), &[], &far), Next::Refuse(Refusal::BadTimestamp));
        let near = Block { timestamp: 2_000 + 15_000_000_000, ..block(6) };
        assert_eq!(decide_at(Some(5), &[], &near), Next::Append);
    }

    #[test]
    fn monotonic_takes_gaps_and_a_first_height_binds_the_first_block() {
        let settings = ClusterSettings {
            continuity: Continuity::Monotonic,
            first_height: Some(5),
            ..ClusterSettings::default()
        };
        let v =
            |head| View { settings: SettingsInForce { settings: settings.clone(), index: 1 }, ..view(head) };
        assert_eq!(decide(&v(None), &flying(&[]), &block(5), 2_000, 8), Next::Append);
        assert_eq!(decide(&v(None), &flying(&[]), &block(6), 2_000, 8), Next::Refuse(Refusal::Gap));
        assert_eq!(decide(&v(Some(5)), &flying(&[]), &block(9), 2_000, 8), Next::Append);
    }
}
