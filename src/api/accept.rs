//! The accept loop: connections, bounded in total and by address, and their graceful end.
//!
//! Beyond the bounds a connection is still taken, as an *extra* one: only probes and `/metrics` are
//! answered on it, once, and the oldest extra one goes when there are too many. So neither a client that
//! leaks connections nor a flood can hide a node from who watches it.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use prometheus::IntGauge;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::api::socket::{Connection, Socket};

/// Connections beyond the bounds, for probes and scrapes. By eye: each is answered within milliseconds.
const EXTRA_MAX: usize = 64;
/// An extra connection is over after so long whatever it does: a scrape takes less.
const EXTRA_FOR: Duration = Duration::from_secs(5);
/// A new connection must have sent its first request by then.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// The header of each later request, counted from the answer before: also how long a connection may be
/// kept idle. Above the idle times of the usual clients' pools, so that they close first.
const HEADER_WITHIN: Duration = Duration::from_secs(120);
/// What open requests are given when the API stops: the outcomes of proposals are known by then, so this
/// is for answers on their way. Below what `node` gives its servers.
pub(crate) const DRAIN_FOR: Duration = Duration::from_millis(300);
/// After an accept that failed for want of descriptors.
const RETRY_ACCEPT_AFTER: Duration = Duration::from_millis(50);
/// Streams of one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 256;
/// Windows of HTTP/2: a block of 1 MiB passes without waiting for the other side.
const H2_STREAM_WINDOW: u32 = 1 << 20;
const H2_CONNECTION_WINDOW: u32 = 4 << 20;
/// Pings of HTTP/2: a peer that is gone is noticed.
const H2_PING_EVERY: Duration = Duration::from_secs(20);

/// Answers requests.
pub(crate) trait Serve: Send + Sync + 'static {
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) total: usize,
    /// 0: none.
    pub(crate) per_address: usize,
}

impl Bounds {
    /// Of `metrics.listen`. By eye: some scrapers, and a probe each second.
    pub(crate) fn for_metrics() -> Self {
        Self { total: 64, per_address: 0 }
    }
}

/// The places that connections take.
struct Slots {
    bounds: Bounds,
    /// A lock, held for a few stores: connections come and go on every thread.
    taken: Mutex<Taken>,
    open: IntGauge,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
    /// Oldest first; each ends when its token is cancelled.
    extra: VecDeque<(u64, CancellationToken)>,
    extra_id: u64,
}

impl Slots {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take(self: &Arc<Self>, address: IpAddr) -> (Slot, CancellationToken) {
        let end = CancellationToken::new();
        let mut taken = self.taken();
        let of_address = taken.by_address.get(&address).copied().unwrap_or(0);
        let has_room = taken.total < self.bounds.total
            && (self.bounds.per_address == 0 || of_address < self.bounds.per_address);
        let extra = if has_room {
            taken.total += 1;
            taken.by_address.insert(address, of_address + 1);
            None
        } else {
            if EXTRA_MAX <= taken.extra.len()
                && let Some((_, oldest)) = taken.extra.pop_front()
            {
                oldest.cancel();
            }
            taken.extra_id += 1;
            let id = taken.extra_id;
            taken.extra.push_back((id, end.clone()));
            Some(id)
        };
        drop(taken);
        self.open.inc();
        (Slot { slots: self.clone(), address, extra }, end)
    }
}

/// A connection's place; given back when dropped.
pub(crate) struct Slot {
    slots: Arc<Slots>,
    address: IpAddr,
    extra: Option<u64>,
}

impl Slot {
    pub(crate) fn is_extra(&self) -> bool {
        self.extra.is_some()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        match self.extra {
            Some(id) => taken.extra.retain(|(other, _)| *other != id),
            None => {
                taken.total -= 1;
                if let Some(n) = taken.by_address.get_mut(&self.address) {
                    *n -= 1;
                    if *n == 0 {
                        taken.by_address.remove(&self.address);
                    }
                }
            }
        }
        drop(taken);
        self.slots.open.dec();
    }
}

