//! Load by one request a block, over kept connections.
//!
//! Heights come from one counter in the order of sending. A refused block is sent again, the same bytes:
//! a hole would make every later one a gap.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use prost::Message;
use serde::Deserialize;
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore},
    task::JoinSet,
    time::Instant,
};

use crate::cli::bench::schedule::Pacer;
use crate::cli::bench::{CONNECTIONS_MAX, DRAIN, NO_LEADER_MAX, Run, stream};
use crate::cli::blocks::Maker;
use crate::cli::exit::Failure;
use crate::cli::out;
use crate::client::cluster::ReadyLeader;
use crate::client::http::{Answer, Ask, HttpError};
use crate::client::producer::{Next, Outlook, SILENCE_MAX};
use crate::client::rpc::RpcError;
use crate::client::wire::{self, Acked};
use crate::types::Height;
use crate::types::proto::RaftBlockState;

/// Before a refused block is sent again: a few round trips.
const AGAIN: Duration = Duration::from_millis(5);

/// What a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Protobuf,
    JsonRpc,
}

/// What all workers share.
struct Shared {
    run: Arc<Run>,
    form: Form,
    maker: Maker,
    /// The newest height and timestamp that were given out.
    last: Mutex<(Height, u64)>,
    /// One worker looks for the new leader, the others wait for it.
    leader: AsyncMutex<ReadyLeader>,
    /// Open loop: arrivals that nobody has taken.
    due: Semaphore,
    taken: AtomicU64,
}

/// Until the run is over and its blocks are answered.
pub(crate) async fn send(
    run: &Arc<Run>,
    maker: Maker,
    pacer: Option<&Pacer>,
    form: Form,
) -> Result<(), Failure> {
    let n_workers = run.in_flight.min(CONNECTIONS_MAX);
    if n_workers < run.in_flight && !run.arrivals.is_open() {
        out::note(&format!("{n_workers} in flight: one request a connection, and so many of these"));
    }
    let leader = find_leader(run).await?;
    let look = Instant::now() + Duration::from_secs(5);
    let head = run.cluster.status_at(&leader.endpoint, look).await?.head;
    let shared = Arc::new(Shared {
        run: Arc::clone(run),
        form,
        maker,
        last: Mutex::new(head.as_ref().map_or((0, 0), |h| (h.height, h.timestamp))),
        leader: AsyncMutex::new(leader),
        due: Semaphore::new(0),
        taken: AtomicU64::new(0),
    });
    if head.is_none() {
        // The very first block may have any height, so none may overtake it.
        shared.propose(shared.next(), Instant::now()).await?;
    }
    let mut workers = JoinSet::new();
    for _ in 0..n_workers {
        workers.spawn(work(Arc::clone(&shared)));
    }
    let pace = async {
        let Some(pacer) = pacer else { return std::future::pending().await };
        let mut given = 0;
        loop {
            pacer.woken().await;
            let due = run.arrivals.count_before(Instant::now().min(run.end));
            shared.due.add_permits((due - given) as usize);
            given = due;
        }
    };
    let work = async {
        while let Some(done) = workers.join_next().await {
            done.map_err(|e| Failure::failed(format!("a worker failed: {e}")))??;
        }
        Ok(())
    };
    tokio::select! {
        done = work => done,
        () = pace => Ok(()),
        () = tokio::time::sleep_until(run.end + DRAIN) => Ok(()),
    }
}

async fn find_leader(run: &Run) -> Result<ReadyLeader, Failure> {
    let end = Instant::now() + NO_LEADER_MAX;
    while Instant::now() < end {
        let look = Instant::now() + Duration::from_millis(500);
        if let Some(leader) = run.cluster.ready_leader(look).await {
            return Ok(leader);
        }
        tokio::time::sleep(AGAIN).await;
    }
    Err(Failure::failed(format!("no leader was ready within {NO_LEADER_MAX:?}")))
}

