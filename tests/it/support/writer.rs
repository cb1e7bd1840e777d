//! Producers under load, and a record of every attempt.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::Value;

use crate::support::{
    NodeId,
    block::{Answer, Block, Way},
    http::Connection,
    rpc::call_on,
    wait::{LATER, pause, wait_for},
};

/// Bounds every read and write of a producer: a node that was killed answers nothing.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Before a producer looks for the leader again.
const RETRY: Duration = Duration::from_millis(10);

/// Code of a block that does not fit behind the head.
const TAKEN: i64 = -32033;

/// One proposal and what its producer was told.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) height: u64,
    pub(crate) hash: String,
    pub(crate) node: NodeId,
    pub(crate) fence: u64,
    pub(crate) answer: Answer,
}

impl Attempt {
    fn is_acknowledged(&self) -> bool {
        matches!(self.answer, Answer::Acknowledged { .. })
    }
}

/// Every attempt of every producer, in the order in which they ended, and when each did.
#[derive(Default)]
pub(crate) struct History(Mutex<Vec<(Instant, Attempt)>>);

impl History {
    fn lock(&self) -> MutexGuard<'_, Vec<(Instant, Attempt)>> {
        self.0.lock().expect("no holder of the lock panics")
    }

    pub(crate) fn add(&self, attempt: Attempt) {
        self.lock().push((Instant::now(), attempt));
    }

    pub(crate) fn attempts(&self) -> Vec<Attempt> {
        self.lock().iter().map(|(_, attempt)| attempt.clone()).collect()
    }

    pub(crate) fn n_acknowledged(&self) -> usize {
        self.lock().iter().filter(|(_, a)| a.is_acknowledged()).count()
    }

    /// Waits until so many more blocks are acknowledged.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, n: usize) {
        let enough = self.n_acknowledged() + n;
        wait_for("blocks are acknowledged", LATER, || {
            ensure!(enough <= self.n_acknowledged(), "{} of {enough}", self.n_acknowledged());
            Ok(())
        });
    }

    /// When blocks were acknowledged, in order.
    pub(crate) fn acknowledged_at(&self) -> Vec<Instant> {
        self.lock().iter().filter(|(_, a)| a.is_acknowledged()).map(|(at, _)| *at).collect()
    }
}

/// A producer in a thread of its own: finds the ready leader, proposes the next height under its fence,
/// and repeats what is unknown as it is until it knows. Several fight for the same heights with
/// different blocks, as two sequencers would. Dropped, it is stopped and joined.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(
        name: &'static str,
        way: Way,
        endpoints: Vec<(NodeId, String)>,
        history: Arc<History>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = Producer { name, way, endpoints, history, stop: stop.clone(), in_doubt: None };
        let thread = thread::spawn(move || task.run());
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a producer panicked");
        }
    }
}

struct Producer {
    name: &'static str,
    way: Way,
    endpoints: Vec<(NodeId, String)>,
    history: Arc<History>,
    stop: Arc<AtomicBool>,
    /// What may have happened: repeated as it is.
    in_doubt: Option<Block>,
}

/// The ready leader as a producer finds it.
struct Found {
    node: NodeId,
    fence: u64,
    height: u64,
    conn: Connection,
}

impl Producer {
    fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            match find_leader(&self.endpoints) {
                Some(leader) => self.produce(leader),
                None => pause(RETRY),
            }
        }
    }

    /// Proposes to one leader until something else than success comes back.
    fn produce(&mut self, mut leader: Found) {
        let mut height = leader.height + 1;
        while !self.stop.load(Ordering::Relaxed) {
            let block = self.in_doubt.take().unwrap_or_else(|| Block::new(height, self.name));
            let answer = block.propose(&mut leader.conn, self.way, Some(leader.fence));
            self.history.add(Attempt {
                height: block.height,
                hash: block.hash_hex(),
                node: leader.node,
                fence: leader.fence,
                answer: answer.clone(),
            });
            match answer {
                Answer::Acknowledged { .. } => height = block.height + 1,
                // Somebody else's block stands there: go on behind it, on the same connection.
                Answer::Refused { error: Some(e), .. } if e.code == TAKEN && e.data["head"].is_object() => {
                    height = e.data["head"]["height"].as_u64().unwrap_or(leader.height) + 1;
                }
                Answer::Refused { .. } => return,
                Answer::Unknown(_) => {
                    self.in_doubt = Some(block);
                    return;
                }
            }
        }
    }
}

fn find_leader(endpoints: &[(NodeId, String)]) -> Option<Found> {
    endpoints.iter().find_map(|(node, addr)| {
        let mut conn = Connection::open_within(addr, TIMEOUT).ok()?;
        let status = call_on(&mut conn, "raft_status", &Value::Null).ok()?;
        let fence = status["fence"].as_u64().filter(|_| status["ready"] == true)?;
        let height = status["head"]["height"].as_u64().unwrap_or(0);
        Some(Found { node: *node, fence, height, conn })
    })
}
