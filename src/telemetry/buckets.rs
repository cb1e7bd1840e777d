//! The three sets of histogram buckets.

/// 50 µs to 13 s: stages, syncs, hand-overs, RPCs.
pub(crate) fn stage() -> Vec<f64> {
    doubling(50e-6, 19)
}

/// 10 ms to 11 min: snapshots.
pub(crate) fn snapshot() -> Vec<f64> {
    doubling(10e-3, 17)
}

/// 1 to 4096: entries of a batch.
pub(crate) fn batch() -> Vec<f64> {
    doubling(1.0, 13)
}

fn doubling(first: f64, n: u32) -> Vec<f64> {
    (0..n).map(|i| first * f64::from(1u32 << i)).collect()
}
