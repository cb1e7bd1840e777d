//! Hand-overs by the id of the call that asked for them: the new leader's first command carries it, so every node
//! knows what became of it (design 5, "Once").

use std::time::{Duration, Instant, SystemTime};

use crate::consensus::Handover;
use crate::leadership::handle::Handle;
use crate::machine::apply::Leadership;

/// Leaderships that are looked through for a call's id. By eye: one a second for ten minutes.
pub(super) const LEADERSHIPS_LOOKED_AT: usize = 600;
/// An id of a call counts so long.
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(600);

impl Handle {
    /// The hand-over that a call with that id asked for here or elsewhere, if it became a leadership less than ten
    /// minutes ago (design 5, "Once"), and the leadership before it. Blocking, short.
    pub(crate) fn handed_over_by(&self, operation_id: &str) -> Option<(Leadership, Option<Leadership>)> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut rows = self.reader().leaderships(None, LEADERSHIPS_LOOKED_AT);
        let at = rows.iter().rposition(|l| l.operation_id == operation_id)?;
        let before = at.checked_sub(1).map(|before| rows[before].clone());
        let found = rows.swap_remove(at);
        let age = self.memory().applied_ago(Instant::now(), found.pos.term);
        // By the clock of the wall only what was applied by another process: it may have been set meanwhile.
        let age = age.unwrap_or_else(|| now.abs_diff(Duration::from_millis(found.started_at_ms)));
        (age < REMEMBERED_FOR).then_some((found, before))
    }

    /// A hand-over with that id that was heard of, and may be under way.
    pub(crate) fn heard_of(&self, operation_id: &str) -> Option<Handover> {
        self.memory().heard_of(Instant::now(), operation_id).cloned()
    }
}
