//! A node that was asked not to lead while another can: kept durably, and told in the history.

use std::{io, time::SystemTime};

use bytes::Bytes;

use crate::audit::history::{Event, Kind};
use crate::leadership::handle::Handle;

/// The record of a pause among this node's own.
pub(super) const PAUSED: &[u8] = b"leadership/paused";

impl Handle {
    /// Whether this node was asked not to lead while another can. Durable on return.
    pub(crate) async fn set_paused(&self, reason: Option<String>) -> io::Result<()> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut record = (since.as_millis() as u64).to_be_bytes().to_vec();
        record.extend_from_slice(reason.as_deref().unwrap_or_default().as_bytes());
        self.local().write(vec![(PAUSED.to_vec(), Some(Bytes::from(record)))]).await?;
        self.memory().is_paused = true;
        self.record_pause("pause", reason);
        Ok(())
    }

    /// Takes a pause back. Durable on return.
    pub(crate) async fn resume(&self, reason: Option<String>) -> io::Result<()> {
        self.local().write(vec![(PAUSED.to_vec(), None)]).await?;
        self.memory().is_paused = false;
        self.record_pause("resume", reason);
        Ok(())
    }

    fn record_pause(&self, cause: &'static str, reason: Option<String>) {
        let event = Event::new(Kind::Pause, self.raft().status().term, cause);
        self.history().record(match reason {
            Some(reason) => event.with("reason", reason),
            None => event,
        });
    }
}
