//! Makes a won election into a leadership, keeps an unfit node from leading, and carries hand-overs out.
//!
//! One task looks at raft several times a second and at every change of role. What follows from a look is
//! decided by [`Keeper`] and [`crate::leadership::policy`]; hand-overs run as tasks of their own, one at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use tokio::{sync::mpsc, sync::oneshot, task::JoinSet};

use crate::consensus::{Role, Status, core::Stopped};
use crate::leadership::handle::Handle;
use crate::leadership::handover::{self, Asked, By, Request};
use crate::leadership::keeper::{Action, Keeper, Look};
use crate::leadership::metrics::{Counters, reason};
use crate::leadership::numbers;
use crate::leadership::policy::Intent;
use crate::leadership::record;
use crate::leadership::stall::{Other, Seen};
use crate::leadership::target::Candidate;
use crate::machine::{Command, Outcome, apply::settings_to_proto};
use crate::telemetry::ticks;
use crate::types::proto::LeadershipCause;
use crate::types::{NodeId, Term, proto, settings::ClusterSettings};

/// How often the commit index is remembered and the leader's silence noticed.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Before a refused first proposal is made again: a leader's first 1–6 ms meet an expired lease
/// (safety rule 20).
const RETRY_AFTER: Duration = Duration::from_millis(2);

/// Watches the role until raft stops. `settings` are this node's own, for the first leader of all.
pub(crate) async fn run(
    handle: Handle,
    requests: mpsc::Receiver<Request>,
    settings: ClusterSettings,
    counters: Counters,
) -> Result<(), Stopped> {
    let keeper = Keeper::new(handle.config().keeper);
    let recorded = handle.history().last_leadership().await;
    let task = Task {
        handle,
        settings,
        counters,
        keeper,
        works: JoinSet::new(),
        waiting: VecDeque::new(),
        asking_quorum: false,
        is_establishing: false,
        // What was applied and not recorded before a crash is recorded now.
        recorded,
        led: None,
        seen: None,
        known: None,
        first_led: None,
        led_at: None,
        looked_at: Instant::now(),
        started: Instant::now(),
    };
    task.run(requests).await
}

/// What a work of its own came to.
enum Ended {
    HandOver,
    /// A quorum confirmed this leader, in that term; or did not.
    Asked(Option<Term>),
    /// The first proposals of a leadership are applied, or its term is over.
    Established,
}

struct Task {
    handle: Handle,
    settings: ClusterSettings,
    counters: Counters,
    keeper: Keeper,
    works: JoinSet<Ended>,
    /// They wait for the hand-over before them.
    waiting: VecDeque<Request>,
    /// A quorum is being asked whether this node still leads.
    asking_quorum: bool,
    /// The first proposals of its own leadership are under way.
    is_establishing: bool,
    /// Term of the newest leadership in this node's history.
    recorded: Term,
    led: Option<Term>,
    seen: Option<Term>,
    known: Option<(Term, Option<NodeId>)>,
    /// Term of the first leader that this process heard, or was.
    first_led: Option<Term>,
    /// When this node led last, with a quorum behind it.
    led_at: Option<Instant>,
    /// The last look: a process that stood still since heard nobody.
    looked_at: Instant,
    started: Instant,
}

