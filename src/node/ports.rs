//! The ports a node listens at.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::config;
use crate::node::StartError;

/// Taken before anybody is told of the node.
pub(super) struct Bound {
    pub(super) peer: TcpListener,
    pub(super) api: TcpListener,
    pub(super) metrics: Option<TcpListener>,
}

impl Bound {
    pub(super) async fn bind(settings: &config::Settings) -> Result<Self, StartError> {
        Ok(Self {
            peer: bind("peer.listen", settings.peer.listen).await?,
            api: bind("api.listen", settings.api.listen).await?,
            metrics: match settings.metrics.listen {
                Some(addr) => Some(bind("metrics.listen", addr).await?),
                None => None,
            },
        })
    }
}

async fn bind(key: &str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr)
        .await
        .map_err(|e| StartError { exit_code: 1, message: format!("{key} {addr} cannot be bound: {e}") })
}
