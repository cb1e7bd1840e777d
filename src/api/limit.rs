//! `api.rate_limit`: so many requests per second and address.
//!
//! A token bucket per address, filled by the clock when it is looked at. A batch costs as many tokens as it
//! has calls. Full buckets are forgotten, so that strangers leave nothing behind.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Buckets held before full ones are looked for. By eye: as many as there may be connections.
const BUCKETS_MAX: usize = 1_024;

pub(crate) struct Limiter {
    /// Tokens per second, and the most that a bucket holds; 0: no limit.
    rate: f64,
    /// A lock, held for one look: a task would add a hop to every request.
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

struct Bucket {
    /// May be negative: a batch is let in whole and paid for later.
    tokens: f64,
    at: Instant,
}

impl Limiter {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { rate: per_second.into(), buckets: Mutex::default() }
    }

    /// Takes tokens for `n` calls. `Err`: none is there; how long until one is.
    pub(crate) fn take(&self, address: IpAddr, n: usize, now: Instant) -> Result<(), Duration> {
        if self.rate == 0.0 {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if BUCKETS_MAX <= buckets.len() {
            buckets.retain(|_, b| filled(b, self.rate, now) < self.rate);
        }
        let bucket = buckets.entry(address).or_insert(Bucket { tokens: self.rate, at: now });
        bucket.tokens = filled(bucket, self.rate, now);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / self.rate));
        }
        bucket.tokens -= n as f64;
        Ok(())
    }

    /// Takes tokens for `n` calls more of a request that was let in: it is paid for later.
    pub(crate) fn charge(&self, address: IpAddr, n: usize) {
        if self.rate == 0.0 || n == 0 {
            return;
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // A bucket that was forgotten since was full.
        if let Some(bucket) = buckets.get_mut(&address) {
            bucket.tokens -= n as f64;
        }
    }
}

fn filled(bucket: &Bucket, rate: f64, now: Instant) -> f64 {
    let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * rate;
    (bucket.tokens + gained).min(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);

    #[test]
    fn a_second_s_worth_is_let_in_and_then_the_rate() {
        let limiter = Limiter::new(10);
        let start = Instant::now();
        assert!((0..10).all(|_| limiter.take(A, 1, start).is_ok()));
        let wait = limiter.take(A, 1, start).unwrap_err();
        assert!(wait <= Duration::from_millis(101), "{wait:?}");
        assert!(limiter.take(B, 1, start).is_ok(), "another address has its own");
        assert!(limiter.take(A, 1, start + Duration::from_millis(101)).is_ok());
        assert!(limiter.take(A, 1, start + Duration::from_millis(102)).is_err());
    }

    #[test]
    fn a_batch_is_paid_for_afterwards() {
        let limiter = Limiter::new(10);
        let start = Instant::now();
        assert!(limiter.take(A, 30, start).is_ok());
        assert!(limiter.take(A, 1, start + Duration::from_secs(2)).is_err());
        assert!(limiter.take(A, 1, start + Duration::from_millis(2_200)).is_ok());
    }

    #[test]
    fn what_a_request_turns_out_to_hold_is_charged_behind() {
        let limiter = Limiter::new(10);
        let start = Instant::now();
        assert!(limiter.take(A, 1, start).is_ok());
        limiter.charge(A, 29);
        assert!(limiter.take(A, 1, start + Duration::from_secs(2)).is_err());
        assert!(limiter.take(A, 1, start + Duration::from_millis(2_200)).is_ok());
    }

    #[test]
    fn zero_is_no_limit_and_full_buckets_are_forgotten() {
        let start = Instant::now();
        assert!((0..1_000).all(|_| Limiter::new(0).take(A, 1, start).is_ok()));
        let limiter = Limiter::new(10);
        for i in 0..BUCKETS_MAX as u32 {
            limiter.take(std::net::Ipv4Addr::from(i).into(), 1, start).unwrap();
        }
        limiter.take(A, 1, start + Duration::from_secs(1)).unwrap();
        assert_eq!(limiter.buckets.lock().unwrap().len(), 1);
    }
}
