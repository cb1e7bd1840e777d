//! Which traces are recorded, and which of them as whole trees.
//!
//! A trace is sampled by its id, so that everybody who asks the same decides the same. Whole trees are
//! bounded by a budget a second; what is beyond it is still recorded, in ranges.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::telemetry::trace::{Config, variables::Variables};

/// What the settings and the variables say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sampling {
    /// Of traces that begin here; 0 to 1.
    pub(crate) ratio: f64,
    /// A caller's sampled trace is always continued.
    pub(crate) obeys_parent: bool,
    /// `OTEL_TRACES_SAMPLER` decides: then nothing is recorded beyond what it allows.
    pub(crate) is_explicit: bool,
    pub(crate) traces_per_second: u64,
}

impl Sampling {
    /// Nothing is recorded.
    pub(crate) fn none() -> Self {
        Self { ratio: 0.0, obeys_parent: false, is_explicit: true, traces_per_second: 0 }
    }

    /// The variables win over the settings; a wrong value is told at start and ignored here.
    pub(crate) fn new(config: &Config, variables: &Variables) -> Self {
        let traces_per_second = config.per_second;
        let of_settings =
            Self { ratio: config.sample_ratio, obeys_parent: true, is_explicit: false, traces_per_second };
        let Some(sampler) = variables.get("OTEL_TRACES_SAMPLER") else { return of_settings };
        let arg = variables.get("OTEL_TRACES_SAMPLER_ARG").and_then(|arg| arg.parse().ok());
        let arg = arg.filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or(1.0);
        let (root, obeys_parent) = match sampler.strip_prefix("parentbased_") {
            Some(root) => (root, true),
            None => (sampler, false),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => arg,
            _ => return of_settings,
        };
        Self { ratio, obeys_parent, is_explicit: true, traces_per_second }
    }
}

/// What is recorded of one trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) is_sampled: bool,
    /// As a whole tree; implies sampled.
    pub(crate) is_whole: bool,
}

/// Tokens that come back with time, up to a burst.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    since: Instant,
}

impl Bucket {
    pub(crate) fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        Self { per_second: per_second as f64, burst: burst as f64, tokens: burst as f64, since: now }
    }

    /// Whether there was a token.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = self.since.max(now);
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// Decides, once for each trace that begins here.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    /// Whole trees. Locked for a few additions; a task would be a round trip for each block.
    budget: Mutex<Bucket>,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Self {
        // A second's worth at once: who bursts is not punished, and the rate holds over seconds.
        let n = sampling.traces_per_second;
        Self { sampling, budget: Mutex::new(Bucket::new(n, n, Instant::now())) }
    }

    pub(crate) fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// `is_forced`: recorded as a whole whatever ratio and budget say.
    pub(crate) fn decide(&self, trace_id: &[u8; 16], is_parent_sampled: bool, is_forced: bool) -> Verdict {
        let s = &self.sampling;
        let is_forced = is_forced && !s.is_explicit;
        let is_sampled = is_forced || (s.obeys_parent && is_parent_sampled) || is_within(trace_id, s.ratio);
        // A token is taken for a forced one too.
        let is_whole = is_sampled && (self.bucket().take(Instant::now()) || is_forced);
        Verdict { is_sampled, is_whole }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a trace id falls below a ratio: its last eight bytes as a fraction, as the SDKs do.
pub(crate) fn is_within(trace_id: &[u8; 16], ratio: f64) -> bool {
    if 1.0 <= ratio {
        return true;
    }
    let [.., a, b, c, d, e, f, g, h] = *trace_id;
    let low = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
    low < (ratio * (1u64 << 63) as f64) as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        Variables::new(pairs.iter().map(|(n, v)| ((*n).into(), (*v).into())))
    }

    fn config(ratio: f64, n: u64) -> Config {
        Config::new(None, "grpc", ratio, n)
    }

    fn sampler(ratio: f64, n: u64) -> Sampler {
        Sampler::new(Sampling::new(&config(ratio, n), &Variables::default()))
    }

    #[test]
    fn the_variables_win_over_the_settings() {
        let of = |pairs: &[(&str, &str)]| Sampling::new(&config(0.5, 7), &variables(pairs));
        let settings = of(&[]);
        assert_eq!((settings.ratio, settings.obeys_parent, settings.is_explicit), (0.5, true, false));
        let off = of(&[("OTEL_TRACES_SAMPLER", "always_off")]);
        assert_eq!((off.ratio, off.obeys_parent, off.is_explicit), (0.0, false, true));
        let part =
            of(&[("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")]);
        assert_eq!((part.ratio, part.obeys_parent), (0.25, true));
        assert_eq!(of(&[("OTEL_TRACES_SAMPLER", "Always_Off")]), settings, "a wrong value changes nothing");
    }

    #[test]
    fn a_sampled_parent_is_obeyed_and_a_forced_one_is_whole() {
        let none = sampler(0.0, 0);
        assert_eq!(none.decide(&[9; 16], false, false), Verdict { is_sampled: false, is_whole: false });
        assert_eq!(none.decide(&[9; 16], true, false), Verdict { is_sampled: true, is_whole: false });
        assert_eq!(none.decide(&[9; 16], false, true), Verdict { is_sampled: true, is_whole: true });
        let off = Sampling::new(&config(1.0, 9), &variables(&[("OTEL_TRACES_SAMPLER", "always_off")]));
        assert!(!Sampler::new(off).decide(&[9; 16], true, true).is_sampled, "the variable has the last word");
    }

    #[test]
    fn the_ratio_is_of_trace_ids() {
        let n = (0..10_000u64)
            .filter(|i| {
                let mut id = [0; 16];
                id[8..].copy_from_slice(&i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
                is_within(&id, 0.3)
            })
            .count();
        assert!((2_900..3_100).contains(&n), "{n} of 10000");
        assert!(!is_within(&[0xff; 16], 0.999) && is_within(&[0xff; 16], 1.0) && !is_within(&[0; 16], 0.0));
    }

    #[test]
    fn whole_trees_are_bounded_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 10, start);
        let taken = |bucket: &mut Bucket, at: Duration| (0..50).filter(|_| bucket.take(start + at)).count();
        assert_eq!(taken(&mut bucket, Duration::ZERO), 10);
        assert_eq!(taken(&mut bucket, Duration::from_millis(500)), 5);
        assert_eq!(taken(&mut bucket, Duration::from_secs(60)), 10);
        assert_eq!(taken(&mut Bucket::new(0, 0, start), Duration::from_secs(9)), 0);
    }
}
