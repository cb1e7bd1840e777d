//! What is counted of control operations.

use prometheus::{IntCounterVec, Opts, Registry};

use crate::audit::chain::{HANDOVER, LOST, Outcome, RECOVER};

/// `audit_events_total`. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    events: IntCounterVec,
}

impl Metrics {
    /// Every series exists from the start.
    pub(crate) fn register(registry: &Registry, actions: &[&'static str]) -> prometheus::Result<Self> {
        let events = IntCounterVec::new(
            Opts::new(
                "blockraft_audit_events_total",
                "Records of control operations, by what was asked and by outcome.",
            ),
            &["action", "outcome"],
        )?;
        registry.register(Box::new(events.clone()))?;
        for action in actions.iter().copied().chain([HANDOVER, RECOVER, LOST]) {
            for outcome in Outcome::ALL {
                let _ = events.with_label_values(&[action, outcome.label()]);
            }
        }
        Ok(Self { events })
    }

    pub(crate) fn count(&self, action: &'static str, outcome: Outcome) {
        self.events.with_label_values(&[action, outcome.label()]).inc();
    }
}
