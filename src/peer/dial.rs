//! Reaching another node: its addresses, their names, a connection.
//!
//! Nothing is cached: names are resolved at each dial and every address of a name is tried. A
//! look-up that hangs holds up nobody but its own caller, for a bounded time.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared as SharedFuture},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::peer::{
    hello::{self, Connection, HelloError},
    metrics::Reason,
    network::Shared,
};
use crate::types::{NodeId, proto::Purpose};

/// An idle connection is probed after, and then each; by eye. A link that is used notices sooner.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// Bytes sent and not acknowledged for so long end a connection; by eye, above every own timeout.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a node could not be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no address is known")]
    NoAddress,
    #[error("{addr}: {error}")]
    Connect { addr: String, error: io::Error },
    #[error("{addr}: {error}")]
    Hello { addr: String, error: HelloError },
}

impl DialError {
    pub(super) fn label(&self) -> Reason {
        match self {
            Self::NoAddress => Reason::NoAddress,
            Self::Connect { .. } => Reason::Connect,
            Self::Hello { error, .. } => error.label(),
        }
    }

    /// Somebody is there and says that nothing listens: its process is gone.
    pub(super) fn is_connection_refused(&self) -> bool {
        matches!(self, Self::Connect { error, .. } if error.kind() == io::ErrorKind::ConnectionRefused)
    }

    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Hello { error: HelloError::Here(_) | HelloError::There(_), .. })
    }
}

/// Tries every address of the node, and every address of each name, until one is admitted.
pub(super) async fn dial(
    shared: &Shared,
    node_id: NodeId,
    purpose: Purpose,
) -> Result<Connection, DialError> {
    let mut failure = DialError::NoAddress;
    for addr in shared.addresses_of(node_id) {
        let found = match resolve(shared, &addr).await {
            Ok(found) => found,
            Err(error) => {
                failure = worse(failure, DialError::Connect { addr, error });
                continue;
            }
        };
        for target in found {
            let tried = async {
                let stream = connect(target, shared.config.connect_timeout)
                    .await
                    .map_err(|error| DialError::Connect { addr: addr.clone(), error })?;
                hello::greet(shared, stream, node_id, purpose)
                    .await
                    .map_err(|error| DialError::Hello { addr: addr.clone(), error })
            };
            match tried.await {
                Ok(connection) => return Ok(connection),
                Err(e) => failure = worse(failure, e),
            }
        }
    }
    Err(failure)
}

/// The one that says more: a refusal by somebody who is there beats an address where nobody is.
fn worse(before: DialError, after: DialError) -> DialError {
    if before.is_refusal() && !after.is_refusal() { before } else { after }
}

/// A connection to an address by name; every address of the name is tried.
pub(super) async fn connect_to(shared: &Shared, addr: &str) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for target in resolve(shared, addr).await? {
        match connect(target, shared.config.connect_timeout).await {
            Ok(stream) => return Ok(stream),
            Err(e) => failure = e,
        }
    }
    Err(failure)
}

async fn connect(target: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(within, TcpStream::connect(target))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {within:?}")))??;
    // A port of this machine where nobody listens can connect to itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    tune(&stream)?;
    Ok(stream)
}

/// For both sides of every connection.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

async fn resolve(shared: &Shared, addr: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(literal) = addr.parse() {
        return Ok(vec![literal]);
    }
    let within = shared.config.connect_timeout;
    match tokio::time::timeout(within, shared.lookups.start(addr)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(e)) => Err(io::Error::new(io::ErrorKind::NotFound, format!("name is not resolved: {e}"))),
        Err(_) => {
            let late = format!("name is not resolved within {within:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, late))
        }
    }
}

type Lookup = SharedFuture<BoxFuture<'static, Result<Vec<SocketAddr>, String>>>;

/// Look-ups under way. One a name: the system's resolver may hang for half a minute and holds a
/// thread meanwhile.
#[derive(Default)]
pub(super) struct Lookups {
    /// Guards a look and a store per dial; a task would be a queue for that.
    running: Arc<Mutex<BTreeMap<String, Lookup>>>,
}

impl Lookups {
    fn start(&self, addr: &str) -> Lookup {
        let mut running = self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(lookup) = running.get(addr) {
            return lookup.clone();
        }
        let name = addr.to_owned();
        let here = Arc::clone(&self.running);
        // A task of its own, so that it ends, and is forgotten, though nobody waits any more.
        let task = tokio::spawn(async move {
            let found = tokio::net::lookup_host(&name).await;
            here.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&name);
            found.map(Iterator::collect).map_err(|e| e.to_string())
        });
        let lookup = task.map(|joined| joined.unwrap_or_else(|e| Err(e.to_string()))).boxed().shared();
        running.insert(addr.to_owned(), lookup.clone());
        lookup
    }
}
