//! How long a chain stands still when its leader ends: from the last block that was acknowledged under one fence
//! to the first under the next, as a producer sees it that looks for the leader anew.

use std::fmt::Write;
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use crate::cli::bench::own::Own;
use crate::cli::bench::{Args, CLOSE_WITHIN, NO_LEADER_MAX, stream};
use crate::cli::blocks::Maker;
use crate::cli::exit::{self, Failure};
use crate::cli::out;
use crate::cli::signals::Ends;
use crate::client::cluster::Cluster;
use crate::client::producer::{Outcome, Producer};
use crate::types::{Height, NodeId, Term};

/// Blocks a second where nothing else is asked for.
const RATE: f64 = 100.0;
/// Acknowledged under a fence before its leader is ended. By eye: the cluster is steady by then.
const STEADY: usize = 100;
/// For the node that was ended to be there again with everything.
const BACK_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// How the leader ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum How {
    /// SIGTERM: it hands over.
    Term,
    /// kill -9: it is elected away.
    Kill,
}

impl How {
    fn signal(self) -> Signal {
        match self {
            Self::Term => Signal::TERM,
            Self::Kill => Signal::KILL,
        }
    }
}

/// What was measured.
#[derive(Debug, Default)]
struct Found {
    /// From the last block of one fence to the first of the next.
    gaps: Vec<Duration>,
    /// Ends of nodes that were asked to stop and did not do so with exit code 0.
    n_bad_exits: u32,
    n_acked: u64,
}

/// Ends the leader so many times; shows what was measured until it is done, fails, or is interrupted.
pub(super) async fn measure(
    args: &Args,
    own: &mut Own,
    cluster: Cluster,
    times: u32,
    ends: &mut Ends,
) -> Result<u8, Failure> {
    let mut found = Found::default();
    let measured = tokio::select! {
        measured = run(args, own, cluster, times, &mut found) => measured,
        () = ends.next() => Ok(()),
    };
    if found.gaps.is_empty() {
        measured?;
        return Err(Failure::failed("interrupted before a change of leader was measured"));
    }
    out::print(&if args.json { found.json(args.signal) } else { found.table(args.signal) })?;
    measured?;
    Ok(if found.n_bad_exits == 0 { exit::DONE } else { exit::FAILED })
}

async fn run(
    args: &Args,
    own: &mut Own,
    cluster: Cluster,
    times: u32,
    found: &mut Found,
) -> Result<(), Failure> {
    let maker = Maker::new(args.size, false);
    let mut load = Load {
        producer: Producer::new(cluster.clone(), Box::new(move |next| maker.block(next))),
        due: tokio::time::interval(Duration::from_secs_f64(1.0 / args.rate.unwrap_or(RATE))),
        outcomes: Vec::new(),
        leader: None,
        last: None,
        height: 0,
    };
    // A producer makes up for nothing: what was due while nobody led is not sent in one burst.
    load.due.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for _ in 0..times {
        let (leader, term) = load.until_steady(found).await?;
        own.signal(leader, args.signal.signal());
        let gap = load.until_after(term, found).await?;
        found.gaps.push(gap);
        let ended = loop {
            tokio::select! {
                ended = own.ended() => break ended,
                moved = load.step(found) => moved?,
            }
        };
        if args.signal == How::Term && ended.code != Some(0) {
            found.n_bad_exits += 1;
        }
        own.restart(ended.node_id)?;
        load.until_back(own, &cluster, ended.node_id, found).await?;
    }
    load.producer.close(CLOSE_WITHIN).await;
    Ok(())
}

/// A producer under way.
struct Load {
    producer: Producer,
    due: tokio::time::Interval,
    outcomes: Vec<Outcome>,
    /// Whom the stream goes to.
    leader: Option<NodeId>,
    /// The last acknowledged block: its term, and when it was acknowledged.
    last: Option<(Term, Instant)>,
    /// And its height.
    height: Height,
}

impl Load {
    /// Moves on by a little; returns the gap when the first block of a later term was acknowledged.
    async fn advance(&mut self, found: &mut Found) -> Result<Option<Duration>, Failure> {
        if !self.producer.is_connected() {
            let connected = self.producer.connect(NO_LEADER_MAX).await;
            let connected = connected.map_err(|e| Failure::failed(e.to_string()))?;
            self.leader = Some(connected.leader.node_id);
        }
        let stepped = tokio::select! {
            biased;
            stepped = self.producer.step(&mut self.outcomes) => stepped,
            _ = self.due.tick() => {
                self.producer.offer(Instant::now());
                Ok(())
            }
        };
        if let Err(broken) = stepped
            && let Some(why) = stream::words(broken.outlook)
        {
            return Err(Failure::failed(format!("{}; {why}", broken.why)));
        }
        let (now, mut gap) = (Instant::now(), None);
        for outcome in self.outcomes.drain(..) {
            found.n_acked += 1;
            self.height = outcome.height;
            if outcome.duplicate {
                continue;
            }
            if let Some((term, at)) = self.last
                && term < outcome.term
            {
                gap = Some(now - at);
            }
            self.last = Some((outcome.term, now));
        }
        Ok(gap)
    }

