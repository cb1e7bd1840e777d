//! Height and fingerprint of the newest block of each interval, for whoever compares nodes.

use std::sync::{Arc, Mutex, MutexGuard};

use prometheus::{
    IntGauge, IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::types::Height;

/// The intervals at which a block's fingerprint is exported.
pub(crate) const CHECKPOINTS: [u64; 3] = [64, 4096, 262_144];

/// Both families in one collector: taken one after the other, a height beside the fingerprint of the block
/// before it reads as a fork.
#[derive(Clone)]
pub(crate) struct Checkpoints {
    heights: IntGaugeVec,
    fingerprints: IntGaugeVec,
    /// The same by interval. Held while both are set, and while both are taken.
    both: Arc<Mutex<[(IntGauge, IntGauge); CHECKPOINTS.len()]>>,
}

impl Checkpoints {
    pub(super) fn new() -> prometheus::Result<Self> {
        let family = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["every"]);
        let heights = family(
            "blockraft_block_checkpoint_height",
            "Highest applied height divisible by the interval; 0 before the first.",
        )?;
        let fingerprints = family(
            "blockraft_block_checkpoint_fingerprint",
            "First 48 bits of the hash of the block at the checkpoint height.",
        )?;
        let both = CHECKPOINTS.map(|every| {
            let every = every.to_string();
            (heights.with_label_values(&[&every]), fingerprints.with_label_values(&[&every]))
        });
        Ok(Self { heights, fingerprints, both: Arc::new(Mutex::new(both)) })
    }

    /// `hash` is that of the block at `height`, which the interval at `slot` divides.
    pub(crate) fn set(&self, slot: usize, height: Height, hash: &[u8]) {
        let mut first = [0u8; 8];
        let n = hash.len().min(6);
        first[2..2 + n].copy_from_slice(&hash[..n]);
        let both = self.both();
        both[slot].0.set(height as i64);
        both[slot].1.set(i64::from_be_bytes(first));
    }

    fn both(&self) -> MutexGuard<'_, [(IntGauge, IntGauge); CHECKPOINTS.len()]> {
        self.both.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Collector for Checkpoints {
    fn desc(&self) -> Vec<&Desc> {
        [self.heights.desc(), self.fingerprints.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _both = self.both();
        [self.heights.collect(), self.fingerprints.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    #[test]
    fn a_scrape_never_shows_a_height_beside_the_fingerprint_of_another() {
        let (registry, checkpoints) = (Registry::new(), Checkpoints::new().expect("constant names"));
        registry.register(Box::new(checkpoints.clone())).expect("nothing else is there");
        let value = |families: &[MetricFamily], name: &str| {
            let family = families.iter().find(|f| f.name().ends_with(name)).expect("it is there");
            let is_first = |m: &&prometheus::proto::Metric| m.get_label()[0].value() == "64";
            family.get_metric().iter().find(is_first).expect("a series").get_gauge().get_value()
        };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for height in (64u64..).step_by(64).take(500_000) {
                    checkpoints.set(0, height, &height.to_be_bytes()[2..]);
                }
            });
            while !writer.is_finished() {
                let families = registry.gather();
                assert_eq!(value(&families, "_height"), value(&families, "_fingerprint"));
            }
        });
    }
}
