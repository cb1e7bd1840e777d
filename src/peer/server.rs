//! The peer port: accepts connections, lets each say who it is, and hands it to its session.
//!
//! One task a connection, all bounded in number and in time. A stranger that says nothing, or
//! nothing sensible, costs a socket for the time of a handshake.

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use openraft::{Raft, storage::RaftStateMachine};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::consensus::Answers;
use crate::peer::{
    dial, hello,
    install::Installer,
    network::{Memberships, Network, Shared, lock},
    session,
};
use crate::raft::{SnapshotData, TypeConfig};
use crate::types::{NodeId, proto::Purpose};

/// Connections of one node for one purpose; a newer one ends the oldest, which is most likely one
/// whose other end died without a word. By eye.
const SAME_MAX: usize = 4;

/// Handshakes under way; a newer one ends the oldest, so that a crowd of silent strangers keeps no
/// peer out, whose handshake takes a round trip. By eye.
const HANDSHAKES_MAX: usize = 64;

/// After an error of accept, most likely of too many open files. By eye.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every connection of the port has in common.
pub(super) struct Context<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    pub(super) shared: Arc<Shared>,
    pub(super) raft: Raft<TypeConfig, SM>,
    pub(super) answers: Arc<dyn Answers>,
    pub(super) installer: Installer,
}

impl Network {
    /// Answers other nodes until `shutdown`; every connection is closed when the future returns.
    ///
    /// Also gives the transport its look at the membership: called before raft has anything to say.
    pub(crate) fn serve<SM>(
        &self,
        listener: TcpListener,
        raft: Raft<TypeConfig, SM>,
        answers: Arc<dyn Answers>,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<SM>
    where
        SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
    {
        let shared = Arc::clone(self.shared());
        let metrics = raft.server_metrics();
        shared.set_membership(move || {
            use openraft::async_runtime::watch::WatchReceiver;
            // Two pointers are copied under the guard, which would hold up raft.
            let metrics = metrics.borrow_watched();
            Memberships {
                applied: Arc::clone(&metrics.committed_membership_config),
                newest: Arc::clone(&metrics.membership_config),
            }
        });
        let context = Arc::new(Context { shared, raft, answers, installer: Installer::default() });
        accept_all(listener, context, shutdown)
    }
}

async fn accept_all<SM>(listener: TcpListener, context: Arc<Context<SM>>, shutdown: CancellationToken)
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let crowd = Arc::new(Crowd::new(context.shared.config.connections_max));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = tasks.join_next() => {
                if let Err(e) = ended {
                    let e: tokio::task::JoinError = e;
                    tracing::error!(error = %e, "connection of a peer failed");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "peer port does not accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let accepted = Accepted { stream, from, cancel: shutdown.child_token() };
        let (context, crowd) = (Arc::clone(&context), Arc::clone(&crowd));
        tasks.spawn(async move { handle(&context, &crowd, accepted).await });
    }
    while tasks.join_next().await.is_some() {}
}

/// A connection of somebody who has said nothing yet.
struct Accepted {
    stream: TcpStream,
    from: SocketAddr,
    cancel: CancellationToken,
}

async fn handle<SM>(context: &Arc<Context<SM>>, crowd: &Crowd, accepted: Accepted)
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let Accepted { stream, from, cancel } = accepted;
    if let Err(e) = dial::tune(&stream) {
        tracing::debug!(%from, error = %e, "connection closed before it began");
        return;
    }
    let waiting = crowd.wait(cancel.clone());
    let welcomed = tokio::select! {
        biased;
        () = cancel.cancelled() => return,
        welcomed = hello::welcome(&context.shared, stream, from) => welcomed,
    };
    drop(waiting);
    // What went wrong was said and counted there.
    let Ok(Some(connection)) = welcomed else {
        return;
    };
    let Ok(_permit) = crowd.admitted.try_acquire() else {
        tracing::warn!(%from, peer_id = connection.peer_id as i64, "too many peer connections, one is closed");
        return;
    };
    let purpose = connection.purpose;
    let _place = crowd.enter(connection.peer_id, purpose, cancel.clone());
    tracing::debug!(peer_id = connection.peer_id as i64, ?purpose, %from, "peer connected");
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = session::serve(context, connection) => {}
    }
}

/// Who a place belongs to: somebody who has not said who it is, or a node and its purpose.
type Key = Option<(NodeId, i32)>;

/// Connections, oldest first of each key.
struct Crowd {
    admitted: Semaphore,
    /// Guards a look per connection; a task would be a queue for that.
    places: Mutex<BTreeMap<Key, Vec<(u64, CancellationToken)>>>,
}

/// Given up when dropped.
struct Place<'a> {
    crowd: &'a Crowd,
    key: Key,
    ticket: u64,
}

impl Crowd {
    fn new(connections_max: usize) -> Self {
        Self { admitted: Semaphore::new(connections_max), places: Mutex::default() }
    }

    fn wait(&self, cancel: CancellationToken) -> Place<'_> {
        self.take(None, HANDSHAKES_MAX, cancel)
    }

    fn enter(&self, node_id: NodeId, purpose: Purpose, cancel: CancellationToken) -> Place<'_> {
        self.take(Some((node_id, purpose as i32)), SAME_MAX, cancel)
    }

    fn take(&self, key: Key, max: usize, cancel: CancellationToken) -> Place<'_> {
        let mut places = lock(&self.places);
        let same = places.entry(key).or_default();
        let ticket = same.last().map_or(0, |(ticket, _)| ticket + 1);
        same.push((ticket, cancel));
        if max < same.len() {
            let (_, oldest) = same.remove(0);
            oldest.cancel();
        }
        Place { crowd: self, key, ticket }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut places = lock(&self.crowd.places);
        if let Some(same) = places.get_mut(&self.key) {
            same.retain(|(ticket, _)| *ticket != self.ticket);
            if same.is_empty() {
                places.remove(&self.key);
            }
        }
    }
}
