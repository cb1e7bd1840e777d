//! What one reader of the feed was handed over, held against the contract as it comes.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::block::{Block, hex};

/// Hash of the block that ends a story: a reader knows by it that nothing follows.
const LAST_HASH: [u8; 32] = [0x1a; 32];

/// A block that every reader takes for the end, one behind a head.
pub(crate) fn last_block(head: &Value) -> Block {
    let height = head["height"].as_u64().expect("a height");
    let timestamp = head["timestamp"].as_str().and_then(|t| t.parse::<u64>().ok()).expect("a timestamp");
    Block { hash: LAST_HASH.to_vec(), timestamp: timestamp + 1, ..Block::new(height + 1, "last") }
}

/// One block as a reader saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) height: u64,
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// Panics at the first block that comes twice, out of order or behind a hole, and at a gap that lies before
/// what was handed over.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) blocks: Vec<Seen>,
    /// A subscription behind it misses nothing.
    pub(crate) position: Option<u64>,
    pub(crate) n_replayed: u64,
    pub(crate) n_gaps: u64,
    pub(crate) dropped: u64,
    /// By the first height that was forgotten: the first that is kept.
    pub(crate) pruned: BTreeMap<u64, u64>,
    pub(crate) n_caught_up: u64,
    /// The reason that the end gave.
    pub(crate) end: Option<String>,
    pub(crate) has_last: bool,
}

impl Account {
    pub(crate) fn heights(&self) -> Vec<u64> {
        self.blocks.iter().map(|b| b.height).collect()
    }

    #[track_caller]
    pub(crate) fn take(&mut self, item: &Value) {
        assert!(self.end.is_none() && !self.has_last, "{item} behind the end");
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no number in {item}"));
        if let Some(block) = item.get("block") {
            let height = number(&block["height"]);
            self.has_last = block["hash"] == hex(&LAST_HASH);
            let seen = Seen { height, term: number(&item["term"]), index: number(&item["index"]) };
            self.block(seen, item["replayed"] == true);
        } else if let Some(gap) = item.get("gap") {
            let (from, to) = (number(&gap["fromIndex"]), number(&gap["toIndex"]));
            assert!(from <= to, "{item}");
            assert!(self.position.is_none_or(|p| p < from), "{item} behind {:?}", self.position);
            self.n_gaps += 1;
            self.dropped += number(&gap["dropped"]);
            if gap["repair"] == "pruned" {
                let next = self.blocks.last().map_or(0, |b| b.height + 1);
                self.pruned.insert(next, number(&gap["oldestHeight"]));
                self.position = Some(to);
            } else {
                assert_eq!(gap["repair"], "replay", "{item}");
            }
        } else if let Some(caught_up) = item.get("caughtUp") {
            self.n_caught_up += 1;
            let index = number(&caught_up["index"]);
            assert!(self.position.is_none_or(|p| p <= index), "{item} behind {:?}", self.position);
            self.position = Some(index);
        } else {
            let reason = item["end"]["reason"].as_str().unwrap_or_else(|| panic!("an unknown item: {item}"));
            if !item["end"]["lastIndex"].is_null() {
                assert_eq!(item["end"]["lastIndex"].as_u64(), self.position, "{item}");
            }
            self.end = Some(reason.to_owned());
        }
    }

    /// As [`Account::take`] for an item as it came, reading of a block no more than is needed. `item_of`
    /// takes whatever is no block out of what stands around it.
    #[track_caller]
    pub(crate) fn take_text(&mut self, text: &[u8], item_of: fn(&[u8]) -> Value) {
        match quick(text) {
            Some((seen, is_replayed)) => self.block(seen, is_replayed),
            None => self.take(&item_of(text)),
        }
    }

    #[track_caller]
    fn block(&mut self, seen: Seen, is_replayed: bool) {
        let Seen { height, index, .. } = seen;
        if let Some(last) = self.blocks.last() {
            let next = self.pruned.get(&(last.height + 1)).copied().unwrap_or(last.height + 1);
            assert_eq!(height, next, "height {height} comes behind {}", last.height);
            assert!(last.term <= seen.term, "{seen:?} behind {last:?}");
        }
        assert!(self.position.is_none_or(|p| p < index), "index {index} behind {:?}", self.position);
        self.position = Some(index);
        self.n_replayed += u64::from(is_replayed);
        self.blocks.push(seen);
    }
}

/// Of a block's message what an account needs; `None` for everything else, and for the last block.
fn quick(text: &[u8]) -> Option<(Seen, bool)> {
    const BLOCK: &[u8] = b"\"block\":{\"height\":";
    const TERM: &[u8] = b"\"term\":";
    let height_at = find(text, BLOCK)? + BLOCK.len();
    let height = digits(&text[height_at..])?;
    // The hash follows the height.
    let hash = &text[height_at..text.len().min(height_at + 128)];
    if find(hash, hex(&LAST_HASH).as_bytes()).is_some() {
        return None;
    }
    // Behind the content, which is the long part.
    let tail = &text[text.len().saturating_sub(300)..];
    let tail = &tail[find(tail, TERM)?..];
    let term = digits(&tail[TERM.len()..])?;
    let index = digits(&tail[find(tail, b"\"index\":")? + b"\"index\":".len()..])?;
    Some((Seen { height, term, index }, find(tail, b"\"replayed\":true").is_some()))
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}

fn digits(text: &[u8]) -> Option<u64> {
    let n = text.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&text[..n]).ok()?.parse().ok()
}
