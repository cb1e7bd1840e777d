//! Keeps the control connection to one node.
//!
//! [`Task`] dials, serves a [`Session`] until it ends, and dials again; while somebody asks it does
//! so within a heartbeat interval. A session knows what was asked and gives each answer to whoever
//! asked, if it still waits.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::peer::{
    LinkState,
    clock::{self, Offset, RoundTrip},
    dial::{self, DialError},
    hello::{Connection, wire_reason},
    link::{Answer, Call, CallError, closed},
    metrics::{PeerMetrics, Reason, Rpc},
    network::Shared,
    wire::{Frame, WireError},
};
use crate::telemetry::ticks;
use crate::types::{
    NodeId,
    proto::{self, FrameKind, Purpose, Stamps},
};

/// Unanswered questions remembered; above it the oldest is forgotten. By eye: twenty a second over
/// any patience there is.
const UNANSWERED_MAX: usize = 1024;

/// First pause before dialling again; doubles.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Longest pause while nobody asks.
const IDLE_PAUSE_MAX: Duration = Duration::from_millis(500);

/// A connection in use is pinged as often: half of what a removed member may take to say so (design 11).
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Heartbeats answered late in a row that are worth a warning. By eye: a second at the defaults is
/// no hiccup.
const LATE_IN_A_ROW: u32 = 20;

/// A question that was sent.
struct Sent {
    rpc: Rpc,
    at: Instant,
    at_unix_ns: u64,
    answer_tx: oneshot::Sender<Answer>,
}

/// Why a connection ended.
enum End {
    /// The node is no peer any more, or this node stops.
    Cancelled,
    /// It has another address.
    Moved,
    /// Pings are not answered.
    Dead(Duration),
    Broken(WireError),
}

/// Keeps the control connection to one node.
pub(super) struct Task {
    shared: Arc<Shared>,
    node_id: NodeId,
    ends: Ends,
    metrics: Arc<PeerMetrics>,
    /// Taken from the queue while there was no connection.
    waiting: Vec<Call>,
    clock: Offset,
    /// Heartbeats answered after openraft had given them up, in a row.
    n_late: u32,
}

/// The task's ends of what it shares with its [`crate::peer::link::Link`].
pub(super) struct Ends {
    pub(super) call_rx: mpsc::Receiver<Call>,
    pub(super) state_tx: watch::Sender<LinkState>,
    pub(super) generation_tx: watch::Sender<u64>,
    pub(super) cancel: CancellationToken,
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, node_id: NodeId, metrics: Arc<PeerMetrics>, ends: Ends) -> Self {
        Self { shared, node_id, ends, metrics, waiting: Vec::new(), clock: Offset::default(), n_late: 0 }
    }

    pub(super) async fn run(mut self) {
        let cancel = self.ends.cancel.clone();
        let mut n_failed = 0;
        loop {
            let dialled = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                dialled = dial::dial(&self.shared, self.node_id, Purpose::Control) => dialled,
            };
            match dialled {
                Ok(connection) => {
                    self.set_state(LinkState::Connected);
                    let connected_at = Instant::now();
                    let addrs = self.shared.addresses_of(self.node_id);
                    let mut session = Session::new(&mut self, connection, addrs);
                    let end = session.run().await;
                    session.fail_all();
                    self.on_end(end);
                    // One that is dropped as soon as it is there is no success.
                    let lasted = self.shared.config.heartbeat_timeout < connected_at.elapsed();
                    n_failed = if lasted { 0 } else { n_failed + 1 };
                }
                Err(e) => {
                    n_failed += 1;
                    self.on_dial_failed(&e);
                }
            }
            if cancel.is_cancelled() || !self.pause(n_failed, &cancel).await {
                break;
            }
        }
        self.set_state(LinkState::Unreachable);
        self.fail_waiting(&closed("the node is no peer any more"));
    }

    fn set_state(&self, state: LinkState) {
        self.metrics.set_connected(state == LinkState::Connected);
        self.ends.state_tx.send_if_modified(|old| std::mem::replace(old, state) != state);
    }

    fn on_end(&mut self, end: End) {
        let node_id = self.node_id as i64;
        match end {
            End::Cancelled => {}
            End::Moved => {
                tracing::info!(peer_id = node_id, "peer has another address");
                self.give_up_connections();
            }
            End::Dead(after) => {
                self.metrics.failed(Rpc::Ping, Reason::Timeout);
                tracing::warn!(peer_id = node_id, ?after, "peer does not answer, connection is given up");
                self.give_up_connections();
            }
            End::Broken(e) => tracing::info!(peer_id = node_id, error = %e, "connection to peer broke"),
        }
        self.set_state(LinkState::Unreachable);
    }

    /// openraft drops an answer that takes longer than the interval, and a leader without answers
    /// loses its lease.
    fn on_heartbeat(&mut self, took: Duration) {
        let interval = self.shared.config.heartbeat_interval;
        self.n_late = if interval < took { self.n_late.saturating_add(1) } else { 0 };
        if self.n_late == LATE_IN_A_ROW {
            tracing::warn!(
                peer_id = self.node_id as i64,
                ?took,
                ?interval,
                "heartbeats are answered too late: raft.heartbeat_interval is below the round trip, or the node stands still"
            );
        }
    }

    fn give_up_connections(&self) {
        self.ends.generation_tx.send_modify(|generation| *generation += 1);
    }

    fn on_dial_failed(&mut self, error: &DialError) {
        let state = match error {
            e if e.is_connection_refused() => LinkState::Gone,
            e if e.is_refusal() => LinkState::Refused,
            _ => LinkState::Unreachable,
        };
        self.set_state(state);
        tracing::debug!(peer_id = self.node_id as i64, error = %error, "peer is not reachable");
        let failure = match error {
            DialError::NoAddress => CallError::NoAddress,
            e => CallError::Unreachable { why: e.to_string(), reason: e.label() },
        };
        while let Ok(call) = self.ends.call_rx.try_recv() {
            self.waiting.push(call);
        }
        self.fail_waiting(&failure);
    }

    fn fail_waiting(&mut self, failure: &CallError) {
        for call in self.waiting.drain(..) {
            // Whoever asked may have gone.
            let _ = call.answer_tx.send(Err(failure.clone()));
        }
    }

    /// Short while somebody asks. `false`: cancelled.
    async fn pause(&mut self, n_failed: u32, cancel: &CancellationToken) -> bool {
        if n_failed == 0 {
            return true;
        }
        let doubled = PAUSE_MIN * 2u32.pow(n_failed.min(10) - 1);
        let failed_at = tokio::time::Instant::now();
        // A question asked meanwhile is answered, or fails, within one heartbeat interval.
        let short = failed_at + doubled.min(self.shared.config.heartbeat_interval.max(PAUSE_MIN));
        let long = failed_at + doubled.min(IDLE_PAUSE_MAX);
        tokio::select! {
            biased;
            () = cancel.cancelled() => return false,
            () = tokio::time::sleep_until(short) => {}
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return false,
            call = self.ends.call_rx.recv() => self.waiting.extend(call),
            () = tokio::time::sleep_until(long) => {}
        }
        true
    }
}

