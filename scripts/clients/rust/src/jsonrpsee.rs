//! jsonrpsee's own clients, over HTTP and over WebSocket.

use jsonrpsee::{
    core::{
        client::{ClientT, Error, Subscription, SubscriptionClientT},
        params::BatchRequestBuilder,
        traits::ToRpcParams,
    },
    http_client::{HttpClient, HttpClientBuilder},
    rpc_params,
    ws_client::{WsClient, WsClientBuilder},
};
use serde_json::{Value, json, value::RawValue};

use crate::{Answer, Seen};

pub(crate) enum Client {
    Http(HttpClient),
    Ws(WsClient),
}

/// Parameters that are known when the program runs.
#[derive(Clone)]
struct Given(Option<Value>);

impl ToRpcParams for Given {
    fn to_rpc_params(self) -> Result<Option<Box<RawValue>>, serde_json::Error> {
        self.0.map(|p| serde_json::value::to_raw_value(&p)).transpose()
    }
}

impl From<Error> for Seen {
    fn from(e: Error) -> Self {
        let text = format!("{e:?}");
        match e {
            Error::Call(e) => Self {
                code: Some(e.code().into()),
                data: e.data().and_then(|d| serde_json::from_str(d.get()).ok()),
                text,
            },
            _ => Self { code: None, data: None, text },
        }
    }
}

pub(crate) async fn how(url: &str) -> Answer {
    // how:
    let client = HttpClientBuilder::default().build(url)?;
    let leader: Value = client.request("raft_leader", rpc_params![true]).await?;
    Ok(leader) // Error::Call has code, message and data
    // end
}

pub(crate) async fn how_ws(url: &str) -> Answer {
    // how-ws:
    let client = WsClientBuilder::default().build(url).await?;
    let _items: Subscription<Value> =
        client.subscribe("raft_subscribeLeadership", rpc_params![], "raft_unsubscribeLeadership").await?; // a Stream
    let leader: Value = client.request("raft_leader", rpc_params![true]).await?;
    Ok(leader) // Error::Call has code, message and data
    // end
}

pub(crate) async fn connect(url: &str) -> Result<Client, Seen> {
    Ok(match url.starts_with("http") {
        true => Client::Http(HttpClientBuilder::default().build(url)?),
        false => Client::Ws(WsClientBuilder::default().build(url).await?),
    })
}

impl Client {
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Ws(client) if !client.is_connected())
    }

    pub(crate) async fn call(&self, method: &str, params: Option<Value>) -> Answer {
        Ok(match self {
            Self::Http(client) => client.request(method, Given(params)).await?,
            Self::Ws(client) => client.request(method, Given(params)).await?,
        })
    }

    pub(crate) async fn batch(&self, calls: Vec<(String, Option<Value>)>) -> Answer {
        let mut batch = BatchRequestBuilder::new();
        for (method, params) in &calls {
            batch.insert(method, Given(params.clone())).map_err(|e| Seen {
                code: None,
                data: None,
                text: e.to_string(),
            })?;
        }
        let answers = match self {
            Self::Http(client) => client.batch_request::<Value>(batch).await?,
            Self::Ws(client) => client.batch_request::<Value>(batch).await?,
        };
        Ok(answers.into_iter().map(|a| a.unwrap_or_else(|e| json!({"code": e.code()}))).collect())
    }
}

pub(crate) async fn feed(
    url: &str,
    method: &str,
    params: Value,
    take: &mut dyn FnMut(Value) -> bool,
) -> Result<(), Seen> {
    let client = WsClientBuilder::default().build(url).await?;
    let un = if method == "raft_subscribe" {
        "raft_unsubscribe".to_owned()
    } else {
        method.replace("_s", "_unS").replace("_unSubscribe", "_unsubscribe")
    };
    let mut items: Subscription<Value> = client.subscribe(method, Given(Some(params)), &un).await?;
    while let Some(item) = items.next().await {
        let item = item.map_err(|e| Seen { code: None, data: None, text: e.to_string() })?;
        if !take(item) {
            break;
        }
    }
    Ok(())
}
