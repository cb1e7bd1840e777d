//! A subscription over a WebSocket.

use std::time::Duration;

use hyper::{HeaderMap, header::AUTHORIZATION};
use jsonrpsee::{
    core::{
        client::{Error as ClientError, Subscription as Items, SubscriptionClientT},
        params::ObjectParams,
    },
    ws_client::{PingConfig, WsClient, WsClientBuilder},
};
use serde_json::{Map, Value};

use crate::client::{
    endpoint::Endpoint,
    http::{Http, HttpError, root_cause},
    rpc::{CallError, RpcError},
};

/// Largest item: a block of the largest `chain.max_block_bytes` in hex, and what stands around it.
const ITEM_BYTES_MAX: u32 = 64 << 20;
/// Items that wait before the library gives the subscription up, and whoever follows goes on from its
/// position in a new one. By eye: a slow terminal stands the whole program still, so that the node notices and
/// no more is read than tokio lets one task read in a turn, which is 128.
const BUFFER_ITEMS: usize = 512;
/// Between two pings: a node that works says something at least so often.
const PING_EVERY: Duration = Duration::from_secs(3);
/// A node that said nothing for so long hangs. By eye: the largest block at the defaults, in hex, takes less than that
/// at 25 Mbit/s, and no pong comes in the middle of it. Looked at once in each such time.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What to subscribe to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Topic {
    pub(crate) subscribe: &'static str,
    pub(crate) unsubscribe: &'static str,
}

pub(crate) const LEADERSHIP: Topic =
    Topic { subscribe: "raft_subscribeLeadership", unsubscribe: "raft_unsubscribeLeadership" };
pub(crate) const APPLIED: Topic =
    Topic { subscribe: "block_subscribeApplied", unsubscribe: "block_unsubscribeApplied" };

/// Items of one subscription, and the connection they come on.
pub(crate) struct Subscription {
    items: Items<Value>,
    _client: WsClient,
}

impl Subscription {
    pub(crate) async fn open(
        http: &Http,
        endpoint: &Endpoint,
        topic: Topic,
        params: Map<String, Value>,
        within: Duration,
    ) -> Result<Self, CallError> {
        let mut headers = HeaderMap::new();
        if let Some(token) = http.token() {
            headers.insert(AUTHORIZATION, token.clone());
        }
        let client = WsClientBuilder::default()
            .set_headers(headers)
            .connection_timeout(within)
            .request_timeout(within)
            .max_response_size(ITEM_BYTES_MAX)
            .max_buffer_capacity_per_subscription(BUFFER_ITEMS)
            .enable_ws_ping(PingConfig::new().ping_interval(PING_EVERY).inactive_limit(SILENCE_MAX))
            .build(endpoint.ws_url())
            .await
            .map_err(|e| HttpError::NotSent { endpoint: endpoint.clone(), why: root_cause(&e) })?;
        let mut object = ObjectParams::new();
        for (name, value) in params {
            object.insert(&name, value).expect("a JSON value is JSON");
        }
        let items = client
            .subscribe::<Value, _>(topic.subscribe, object, topic.unsubscribe)
            .await
            .map_err(|e| call_error(endpoint, e))?;
        Ok(Self { items, _client: client })
    }

    /// The next item; `None` when the connection is gone, or the node hangs.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            // An item of our own server is JSON; one that is not is passed over.
            if let Ok(item) = self.items.next().await? {
                return Some(item);
            }
        }
    }
}

fn call_error(endpoint: &Endpoint, error: ClientError) -> CallError {
    match error {
        ClientError::Call(object) => {
            let data = object.data().and_then(|raw| serde_json::from_str(raw.get()).ok());
            let error = RpcError {
                code: object.code().into(),
                message: object.message().into(),
                data: data.unwrap_or(Value::Null),
            };
            CallError::Rpc { endpoint: endpoint.clone(), error }
        }
        other => HttpError::Broken { endpoint: endpoint.clone(), why: root_cause(&other) }.into(),
    }
}