/// Accepts until `stop`, then waits a moment for open requests.
pub(crate) async fn run<S: Serve>(
    listener: TcpListener,
    bounds: Bounds,
    serve: Arc<S>,
    open: IntGauge,
    stop: CancellationToken,
) {
    let slots = Arc::new(Slots { bounds, taken: Mutex::default(), open });
    let builder = Arc::new(builder());
    let (tasks, kill) = (TaskTracker::new(), CancellationToken::new());
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => {
                is_failing = false;
                let (slot, end) = slots.take(remote.ip().to_canonical());
                let ending = Ending { stop: stop.clone(), kill: kill.clone(), end };
                let connection = Connection::new(remote, slot);
                tasks.spawn(connected(stream, connection, serve.clone(), builder.clone(), ending));
            }
            Err(e) => {
                if !is_failing {
                    tracing::warn!(error = %e, "connections to the API cannot be accepted");
                }
                is_failing = true;
                tokio::time::sleep(RETRY_ACCEPT_AFTER).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(DRAIN_FOR, tasks.wait()).await.is_err() {
        kill.cancel();
        tasks.wait().await;
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // A client that closes its side is taken to be gone: it could not be told from one that is, whose event stream
    // and whose turns would be held until something is written to it.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_WITHIN);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .keep_alive_interval(H2_PING_EVERY);
    builder
}

/// What ends a connection from this side.
struct Ending {
    /// Gracefully: what is being answered is answered.
    stop: CancellationToken,
    kill: CancellationToken,
    /// An extra connection had to make room.
    end: CancellationToken,
}

async fn connected<S: Serve>(
    stream: TcpStream,
    connection: Connection,
    serve: Arc<S>,
    builder: Arc<auto::Builder<TokioExecutor>>,
    ending: Ending,
) {
    let connection = Arc::new(connection);
    let of_requests = connection.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        of_requests.on_request();
        let answer = serve.clone().handle(request, of_requests.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(Socket::new(stream, connection.clone()));
    let mut conn = std::pin::pin!(builder.serve_connection_with_upgrades(io, service));
    let mut limit = std::pin::pin!(time_limit(&connection));
    let mut is_stopping = false;
    loop {
        tokio::select! {
            // How a connection ended is of interest to nobody but its client.
            _ = conn.as_mut() => return,
            () = ending.kill.cancelled() => return,
            () = ending.end.cancelled() => return,
            () = limit.as_mut() => return,
            () = ending.stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                conn.as_mut().graceful_shutdown();
            }
        }
    }
}

async fn time_limit(connection: &Connection) {
    if connection.is_extra {
        return tokio::time::sleep(EXTRA_FOR).await;
    }
    tokio::time::sleep(FIRST_REQUEST_WITHIN).await;
    if connection.has_request() {
        std::future::pending::<()>().await;
    }
}

/// A place of nobody's loop.
#[cfg(test)]
pub(crate) fn lone_slot() -> Slot {
    let bounds = Bounds { total: 1, per_address: 0 };
    let open = IntGauge::new("open", "open").expect("a name of letters");
    let slots = Arc::new(Slots { bounds, taken: Mutex::default(), open });
    slots.take(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)).0
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);

    fn slots(total: usize, per_address: usize) -> Arc<Slots> {
        let open = IntGauge::new("open", "open").unwrap();
        Arc::new(Slots { bounds: Bounds { total, per_address }, taken: Mutex::default(), open })
    }

    #[test]
    fn beyond_either_bound_a_connection_is_extra() {
        let slots = slots(3, 2);
        let held: Vec<Slot> = [A, A, A, B, B].into_iter().map(|ip| slots.take(ip).0).collect();
        let extra: Vec<bool> = held.iter().map(Slot::is_extra).collect();
        assert_eq!(extra, [false, false, true, false, true]);
        assert_eq!(slots.open.get(), 5);
        drop(held);
        assert_eq!(slots.open.get(), 0);
        assert!(slots.taken().by_address.is_empty());
        assert!(!slots.take(A).0.is_extra());
    }

    #[test]
    fn the_oldest_extra_connection_makes_room() {
        let slots = slots(0, 0);
        let held: Vec<_> = (0..=EXTRA_MAX).map(|_| slots.take(A)).collect();
        let ended: Vec<usize> = (0..held.len()).filter(|i| held[*i].1.is_cancelled()).collect();
        assert_eq!(ended, [0]);
        assert_eq!(slots.taken().extra.len(), EXTRA_MAX);
    }
}