/// One connection of a [`Task`], from its handshake to its end.
struct Session<'a> {
    task: &'a mut Task,
    connection: Connection,
    /// Those it was dialled with.
    addrs: Vec<String>,
    sent: BTreeMap<u64, Sent>,
    next_id: u64,
    heard_at: Instant,
    /// The oldest one not answered.
    pinged: Option<(u64, Instant, u64)>,
    /// The last one that was.
    ponged_at: Option<Instant>,
}

impl<'a> Session<'a> {
    fn new(task: &'a mut Task, connection: Connection, addrs: Vec<String>) -> Self {
        Self {
            task,
            connection,
            addrs,
            sent: BTreeMap::new(),
            next_id: 1,
            heard_at: Instant::now(),
            pinged: None,
            ponged_at: None,
        }
    }

    async fn run(&mut self) -> End {
        for call in std::mem::take(&mut self.task.waiting) {
            self.ask(call);
        }
        let cancel = self.task.ends.cancel.clone();
        // Four looks per timeout find a dead connection within seven quarters of it.
        let mut looks = ticks::every(self.task.shared.config.heartbeat_timeout / 4);
        loop {
            let Connection { reader, outbox, .. } = &mut self.connection;
            tokio::select! {
                // What was received comes first: a node that was paused itself must not take its
                // peers for dead before it looked.
                biased;
                () = cancel.cancelled() => return End::Cancelled,
                frame = reader.next() => match frame {
                    Ok(frame) => self.on_frame(frame),
                    Err(e) => return End::Broken(e),
                },
                call = self.task.ends.call_rx.recv() => match call {
                    Some(call) => if let Some(end) = self.on_call(call) {
                        return end;
                    },
                    None => return End::Cancelled,
                },
                flushed = outbox.flush(), if !outbox.is_empty() => if let Err(e) = flushed {
                    return End::Broken(e);
                },
                _ = looks.tick() => if let Some(end) = self.on_tick() {
                    return end;
                },
            }
        }
    }

    /// All that wait leave together.
    fn on_call(&mut self, call: Call) -> Option<End> {
        let mut next = Some(call);
        while let Some(call) = next {
            // A ping proves that the node is reached at the addresses in force.
            if call.rpc == Rpc::Ping && self.has_moved() {
                self.task.waiting.push(call);
                return Some(End::Moved);
            }
            self.ask(call);
            next = self.task.ends.call_rx.try_recv().ok();
        }
        None
    }

