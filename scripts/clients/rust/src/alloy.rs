//! alloy's RPC client, over HTTP and over WebSocket.

use alloy_json_rpc::RpcError;
use alloy_primitives::B256;
use alloy_rpc_client::{RpcClient, WsConnect};
use serde_json::{Value, value::RawValue};

use crate::{Answer, Seen};

pub(crate) struct Client(RpcClient);

impl<E: std::fmt::Display + std::fmt::Debug> From<RpcError<E, Box<RawValue>>> for Seen {
    fn from(e: RpcError<E, Box<RawValue>>) -> Self {
        let text = format!("{e:?}");
        match e {
            RpcError::ErrorResp(e) => Self {
                code: Some(e.code),
                data: e.data.and_then(|d| serde_json::from_str(d.get()).ok()),
                text,
            },
            _ => Self { code: None, data: None, text },
        }
    }
}

pub(crate) async fn how(url: &str) -> Answer {
    // how:
    let client = RpcClient::new_http(url.parse().expect("a URL"));
    let leader: Value = client.request("raft_leader", (true,)).await?;
    Ok(leader) // RpcError::ErrorResp has code, message and data
    // end
}

pub(crate) async fn how_ws(url: &str) -> Answer {
    // how-ws:
    let client = RpcClient::connect_pubsub(WsConnect::new(url)).await?;
    let mut subscribe = client.request::<_, B256>("raft_subscribe", ("leadership",)); // the topic as a parameter: alloy tells subscriptions apart by those alone
    subscribe.set_is_subscription();
    let mut items = client.get_subscription::<Value>(subscribe.await?).await; // items.recv()
    // end
    let _ = items.recv().await;
    Ok(client.request("raft_leader", (true,)).await?)
}

pub(crate) async fn connect(url: &str) -> Result<Client, Seen> {
    Ok(Client(match url.starts_with("http") {
        true => RpcClient::new_http(url.parse().expect("a URL")),
        false => RpcClient::connect_pubsub(WsConnect::new(url)).await?,
    }))
}

impl Client {
    pub(crate) async fn call(&self, method: &str, params: Option<Value>) -> Answer {
        let method = method.to_owned();
        Ok(match params {
            Some(params) => self.0.request(method, params).await?,
            None => self.0.request_noparams(method).await?,
        })
    }

    pub(crate) async fn batch(&self, calls: Vec<(String, Option<Value>)>) -> Answer {
        let mut batch = self.0.new_batch();
        let mut waiting = Vec::new();
        for (method, params) in calls {
            waiting
                .push(batch.add_call::<_, Value>(method, &params.unwrap_or_else(|| Value::Array(vec![])))?);
        }
        batch.send().await?;
        let mut answers = Vec::new();
        for answer in waiting {
            answers.push(answer.await?);
        }
        Ok(Value::Array(answers))
    }
}

/// It comes back by itself, with the parameters of the first time; `take` sees what came twice.
pub(crate) async fn feed(
    url: &str,
    method: &str,
    params: Value,
    take: &mut dyn FnMut(Value) -> bool,
) -> Result<(), Seen> {
    let client = RpcClient::connect_pubsub(WsConnect::new(url)).await?;
    client.set_channel_size(4096);
    let mut subscribe = client.request::<_, B256>(method.to_owned(), params);
    subscribe.set_is_subscription();
    let mut items = client.get_subscription::<Value>(subscribe.await?).await;
    while let Ok(item) = items.recv().await {
        take(item);
    }
    Ok(())
}
