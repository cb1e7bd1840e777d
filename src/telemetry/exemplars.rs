//! Exemplars: for each bucket of a few histograms the trace of its last observation.
//!
//! The prometheus crate has none, so they are kept beside it and joined when a scrape is written. Who
//! observes hands over a trace only when that trace is exported.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus::proto::LabelPair;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Exemplar {
    /// 32 hex digits.
    pub(crate) trace_id: String,
    pub(crate) value: f64,
    /// Seconds since the epoch.
    pub(crate) at: f64,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    trace_id: [u8; 16],
    value: f64,
    at: Duration,
}

/// One slot for each bucket, `+Inf` last. The lock guards a slot for the time of a store or a copy.
type Slots = Arc<Mutex<Vec<Option<Kept>>>>;

/// All series with exemplars. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exemplars {
    /// By name and label pairs. Locked to add a series, which happens at start, and by a scrape.
    series: Arc<Mutex<HashMap<String, Slots>>>,
}

/// The exemplars of one series of a histogram. Cheap to clone; made once, not at each observation.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    bounds: Arc<[f64]>,
    slots: Slots,
}

impl Exemplars {
    /// `name` and `labels` as the histogram has them, `bounds` without `+Inf`.
    pub(crate) fn series(&self, name: &str, labels: &[(&str, &str)], bounds: &[f64]) -> Series {
        let key = key(name, labels.iter().copied());
        let slots = locked(&self.series).entry(key).or_default().clone();
        locked(&slots).resize(bounds.len() + 1, None);
        Series { bounds: bounds.into(), slots }
    }

    /// One entry for each bucket, `+Inf` last.
    pub(crate) fn of(&self, name: &str, labels: &[LabelPair]) -> Option<Vec<Option<Exemplar>>> {
        let key = key(name, labels.iter().map(|l| (l.name(), l.value())));
        let slots = locked(&self.series).get(&key)?.clone();
        let kept = locked(&slots).clone();
        Some(kept.into_iter().map(|kept| kept.map(Kept::to_exemplar)).collect())
    }
}

impl Series {
    pub(crate) fn observe(&self, value: f64, trace_id: [u8; 16]) {
        let slot = self.bounds.partition_point(|bound| *bound < value);
        // A clock before 1970 has no exemplar worth a panic.
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        locked(&self.slots)[slot] = Some(Kept { trace_id, value, at });
    }
}

impl Kept {
    fn to_exemplar(self) -> Exemplar {
        let mut trace_id = String::with_capacity(32);
        for byte in self.trace_id {
            let _ = write!(trace_id, "{byte:02x}");
        }
        Exemplar { trace_id, value: self.value, at: self.at.as_secs_f64() }
    }
}

fn key<'a>(name: &str, labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut pairs: Vec<_> = labels.collect();
    pairs.sort_unstable();
    let mut key = name.to_owned();
    for (name, value) in pairs {
        // A label's name and value hold no NUL.
        key.push('\0');
        key.push_str(name);
        key.push('\0');
        key.push_str(value);
    }
    key
}

/// What is behind these locks is whole after every store, also when a thread panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