    fn has_moved(&self) -> bool {
        self.task.shared.addresses_of(self.task.node_id) != self.addrs
    }

    fn ask(&mut self, call: Call) {
        // Nobody waits any more: a heartbeat of before the connection was there.
        if call.answer_tx.is_closed() {
            return;
        }
        let id = self.take_id();
        self.connection.outbox.put_encoded(call.kind, id, &call.payload);
        let sent = Sent {
            rpc: call.rpc,
            at: Instant::now(),
            at_unix_ns: clock::unix_ns(),
            answer_tx: call.answer_tx,
        };
        self.sent.insert(id, sent);
        if UNANSWERED_MAX < self.sent.len() {
            self.sent.pop_first();
        }
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn on_frame(&mut self, frame: Frame) {
        self.heard_at = Instant::now();
        match frame.kind() {
            Some(FrameKind::Pong) if self.pinged.is_some_and(|(id, ..)| id == frame.id) => {
                self.on_pong(frame)
            }
            Some(kind) => match self.sent.remove(&frame.id) {
                Some(sent) => self.on_answer(sent, kind, frame),
                None => tracing::debug!(id = frame.id as i64, "answer to nothing that was asked"),
            },
            None => self.task.metrics.failed(Rpc::Heartbeat, Reason::Malformed),
        }
    }

    fn on_answer(&mut self, sent: Sent, kind: FrameKind, frame: Frame) {
        // Late ones too: how late they are is what one wants to see.
        let took = sent.at.elapsed();
        self.task.metrics.answered(sent.rpc, took);
        if sent.rpc == Rpc::Heartbeat {
            self.task.on_heartbeat(took);
        }
        if kind == FrameKind::AppendAnswer
            && let Ok(answer) = frame.clone().decode::<proto::AppendAnswer>()
        {
            self.on_stamps(sent.at_unix_ns, answer.stamps);
        }
        let answer = match kind {
            FrameKind::Error => match frame.decode::<proto::Error>() {
                Ok(error) => Err(CallError::Refused(error)),
                Err(e) => Err(CallError::Unreachable { why: e.to_string(), reason: wire_reason(&e) }),
            },
            _ => Ok(frame),
        };
        // Too late for whoever asked: dropped, and nothing else.
        let _ = sent.answer_tx.send(answer);
    }

    fn on_pong(&mut self, frame: Frame) {
        let Some((_, at, at_unix_ns)) = self.pinged.take() else {
            return;
        };
        self.ponged_at = Some(Instant::now());
        self.task.metrics.answered(Rpc::Ping, at.elapsed());
        if let Ok(pong) = frame.decode::<proto::Pong>() {
            self.on_stamps(at_unix_ns, pong.stamps);
            if pong.not_member_version != 0 {
                self.task.shared.notices.not_member(self.task.node_id, pong.not_member_version);
            }
        }
    }

    fn on_stamps(&mut self, sent_at_ns: u64, stamps: Option<Stamps>) {
        let Some(stamps) = stamps else {
            return;
        };
        let trip = RoundTrip {
            sent_at_ns,
            received_at_ns: stamps.received_at_ns,
            answered_at_ns: stamps.answered_at_ns,
            returned_at_ns: clock::unix_ns(),
        };
        if let Some(seconds) = self.task.clock.observe(trip) {
            self.task.metrics.set_clock_offset(seconds);
        }
    }

    fn on_tick(&mut self) -> Option<End> {
        if self.has_moved() {
            return Some(End::Moved);
        }
        let patience = self.task.shared.config.heartbeat_timeout;
        if let Some((_, at, _)) = self.pinged {
            let silent = self.heard_at.max(at).elapsed();
            return (patience <= silent).then_some(End::Dead(silent));
        }
        let is_in_use = self.heard_at.elapsed() < patience / 4;
        // Now and then on a connection in use too: a removed member learns of it from the answer.
        let is_told = self.ponged_at.is_some_and(|at| at.elapsed() < TOLD_EVERY);
        if is_in_use && is_told {
            return None;
        }
        let id = self.take_id();
        let at_unix_ns = clock::unix_ns();
        self.pinged = Some((id, Instant::now(), at_unix_ns));
        self.connection.outbox.put(FrameKind::Ping, id, &proto::Ping { sent_at_ns: at_unix_ns });
        None
    }

    fn fail_all(&mut self) {
        for (_, sent) in std::mem::take(&mut self.sent) {
            let _ = sent.answer_tx.send(Err(closed("the connection broke")));
        }
    }
}
