//! Chance that a failed run names, so that the next one can have it again.

/// xorshift64: enough to choose moments.
pub(crate) struct Chance {
    pub(crate) seed: u64,
    state: u64,
}

impl Chance {
    /// The seed of `BLOCKRAFT_TORTURE_SEED`, or one of its own.
    pub(crate) fn new() -> Self {
        let given = std::env::var("BLOCKRAFT_TORTURE_SEED").ok().and_then(|s| s.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from(std::process::id()) << 20);
        Self { seed, state: seed | 1 }
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % end
    }
}
