//! The Rust clients of `make clients`, each as its users call it. How a client program talks is said in
//! `../../python/wire.py`.
//!
//! Built twice: by the package beside it with all of them, and as an example of blockraft itself with jsonrpsee
//! alone, whose crates are there anyway, for the quick part in CI.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it talks to whoever runs it")]
#![allow(unexpected_cfgs, reason = "blockraft itself has no such feature")]

#[cfg(feature = "all")]
mod alloy;
#[cfg(feature = "all")]
mod eventsource;
mod jsonrpsee;

use std::time::Duration;

use serde_json::{Value, json};

/// What a caller sees of an error.
pub(crate) struct Seen {
    pub(crate) code: Option<i64>,
    pub(crate) data: Option<Value>,
    pub(crate) text: String,
}

pub(crate) type Answer = Result<Value, Seen>;

/// A client of one kind, connected.
pub(crate) enum Client {
    #[cfg(feature = "all")]
    Alloy(alloy::Client),
    Jsonrpsee(jsonrpsee::Client),
}

impl Client {
    async fn connect(kind: &str, url: &str) -> Result<Self, Seen> {
        Ok(match kind {
            #[cfg(feature = "all")]
            "alloy" => Self::Alloy(alloy::connect(url).await?),
            _ => Self::Jsonrpsee(jsonrpsee::connect(url).await?),
        })
    }

    async fn call(&self, method: &str, params: Option<Value>) -> Answer {
        match self {
            #[cfg(feature = "all")]
            Self::Alloy(client) => client.call(method, params).await,
            Self::Jsonrpsee(client) => client.call(method, params).await,
        }
    }

    async fn batch(&self, calls: Vec<(String, Option<Value>)>) -> Answer {
        match self {
            #[cfg(feature = "all")]
            Self::Alloy(client) => client.batch(calls).await,
            Self::Jsonrpsee(client) => client.batch(calls).await,
        }
    }
}

pub(crate) fn out(what: Value) {
    println!("{what}");
}

/// A large block: read, and proposed again as it is to the leader.
async fn big(client: &Client, height: &Value, leader: &Client) -> Answer {
    let got = client.call("block_get", Some(json!([height]))).await?;
    let mut block = got["block"].clone();
    let text = block["data"].as_str().unwrap_or_default().trim_start_matches("0x").to_owned();
    if let Some(block) = block.as_object_mut() {
        block.retain(|key, _| ["height", "hash", "timestamp", "header", "data"].contains(&key.as_str()));
    }
    let answer = leader.call("block_propose", Some(json!([block]))).await?;
    let (first, last) = (text.get(..16), text.get(text.len().saturating_sub(16)..));
    Ok(json!({"bytes": text.len() / 2, "first": first, "last": last, "duplicate": answer["duplicate"]}))
}

async fn command(kind: &str, url: &str, client: &mut Option<Client>, given: &Value) -> Answer {
    if given["do"] == "how" {
        return match (kind, url.starts_with("http")) {
            #[cfg(feature = "all")]
            ("alloy", true) => alloy::how(url).await,
            #[cfg(feature = "all")]
            ("alloy", false) => alloy::how_ws(url).await,
            (_, true) => jsonrpsee::how(url).await,
            (_, false) => jsonrpsee::how_ws(url).await,
        };
    }
    let params = given.get("params").filter(|p| !p.is_null()).cloned();
    let method = given["method"].as_str().unwrap_or_default();
    if let Some(other) = given["url"].as_str() {
        return Client::connect(kind, other).await?.call(method, params).await;
    }
    // jsonrpsee's WebSocket client is of no use when its connection is gone: its users make a new one.
    let is_over = matches!(client, Some(Client::Jsonrpsee(c)) if c.is_over());
    if client.is_none() || is_over {
        *client = Some(Client::connect(kind, url).await?);
    }
    let client = client.as_ref().expect("just connected");
    match given["do"].as_str() {
        Some("batch") => {
            let calls = given["calls"].as_array().into_iter().flatten();
            let calls = calls.map(|c| {
                (c[0].as_str().unwrap_or_default().to_owned(), Some(c[1].clone()).filter(|p| !p.is_null()))
            });
            client.batch(calls.collect()).await
        }
        Some("big") => {
            let leader = Client::connect(kind, given["leader"].as_str().unwrap_or_default()).await?;
            big(client, &given["height"], &leader).await
        }
        _ => client.call(method, params).await,
    }
}

async fn commands(kind: &str, url: &str) {
    let mut client = None;
    out(json!({"ready": true}));
    let next = || async {
        let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await;
        line.ok()?.and_then(Result::ok)
    };
    while let Some(line) = next().await {
        let given: Value = serde_json::from_str(&line).expect("the driver sends JSON");
        let answer =
            tokio::time::timeout(Duration::from_secs(30), command(kind, url, &mut client, &given)).await;
        match answer {
            Ok(Ok(result)) => out(json!({"result": result})),
            Ok(Err(e)) => out(json!({"error": {"code": e.code, "data": e.data, "text": cut(e.text)}})),
            Err(_) => out(json!({"error": {"text": "no answer in 30 s"}})),
        }
    }
}

fn cut(text: String) -> String {
    text.chars().take(400).collect()
}

/// The parameters with which a reader comes back behind `last`.
fn onward(params: &Value, last: u64) -> Value {
    match params[0].as_str() {
        Some("applied") => json!(["applied", {"fromIndex": last + 1}]),
        Some(_) => json!(["leadership", {"fromId": last + 1}]),
        None if params.as_array().is_some_and(|p| p.len() == 2) => json!([null, last + 1]),
        None => json!([last + 1]),
    }
}

async fn follow(kind: &str, url: &str, method: &str, params: Value) {
    let mut last = None;
    loop {
        let params = last.map_or_else(|| params.clone(), |last| onward(&params, last));
        // False: the feed said goodbye.
        let mut take = |item: Value| {
            let place = [&item["index"], &item["id"], &item["caughtUp"]["index"]];
            last = place.into_iter().find_map(Value::as_u64).or(last);
            let goes_on = item.get("end").is_none();
            out(json!({"item": item}));
            goes_on
        };
        let ended = match kind {
            #[cfg(feature = "all")]
            "alloy" => alloy::feed(url, method, params, &mut take).await,
            _ => jsonrpsee::feed(url, method, params, &mut take).await,
        };
        out(json!({"ended": ended.map_or_else(|e| cut(e.text), |()| "as an end of the feed".to_owned())}));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        #[cfg(feature = "all")]
        [_, url, "events"] => {
            let ended = eventsource::events(url).await;
            out(
                json!({"ended": ended.map_or_else(|e| format!("{e:?}"), |()| "as an end of the feed".to_owned())}),
            );
        }
        [kind, url, "feed", method, params] => {
            follow(kind, url, method, serde_json::from_str(params).expect("the driver sends JSON")).await
        }
        [kind, url] => commands(kind, url).await,
        _ => eprintln!("KIND URL [feed METHOD PARAMS | events]"),
    }
}
