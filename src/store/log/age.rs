//! How old the oldest entry of the log is.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::instants::Mark;
use crate::machine::command::Kind;
use crate::raft::Entry;
use crate::store::log::{Shared, read};
use crate::types::LogIndex;
use crate::types::proto::BlockCommand;

/// When the oldest entry came, as far as anything tells; the index says which entry it was.
pub(crate) struct Oldest {
    opened: Instant,
    /// Held for a look or a store, by a scrape.
    known: Mutex<Option<(LogIndex, SystemTime)>>,
}

impl Oldest {
    pub(crate) fn new() -> Self {
        Self { opened: Instant::now(), known: Mutex::new(None) }
    }
}

impl Shared {
    /// Blocking. Of a block by when it was proposed; of another entry since it came here, or since the
    /// log was opened. `None`: the log is empty.
    pub(crate) fn oldest_age(&self) -> Option<Duration> {
        let first = {
            let tail = self.tail();
            tail.last().filter(|_| 0 < tail.len())?;
            tail.first_index()
        };
        let mut known = self.oldest.known.lock().unwrap_or_else(|p| p.into_inner());
        let at = match *known {
            Some((index, at)) if index == first => at,
            _ => {
                let at = self.came_at(first);
                *known = Some((first, at));
                at
            }
        };
        // A clock that was set back makes no entry younger than now.
        Some(SystemTime::now().duration_since(at).unwrap_or_default())
    }

    fn came_at(&self, index: LogIndex) -> SystemTime {
        let now = SystemTime::now();
        let before = |age: Duration| now.checked_sub(age).unwrap_or(UNIX_EPOCH);
        if let Some(age) = self.instants.age(index, Mark::Appended) {
            return before(age);
        }
        let proposed = self.entry(index).as_ref().and_then(proposed_at_ms);
        match proposed {
            Some(ms) => UNIX_EPOCH + Duration::from_millis(ms),
            None => before(self.oldest.opened.elapsed()),
        }
    }

    fn entry(&self, index: LogIndex) -> Option<Entry> {
        let found = self.tail().read(index, index + 1, u64::MAX);
        if found.cold.is_empty() {
            return found.entries.into_iter().next();
        }
        let db = self.db().ok()?;
        read::entries(&db, &self.payloads, index..index + 1, u64::MAX).ok()?.into_iter().next()
    }
}

fn proposed_at_ms(entry: &Entry) -> Option<u64> {
    match &entry.payload {
        openraft::EntryPayload::Normal(command) if command.kind == Kind::Block => {
            BlockCommand::decode(command.payload.clone()).ok().map(|c| c.proposed_at_ms)
        }
        _ => None,
    }
}