impl Task {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) -> Result<(), Stopped> {
        let mut samples = ticks::every(SAMPLE_EVERY);
        let mut changes = self.handle.raft().role_changes();
        let mut leaderships = self.handle.reader().watch_leadership();
        loop {
            let is_sample = tokio::select! {
                _ = samples.tick() => true,
                changed = changes.next() => {
                    changed?;
                    false
                }
                Some(request) = requests.recv() => {
                    self.on_request(request);
                    continue;
                }
                Some(ended) = self.works.join_next() => {
                    self.on_ended(ended);
                    continue;
                }
                // The store goes after this task.
                Ok(()) = leaderships.changed() => {
                    let term = *leaderships.borrow_and_update();
                    self.handle.memory().applied_leadership(Instant::now(), term);
                    // Its own it tells of once it is known whether it is ready.
                    if !self.is_establishing {
                        self.count();
                    }
                    continue;
                }
            };
            let status = self.handle.raft().status();
            if !status.is_running {
                return Err(Stopped("its core ended".into()));
            }
            self.on_look(&status, is_sample);
            if status.role == Role::Leader && self.led != Some(status.term) {
                self.establish(status.term);
            }
        }
    }

    /// In a work of its own: while the first proposals wait the node must go on looking at itself.
    fn establish(&mut self, term: Term) {
        self.led = Some(term);
        self.is_establishing = true;
        let (handle, settings) = (self.handle.clone(), self.settings.clone());
        self.works.spawn(async move {
            if let Err(error) = establish(&handle, term, &settings).await {
                tracing::debug!(term, %error, "a leadership was not established");
            }
            Ended::Established
        });
    }

    fn on_look(&mut self, status: &Status, is_sample: bool) {
        if is_sample {
            self.sample(status);
        }
        if status.is_started {
            // Before the first look nothing is known that could have advanced.
            let advanced = status.term.saturating_sub(self.seen.unwrap_or(status.term));
            self.counters.terms_advanced.inc_by(advanced);
            self.seen = Some(status.term);
            if self.known != Some((status.term, status.leader_id)) {
                self.known = Some((status.term, status.leader_id));
                tracing::info!(term = status.term, leader_id = status.leader_id, "leader changed");
            }
        }
        self.keep(status);
    }

    fn sample(&mut self, status: &Status) {
        let peers = self.handle.raft().peers();
        let voters = &status.members.voters;
        let others: Vec<Other> = status
            .peers
            .iter()
            .flatten()
            .filter(|peer| voters.contains(&peer.node_id) && peer.node_id != self.handle.raft().node_id())
            .map(|peer| Other {
                node_id: peer.node_id,
                matched: peer.matched.unwrap_or(0),
                left: peers.log_bytes_sent(peer.node_id),
            })
            .collect();
        let seen = Seen {
            is_leader: status.role == Role::Leader,
            positions: &status.positions,
            others: &others,
            // With this node itself so many more make a quorum.
            n_needed: voters.len() / 2,
            synced: self.handle.reader().log_stats().synced,
            stall_after: self.handle.config().stall_after,
        };
        let now = Instant::now();
        let mut memory = self.handle.memory();
        memory.sample(now, status);
        memory.stall.look(now, &seen);
        drop(memory);
        // The watch tells of what comes; this of what was there before it.
        if !self.is_establishing {
            self.count();
        }
        if status.is_started && status.leader_id.is_none() {
            self.counters.leaderless_seconds.inc_by(SAMPLE_EVERY.as_secs_f64());
        }
    }

    /// Counts and records every leadership applied since the last time.
    fn count(&mut self) {
        self.recorded = record::leaderships(&self.handle, self.handle.history(), self.recorded);
        if self.first_led.is_none() {
            let status = self.handle.raft().status();
            self.first_led = status.leader_id.map(|_| status.term);
        }
        let (handle, changes) = (&self.handle, &self.counters.leader_changes);
        let first_led = self.first_led;
        handle.count_leaderships(|_, leadership| {
            // All have ids; a node that joins or catches up sees none of the old ones happen.
            if numbers::is_change(leadership.pos, first_led, handle.reader().history_upto()) {
                changes.with_label_values(&[reason(leadership.cause)]).inc();
            }
        });
    }

    fn keep(&mut self, status: &Status) {
        let fittest = self
            .handle
            .candidates(status)
            .iter()
            .filter(|c| c.is_voter && c.ack_age.is_some())
            .map(Candidate::grade)
            .min();
        let is_leader = status.role == Role::Leader;
        if is_leader && status.leader_id.is_some() {
            self.led_at = Some(Instant::now());
        }
        let heard_age = self.handle.raft().heard_age().unwrap_or_else(|| self.started.elapsed());
        // One that gives its office up hears of the next leader a moment later: until then it was led by itself.
        let leaderless_for = self.led_at.map_or(heard_age, |at| at.elapsed().min(heard_age));
        let keeper = &mut self.keeper;
        // Nor before any membership is known: the first that a wiped node is sent may make it a quorum of its own
        // (safety rule 8).
        let is_barred = self.handle.barred(Instant::now()).is_some() || status.members.nodes.is_empty();
        let patience = self.handle.raft().config().heartbeat_timeout;
        let stood_still_for = std::mem::replace(&mut self.looked_at, Instant::now()).elapsed();
        let (actions, unsure) = self.handle.judged(status, |verdict, inputs, memory| {
            let look = Look {
                now: inputs.now,
                is_leader,
                has_quorum: !verdict.lease_remaining.is_zero(),
                unfit: &verdict.unfit,
                is_fit_to_stand: verdict.may_stand,
                is_barred,
                leaderless_for: if status.leader_id.is_some() { Duration::ZERO } else { leaderless_for },
                is_deaf: patience <= stood_still_for
                    || inputs.sync_in_progress.is_some_and(|age| patience <= age),
                fittest,
                is_forced: memory.forced_term == Some(status.term),
                is_busy: memory.handover.is_some(),
                is_leaving: memory.is_leaving,
            };
            (keeper.step(&look), memory.unsure_term)
        });
        for action in actions {
            self.act(action);
        }
        if let Some(term) = unsure
            && is_leader
            && status.term == term
            && !self.asking_quorum
        {
            self.asking_quorum = true;
            let raft = self.handle.raft().clone();
            self.works
                .spawn(async move { Ended::Asked(raft.own_read_index().await.is_ok().then_some(term)) });
        }
    }

    fn act(&mut self, action: Action) {
        let core = self.handle.raft().core();
        match action {
            Action::SetMayStand(may) => {
                tracing::info!(may, "whether this node stands for election");
                core.set_may_stand(may);
            }
            Action::TellLastResort => {
                self.handle.operations().last_resort();
                tracing::warn!("nobody leads: this node stands for election although it is not fit");
            }
            Action::SetHeartbeats(on) => {
                tracing::warn!(on, "heartbeats of a leader whose entries do not get through");
                core.set_heartbeats(on);
            }
            Action::HandOver { cause, accepts, why } => {
                match cause {
                    LeadershipCause::Pause => tracing::info!("this leader is paused and hands over"),
                    _ => tracing::warn!(check = why.name(), "this leader is not fit and hands over"),
                }
                let asked = Asked {
                    to: None,
                    within: self.handle.config().resign_timeout,
                    accepts,
                    cause,
                    operation_id: operation_id(),
                    reason: Some(why.name().into()),
                    by: By::Node,
                    intent: Intent::HandOver,
                };
                self.begin(Request::new(asked, None));
            }
        }
    }

    fn on_request(&mut self, request: Request) {
        let running = self.handle.memory().handover.clone();
        let Some(running) = running else { return self.begin(request) };
        match request.asked.cause {
            // Follows whatever is under way; then it finds that another node leads, or hands over itself.
            LeadershipCause::Resign
            | LeadershipCause::Shutdown
            | LeadershipCause::Pause
            | LeadershipCause::Removed => {
                self.waiting.push_back(request);
            }
            _ => request.busy(running),
        }
    }

    fn begin(&mut self, request: Request) {
        self.handle.memory().handover = Some(request.asked.operation_id.clone());
        let handle = self.handle.clone();
        self.works.spawn(async move {
            handover::run(handle, request).await;
            Ended::HandOver
        });
    }

    fn on_ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        match ended {
            Ok(Ended::Asked(confirmed)) => {
                self.asking_quorum = false;
                let mut memory = self.handle.memory();
                if confirmed.is_some() && memory.unsure_term == confirmed {
                    memory.unsure_term = None;
                }
            }
            Ok(Ended::HandOver) => self.next(),
            Ok(Ended::Established) => {
                self.is_establishing = false;
                self.count();
            }
            Err(error) => {
                tracing::error!(%error, "a hand-over broke off");
                self.handle.set_intent(Intent::Lead);
                self.handle.memory().handover = None;
                self.next();
            }
        }
    }

    fn next(&mut self) {
        if self.handle.memory().handover.is_some() {
            // The one that ended gave its place up before, and another took it.
            return;
        }
        while let Some(request) = self.waiting.pop_front() {
            // Whoever waits no more was told so: it must not happen behind its back.
            if request.is_wanted() {
                return self.begin(request);
            }
        }
    }
}