async fn work(shared: Arc<Shared>) -> Result<(), Failure> {
    let run = Arc::clone(&shared.run);
    tokio::time::sleep_until(run.arrivals.start()).await;
    loop {
        let due = if run.arrivals.is_open() {
            let waited = tokio::time::timeout_at(run.end, shared.due.acquire()).await;
            let Ok(Ok(permit)) = waited else { return Ok(()) };
            permit.forget();
            let n = shared.taken.fetch_add(1, Ordering::Relaxed);
            run.arrivals.due(n).expect("an open loop has times")
        } else {
            let now = Instant::now();
            if run.end <= now {
                return Ok(());
            }
            now
        };
        let block = shared.next();
        shared.propose(block, due).await?;
    }
}

/// For the answer to a request of so many bytes: a second more for each MiB, on a slow network.
fn answer_max(bytes: usize) -> Duration {
    SILENCE_MAX + Duration::from_secs((bytes >> 20) as u64)
}

impl Shared {
    fn next(&self) -> RaftBlockState {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let mut last = self.last.lock().expect("counting does not panic");
        *last = (last.0 + 1, now.max(last.1 + 1));
        let next = Next { height: last.0, timestamp: last.1, parent_hash: Bytes::new() };
        self.maker.block(next)
    }

    /// Until the block is acknowledged. An error is final: without this block none goes on.
    async fn propose(&self, block: RaftBlockState, due: Instant) -> Result<(), Failure> {
        let body = match self.form {
            Form::Protobuf => Bytes::from(block.encode_to_vec()),
            Form::JsonRpc => Bytes::from(json(&block)),
        };
        loop {
            let leader = self.leader.lock().await.clone();
            let refused = match self.ask(&leader, body.clone()).await {
                Ok(acked) => {
                    self.run.tally().acked(due, Instant::now(), acked.duplicate);
                    return Ok(());
                }
                Err(refused) => refused,
            };
            self.run.tally().refused(&refused.reason);
            if let Some(why) = stream::words(refused.outlook) {
                return Err(Failure::failed(format!("block {}: {}; {why}", block.height, refused.why)));
            }
            if refused.is_elsewhere {
                self.follow(&leader).await?;
            } else {
                tokio::time::sleep(refused.wait).await;
            }
        }
    }

    /// Finds the leader that comes after `former`, once for all workers.
    async fn follow(&self, former: &ReadyLeader) -> Result<(), Failure> {
        let mut leader = self.leader.lock().await;
        if *leader == *former {
            *leader = find_leader(&self.run).await?;
            if *leader == *former {
                tokio::time::sleep(AGAIN).await;
            } else {
                self.run.tally().reconnects += 1;
            }
        }
        Ok(())
    }

    async fn ask(&self, leader: &ReadyLeader, body: Bytes) -> Result<Acked, Refused> {
        let http = self.run.cluster.http();
        let within = answer_max(body.len());
        let ask = match self.form {
            Form::Protobuf => {
                let mut ask = Ask::post("/v1/blocks", "application/x-protobuf", body);
                let fence = hyper::header::HeaderName::from_static("blockraft-fence");
                ask.headers.push((fence, leader.fence.into()));
                ask
            }
            Form::JsonRpc => Ask::post("/", "application/json", body),
        };
        match http.ask(&leader.endpoint, ask, within).await {
            Ok(answer) => read(&answer),
            Err(e) => Err(Refused::from(e)),
        }
    }
}

/// Why a block was not acknowledged.
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    why: String,
    reason: String,
    outlook: Outlook,
    /// Another node may lead.
    is_elsewhere: bool,
    /// Before the block is sent again.
    wait: Duration,
}

impl From<HttpError> for Refused {
    fn from(error: HttpError) -> Self {
        Self {
            why: error.to_string(),
            reason: "disconnected".into(),
            outlook: Outlook::Again,
            is_elsewhere: true,
            wait: AGAIN,
        }
    }
}

impl From<RpcError> for Refused {
    fn from(error: RpcError) -> Self {
        Self {
            why: error.to_string(),
            reason: error.reason(),
            wait: error.retry_after().unwrap_or(AGAIN),
            outlook: Outlook::of(&error),
            is_elsewhere: [
                "notLeader",
                "noLeader",
                "fenced",
                "leadershipLost",
                "shuttingDown",
                "paused",
                "notReady",
            ]
            .iter()
            .any(|r| error.is(r)),
        }
    }
}

