//! What openraft 0.10.0-alpha.37 uses of base2histogram 0.2.3, under its names.
//!
//! The first histogram of the original makes tables for all sixteen widths it knows, 26 MB that stay;
//! openraft uses one width, whose table would be 2 KB (`findings/openraft-histogram-tables.sh`). Here the
//! edges of a bucket are computed. It goes when the original makes only what is asked for.

use std::{fmt, marker::PhantomData};

/// Buckets for each power of two: one is at most a quarter wide of what it begins at.
const PARTS: usize = 4;
const PART_BITS: u32 = PARTS.trailing_zeros();
const BUCKETS: usize = (u64::BITS as usize - PART_BITS as usize + 1) * PARTS;

/// Values by size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    total: u64,
    /// The original keeps one of these for each window of time; openraft has one window.
    window: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, window: PhantomData }
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// The same value `n` times.
    pub fn record_n(&mut self, value: u64, n: u64) {
        self.counts[bucket_of(value)] += n;
        self.total += n;
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// The middle of the bucket in which the sample of that rank lies; 0 without samples. `share`: 0 to 1.
    pub fn percentile(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if rank <= below {
                let (first, last) = edges_of(bucket);
                return first + (last - first) / 2;
            }
        }
        0
    }

    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total,
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

fn bucket_of(value: u64) -> usize {
    // Below it each value has a bucket of its own.
    if value < PARTS as u64 {
        return value as usize;
    }
    let power = value.ilog2();
    let part = (value >> (power - PART_BITS)) as usize % PARTS;
    (power - PART_BITS + 1) as usize * PARTS + part
}

/// The least and the greatest value of a bucket.
fn edges_of(bucket: usize) -> (u64, u64) {
    if bucket < PARTS {
        return (bucket as u64, bucket as u64);
    }
    let shift = (bucket / PARTS - 1) as u32;
    let first = ((PARTS + bucket % PARTS) as u64) << shift;
    (first, first + ((1u64 << shift) - 1))
}

/// Percentiles of the values, in their unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "{samples} samples, p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p99_9}")
    }
}

/// Histograms below each other, a line each.
#[derive(Debug, Clone)]
pub struct AsciiChart<T = ()> {
    series: Vec<(String, Histogram<T>)>,
}

impl<T> Default for AsciiChart<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> AsciiChart<T> {
    pub fn new() -> Self {
        Self { series: Vec::new() }
    }

    pub fn add(mut self, name: impl ToString, histogram: Histogram<T>) -> Self {
        self.series.push((name.to_string(), histogram));
        self
    }
}

impl<T> fmt::Display for AsciiChart<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.series {
            writeln!(f, "{name}: {}", histogram.percentile_stats())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_lies_in_one_bucket_and_buckets_touch() {
        let mut next = 0;
        for bucket in 0..BUCKETS {
            let (first, last) = edges_of(bucket);
            assert_eq!(first, next, "bucket {bucket}");
            assert_eq!((bucket_of(first), bucket_of(last)), (bucket, bucket));
            next = last.wrapping_add(1);
        }
        assert_eq!(next, 0, "the last one ends with the greatest value");
    }

    #[test]
    fn percentiles_are_within_a_bucket() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile(0.5), 0);
        (1..=1_000).for_each(|value| histogram.record(value));
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 1_000);
        for (got, want) in [(stats.p1, 10), (stats.p50, 500), (stats.p90, 900), (stats.p99_9, 999)] {
            assert!(got.abs_diff(want) <= want / PARTS as u64, "{got} for {want}");
        }
    }
}
