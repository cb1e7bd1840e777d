//! This node's candidacies: how many, how each ended, and why it stood.
//!
//! One task reads the rounds that the transport counted and the role that raft tells; [`Tally`] decides
//! what follows. Each candidacy is a span, so that one look answers why there was an election.

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use serde_json::Value;

use crate::audit::history::Event;
use crate::consensus::Role;
use crate::consensus::core::Stopped;
use crate::leadership::handle::Handle;
use crate::telemetry::names;
use crate::telemetry::runtime::Stalls;
use crate::telemetry::trace::{Clock, Span, Tracer, int, signed, text};
use crate::types::Term;

/// How often it is looked whether somebody else won.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A stall or a jump of the clock so long before a candidacy may have caused it. By eye: several
/// patiences of a follower.
const CAUSE_WITHIN: Duration = Duration::from_secs(5);

/// `raft_elections_total`.
#[derive(Clone)]
pub(crate) struct Elections {
    started: IntCounter,
    won: IntCounter,
    lost: IntCounter,
    pre_vote_lost: IntCounter,
}

impl Elections {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let total = IntCounterVec::new(
            Opts::new("blockraft_raft_elections_total", "This node's candidacies, by outcome."),
            &["outcome"],
        )?;
        registry.register(Box::new(total.clone()))?;
        let of = |outcome| total.with_label_values(&[outcome]);
        Ok(Self {
            started: of("started"),
            won: of("won"),
            lost: of("lost"),
            pre_vote_lost: of("pre_vote_lost"),
        })
    }

    fn count(&self, news: News) {
        match news {
            News::Started => self.started.inc(),
            News::Won => self.won.inc(),
            News::Lost => self.lost.inc(),
            News::PreVoteLost => self.pre_vote_lost.inc(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Started,
    Won,
    Lost,
    PreVoteLost,
}

/// What became of rounds. Rounds come as counts that never fall; several may come at once.
#[derive(Debug, Default)]
struct Tally {
    pre_vote_rounds: u64,
    vote_rounds: u64,
    is_pre_voting: bool,
    is_voting: bool,
}

impl Tally {
    fn is_open(&self) -> bool {
        self.is_pre_voting || self.is_voting
    }

    fn on_rounds(&mut self, pre_vote_rounds: u64, vote_rounds: u64) -> Vec<News> {
        let mut news = Vec::new();
        for _ in self.pre_vote_rounds..pre_vote_rounds {
            if std::mem::replace(&mut self.is_pre_voting, true) {
                news.push(News::PreVoteLost);
            }
        }
        for _ in self.vote_rounds..vote_rounds {
            // Votes are asked for once the pre-votes are won.
            self.is_pre_voting = false;
            if std::mem::replace(&mut self.is_voting, true) {
                news.push(News::Lost);
            }
            news.push(News::Started);
        }
        (self.pre_vote_rounds, self.vote_rounds) = (pre_vote_rounds, vote_rounds);
        news
    }

    fn on_won(&mut self) -> Vec<News> {
        // A sole voter asks nobody.
        let started = (!self.is_voting).then_some(News::Started);
        (self.is_pre_voting, self.is_voting) = (false, false);
        started.into_iter().chain([News::Won]).collect()
    }

    /// Another node leads.
    fn on_settled(&mut self) -> Vec<News> {
        let lost = std::mem::take(&mut self.is_voting).then_some(News::Lost);
        let pre = std::mem::take(&mut self.is_pre_voting).then_some(News::PreVoteLost);
        lost.into_iter().chain(pre).collect()
    }
}

#[derive(Debug)]
struct Candidacy {
    began: Instant,
    rounds_before: u64,
    why: Why,
}

/// Why this node stands, seen when it began to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Why {
    trigger: &'static str,
    heartbeat_age_ms: Option<u64>,
    sync_in_progress_ms: Option<u64>,
    stall_ms: Option<u64>,
    clock_jump_ms: Option<i64>,
}

impl Why {
    fn see(handle: &Handle, stalls: &Stalls) -> Self {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let heartbeat_age = handle.raft().heard_age();
        Self {
            trigger: match (handle.trigger(), heartbeat_age) {
                (Some(trigger), _) => trigger,
                (None, None) => "start",
                (None, Some(_)) => "silence",
            },
            heartbeat_age_ms: heartbeat_age.map(ms),
            sync_in_progress_ms: handle.sync_in_progress().map(ms),
            stall_ms: stalls.recent(CAUSE_WITHIN).map(ms),
            clock_jump_ms: stalls.recent_jump_ms(CAUSE_WITHIN),
        }
    }

    /// An event of the history with it as its detail.
    pub(super) fn tell(&self, event: Event) -> Event {
        let numbers = [
            ("heartbeatAgeMs", self.heartbeat_age_ms.map(Value::from)),
            ("syncInProgressMs", self.sync_in_progress_ms.map(Value::from)),
            ("stallMs", self.stall_ms.map(Value::from)),
            ("clockJumpMs", self.clock_jump_ms.map(Value::from)),
        ];
        let known = numbers.into_iter().filter_map(|(name, value)| Some((name, value?)));
        known.fold(event.with("trigger", self.trigger), |event, (name, value)| event.with(name, value))
    }
}

/// Counts and tells of candidacies until raft stops. `rounds` are the transport's counts of rounds of
/// pre-votes and of votes.
pub(crate) async fn run(
    handle: Handle,
    mut rounds: impl Stream<Item = (u64, u64)> + Unpin + Send,
    counters: Elections,
    stalls: Stalls,
    tracer: Tracer,
) -> Result<(), Stopped> {
    let mut changes = handle.raft().role_changes();
    let mut tally = Tally::default();
    let mut candidacy: Option<Candidacy> = None;
    let mut led: Option<Term> = None;
    loop {
        let look = tokio::time::sleep(LOOK_EVERY);
        tokio::select! {
            Some((pre_vote_rounds, vote_rounds)) = rounds.next() => {
                let before = tally.pre_vote_rounds + tally.vote_rounds;
                tally.on_rounds(pre_vote_rounds, vote_rounds).into_iter().for_each(|n| counters.count(n));
                if tally.is_open() && candidacy.is_none() {
                    candidacy = Some(Candidacy::begin(&handle, &stalls, before));
                }
            }
            changed = changes.next() => changed?,
            () = look, if tally.is_open() => {}
        }
        let status = handle.raft().status();
        let is_ours = status.role == Role::Leader && led != Some(status.term);
        let stood_for = candidacy.as_ref().map_or(Duration::MAX, |c| c.began.elapsed());
        let names_other = status.role != Role::Leader && status.leader_id.is_some();
        let is_over = tally.is_open() && names_other && is_heard(handle.raft().heard_age(), stood_for);
        let (news, outcome) = match (is_ours, is_over) {
            (true, _) => (tally.on_won(), "won"),
            (false, true) => (tally.on_settled(), "lost"),
            (false, false) => continue,
        };
        news.into_iter().for_each(|n| counters.count(n));
        if is_ours {
            led = Some(status.term);
        }
        let ended = tally.pre_vote_rounds + tally.vote_rounds;
        let candidacy = candidacy.take().unwrap_or_else(|| Candidacy::begin(&handle, &stalls, ended));
        if !is_ours {
            handle.memory().candidacy = None;
        }
        tracer.record(candidacy.span(handle.raft().node_id(), status.term, outcome, ended));
    }
}

/// Whether a leader was heard since this node stands: raft goes on naming one that fell silent for a while.
fn is_heard(heard_age: Option<Duration>, stood_for: Duration) -> bool {
    heard_age.is_some_and(|age| age < stood_for)
}

impl Candidacy {
    fn begin(handle: &Handle, stalls: &Stalls, rounds_before: u64) -> Self {
        let why = Why::see(handle, stalls);
        // The leadership that comes of it may be applied before this task hears that it was won.
        handle.memory().candidacy = Some(why.clone());
        Self { began: Instant::now(), rounds_before, why }
    }

    fn span(self, node_id: u64, term: Term, outcome: &'static str, rounds: u64) -> Span {
        let clock = Clock::now();
        let mut span = Span::own(names::span::ELECTION, clock.at(self.began), clock.at(Instant::now()));
        let why = self.why;
        span.attributes.extend([
            int(names::TERM, term),
            int(names::NODE_ID, node_id),
            text(names::OUTCOME, outcome),
            text(names::TRIGGER, why.trigger),
            int(names::ROUNDS, rounds.saturating_sub(self.rounds_before)),
        ]);
        span.attributes.extend(why.heartbeat_age_ms.map(|ms| int(names::HEARTBEAT_AGE_MS, ms)));
        span.attributes.extend(why.sync_in_progress_ms.map(|ms| int(names::SYNC_IN_PROGRESS_MS, ms)));
        span.attributes.extend(why.stall_ms.map(|ms| int(names::STALL_MS, ms)));
        span.attributes.extend(why.clock_jump_ms.map(|ms| signed(names::CLOCK_JUMP_MS, ms)));
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_ends_in_one_way() {
        let mut tally = Tally::default();
        assert_eq!(tally.on_rounds(1, 0), []);
        // Nobody granted it, and it was tried again.
        assert_eq!(tally.on_rounds(2, 0), [News::PreVoteLost]);
        assert_eq!(tally.on_rounds(2, 1), [News::Started]);
        assert!(tally.is_open());
        assert_eq!(tally.on_won(), [News::Won]);
        assert!(!tally.is_open());
    }

    #[test]
    fn rounds_between_two_looks_are_all_counted() {
        let mut tally = Tally::default();
        assert_eq!(
            tally.on_rounds(3, 2),
            [News::PreVoteLost, News::PreVoteLost, News::Started, News::Lost, News::Started]
        );
        assert_eq!(tally.on_settled(), [News::Lost]);
        assert_eq!(tally.on_settled(), []);
    }

    #[test]
    fn a_pre_vote_that_another_leader_ends_is_lost() {
        let mut tally = Tally::default();
        tally.on_rounds(1, 0);
        assert_eq!(tally.on_settled(), [News::PreVoteLost]);
    }

    #[test]
    fn a_leader_that_fell_silent_before_ends_no_candidacy() {
        let s = Duration::from_secs;
        assert!(is_heard(Some(s(1)), s(3)));
        assert!(!is_heard(Some(s(3)), s(1)) && !is_heard(None, s(3)));
    }

    #[test]
    fn a_sole_voter_wins_what_it_started() {
        assert_eq!(Tally::default().on_won(), [News::Started, News::Won]);
    }
}