/// Both forms of answer: a result or an error, in an envelope or bare.
fn read(answer: &Answer) -> Result<Acked, Refused> {
    #[derive(Deserialize)]
    struct Either {
        #[serde(default)]
        error: Option<RpcError>,
        #[serde(default)]
        result: Option<Acked>,
    }
    let garbled = |why: String| Refused {
        why,
        reason: "garbled".into(),
        outlook: Outlook::Unfit,
        is_elsewhere: false,
        wait: AGAIN,
    };
    if answer.status.is_success()
        && let Ok(acked) = serde_json::from_slice::<Acked>(&answer.body)
        && acked.index != 0
    {
        return Ok(acked);
    }
    match serde_json::from_slice::<Either>(&answer.body) {
        Ok(Either { error: Some(error), .. }) => Err(error.into()),
        Ok(Either { error: None, result: Some(acked) }) => Ok(acked),
        Ok(Either { error: None, result: None }) | Err(_) => Err(garbled(format!("HTTP {}", answer.status))),
    }
}

/// `block_propose` of a block. Written by hand: a value of 2 MiB of hex would be built and walked for nothing.
fn json(block: &RaftBlockState) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"block_propose","params":{{"block":{{"height":{},"hash":"{}","timestamp":"{}","header":"{}","data":"{}"}}}}}}"#,
        block.height,
        wire::hex(&block.hash),
        block.timestamp,
        wire::hex(&block.header),
        wire::hex(&block.data)
    )
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    fn answer(status: u16, body: &'static str) -> Answer {
        Answer { status: StatusCode::from_u16(status).expect("a status"), body: body.into() }
    }

    #[test]
    fn answers_of_both_paths() {
        let bare = r#"{"height":7,"hash":"0x00","term":2,"index":9,"duplicate":false,"traceId":"x"}"#;
        assert_eq!(read(&answer(200, bare)).expect("acked").index, 9);
        let envelope =
            r#"{"jsonrpc":"2.0","id":1,"result":{"height":7,"term":2,"index":9,"duplicate":true}}"#;
        assert!(read(&answer(200, envelope)).expect("acked").duplicate);
        let gap = r#"{"error":{"code":-32033,"message":"m","data":{"kind":"refused","reason":"gap"}}}"#;
        let refused = read(&answer(409, gap)).expect_err("refused");
        assert_eq!(
            (refused.reason.as_str(), refused.outlook, refused.is_elsewhere),
            ("gap", Outlook::Again, false)
        );
        let moved =
            r#"{"error":{"code":-32030,"message":"m","data":{"kind":"refused","reason":"notLeader"}}}"#;
        assert!(read(&answer(421, moved)).expect_err("refused").is_elsewhere);
        let unfit = |status, body| read(&answer(status, body)).expect_err("refused").outlook;
        assert_eq!(unfit(502, "<html>"), Outlook::Unfit);
        assert_eq!(
            unfit(413, r#"{"error":{"code":-32007,"message":"m"}}"#),
            Outlook::Unfit,
            "over the limit"
        );
        let stale = r#"{"error":{"code":-32033,"message":"m","data":{"kind":"refused","reason":"stale"}}}"#;
        assert_eq!(unfit(409, stale), Outlook::Contested);
    }

    #[test]
    fn a_block_as_json_is_what_the_method_takes() {
        let maker = Maker::new(300, false);
        let block = maker.block(Next { height: 7, timestamp: 9, parent_hash: Bytes::new() });
        let value: serde_json::Value = serde_json::from_str(&json(&block)).expect("JSON");
        let params = &value["params"]["block"];
        assert_eq!((params["height"].as_u64(), params["timestamp"].as_str()), (Some(7), Some("9")));
        assert_eq!(params["data"].as_str().and_then(wire::bytes), Some(block.data));
    }
}