    async fn step(&mut self, found: &mut Found) -> Result<(), Failure> {
        self.advance(found).await.map(|_| ())
    }

    /// Until enough blocks were acknowledged under one fence: who holds it, and the term.
    async fn until_steady(&mut self, found: &mut Found) -> Result<(NodeId, Term), Failure> {
        let mut from = found.n_acked;
        loop {
            if self.advance(found).await?.is_some() {
                from = found.n_acked;
            }
            if let (Some((term, _)), Some(leader)) = (self.last, self.leader)
                && STEADY as u64 <= found.n_acked - from
                && self.producer.is_connected()
            {
                return Ok((leader, term));
            }
        }
    }

    /// Until the first block of a term after that one.
    async fn until_after(&mut self, term: Term, found: &mut Found) -> Result<Duration, Failure> {
        let begin = Instant::now();
        loop {
            let gap = self.advance(found).await?;
            match (gap, self.last) {
                (Some(gap), Some((now, _))) if term < now => return Ok(gap),
                _ if NO_LEADER_MAX < begin.elapsed() => {
                    return Err(Failure::failed(format!("no block after term {term} in {NO_LEADER_MAX:?}")));
                }
                _ => {}
            }
        }
    }

    /// Until a node that was started again follows and has every block.
    async fn until_back(
        &mut self,
        own: &Own,
        cluster: &Cluster,
        node_id: NodeId,
        found: &mut Found,
    ) -> Result<(), Failure> {
        let end = Instant::now() + BACK_WITHIN;
        let endpoint = own.endpoint(node_id);
        let goal = self.height;
        loop {
            let look = cluster.status_at(endpoint, Instant::now() + LOOK * 10);
            tokio::pin!(look);
            let status = loop {
                tokio::select! {
                    status = &mut look => break status,
                    moved = self.step(found) => moved?,
                }
            };
            if status.is_ok_and(|s| s.leader_id.is_some() && Some(goal) <= s.height()) {
                return Ok(());
            }
            if end < Instant::now() {
                let why = format!("node {node_id} did not come back within {BACK_WITHIN:?}");
                return Err(Failure::failed(why));
            }
            let pause = tokio::time::sleep(LOOK);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    moved = self.step(found) => moved?,
                }
            }
        }
    }
}

impl Found {
    /// The value below which a share of the gaps lies.
    fn share(&self, share: f64) -> Duration {
        let mut gaps = self.gaps.clone();
        gaps.sort_unstable();
        let at = (share * gaps.len() as f64).ceil() as usize;
        gaps.get(at.saturating_sub(1)).copied().unwrap_or_default()
    }

    fn table(&self, how: How) -> String {
        let ms = |d: Duration| format!("{:.0} ms", d.as_secs_f64() * 1e3);
        let name = match how {
            How::Term => "SIGTERM",
            How::Kill => "kill -9",
        };
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{name} of the leader, {} times; from its last block to the next leader's first:",
            self.gaps.len()
        );
        let _ = writeln!(
            text,
            "min {}  p50 {}  p90 {}  p99 {}  max {}",
            ms(self.share(0.0)),
            ms(self.share(0.5)),
            ms(self.share(0.9)),
            ms(self.share(0.99)),
            ms(self.share(1.0)),
        );
        let _ = writeln!(text, "{} blocks acknowledged, none lost", self.n_acked);
        if 0 < self.n_bad_exits {
            let _ = writeln!(text, "{} stops did not end with exit code 0", self.n_bad_exits);
        }
        text
    }

    fn json(&self, how: How) -> String {
        let ms = |d: &Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
        let of = |share| ms(&self.share(share));
        let value = json!({
            "signal": match how { How::Term => "SIGTERM", How::Kill => "SIGKILL" },
            "times": self.gaps.len(),
            "gapMs": {
                "min": of(0.0), "p50": of(0.5), "p90": of(0.9), "p99": of(0.99), "max": of(1.0),
                "all": self.gaps.iter().map(ms).collect::<Vec<_>>(),
            },
            "blocksAcknowledged": self.n_acked,
            "badExits": self.n_bad_exits,
        });
        format!("{value:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_values_that_were_measured() {
        let gaps = (1..=10).rev().map(Duration::from_millis).collect();
        let found = Found { gaps, n_bad_exits: 0, n_acked: 7 };
        let ms = |share| found.share(share).as_millis();
        assert_eq!([ms(0.0), ms(0.5), ms(0.9), ms(0.99), ms(1.0)], [1, 5, 9, 10, 10]);
        assert!(found.table(How::Kill).contains("kill -9 of the leader, 10 times"));
        assert!(found.json(How::Term).contains("\"p90\": 9.0"));
        assert_eq!(Found::default().share(0.5), Duration::ZERO);
    }
}