/// A name of its own for an operation that nobody named.
pub(crate) fn operation_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// Proposes this node's leadership of `term`, and the cluster's settings where none stand in the
/// log yet. Returns when both are applied or the term is over.
async fn establish(handle: &Handle, term: Term, settings: &ClusterSettings) -> Result<(), Stopped> {
    let (cause, operation_id) = handle.cause(term);
    let leadership = proto::LeadershipCommand {
        node_id: handle.raft().node_id(),
        cause: cause.into(),
        operation_id,
        started_at_ms: unix_ms(),
    };
    if !write_in(handle, term, Command::leadership(&leadership)).await? {
        return Ok(());
    }
    if handle.reader().view().settings.index == 0 {
        let configure =
            proto::ConfigureCommand { settings: Some(settings_to_proto(settings)), expected_index: 0 };
        if !write_in(handle, term, Command::configure(&configure)).await? {
            return Ok(());
        }
    }
    let now = handle.now();
    let blockers: Vec<&str> = now.blockers.iter().map(|b| b.check).collect();
    match now.fence {
        Some(fence) => tracing::info!(term, fence, "ready: the fence is published"),
        None => tracing::info!(term, ?blockers, "leading, and not ready"),
    }
    Ok(())
}

/// Writes a command as the leader of `term`; `false` when the term ended first.
async fn write_in(handle: &Handle, term: Term, command: Command) -> Result<bool, Stopped> {
    loop {
        let status = handle.raft().status();
        if status.term != term || status.role != Role::Leader {
            return Ok(false);
        }
        let (done_tx, done_rx) = oneshot::channel();
        handle
            .raft()
            .write(command.clone(), move |result| {
                // The receiver is awaited below; it is gone only when this task is.
                let _ = done_tx.send(result.map(|written| written.outcome));
            })
            .await?;
        match done_rx.await {
            Ok(Ok(Outcome::Led | Outcome::Configured(_) | Outcome::SettingsMoved(_))) => return Ok(true),
            Ok(Ok(outcome)) => unreachable!("a control command came to {outcome:?}"),
            Ok(Err(error)) => {
                tracing::debug!(term, %error, "the first proposal of a leadership is tried again")
            }
            Err(_) => return Ok(false),
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
