//! `watch` and `tail`: follow a node's subscriptions, over reconnects, without a hole.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::cli::ctl::command::Tail;
use crate::cli::ctl::{Context, acts, curl, plan, render};
use crate::cli::exit::{self, Failure};
use crate::cli::{out, units};
use crate::client::cluster::{ClusterError, Target};
use crate::client::endpoint::Endpoint;
use crate::client::rpc::CallError;
use crate::client::subscription::{self, Subscription, Topic};

/// Before a subscription that ended is opened again. By eye: one election.
const AGAIN: Duration = Duration::from_millis(500);

/// Where to go on, moved by every item.
enum Position {
    Leadership { next_id: Option<u64> },
    Applied { next_index: Option<u64>, from_height: Option<u64>, max_item_bytes: Option<u64> },
}

impl Position {
    fn params(&self) -> Map<String, Value> {
        let pairs = match self {
            Self::Leadership { next_id } => vec![("fromId", *next_id)],
            Self::Applied { next_index, from_height, max_item_bytes } => vec![
                ("fromIndex", *next_index),
                ("fromHeight", if next_index.is_some() { None } else { *from_height }),
                ("maxItemBytes", *max_item_bytes),
            ],
        };
        pairs.into_iter().filter_map(|(k, v)| Some((k.to_string(), v?.into()))).collect()
    }

    fn moved(&mut self, item: &Value) {
        match self {
            Self::Leadership { next_id } => {
                if let Some(id) = item["id"].as_u64() {
                    *next_id = Some(id + 1);
                }
            }
            Self::Applied { next_index, .. } => {
                let gap = &item["gap"];
                // What is replayed follows the gap: behind it the rest would be lost with the connection.
                let lost = if gap["repair"] == "pruned" { &gap["toIndex"] } else { &Value::Null };
                let place = [&item["index"], lost, &item["caughtUp"]["index"]];
                if let Some(index) = place.iter().find_map(|v| v.as_u64()) {
                    *next_index = Some(index + 1);
                }
            }
        }
    }
}

pub(crate) async fn leadership(cx: &Context, from_id: Option<u64>) -> Result<u8, Failure> {
    if cx.flags.curl {
        return Err(Failure::usage(
            "watch needs a WebSocket, which curl lines do not have: poll `ctl history`",
        ));
    }
    follow(cx, subscription::LEADERSHIP, Position::Leadership { next_id: from_id }, leadership_line).await
}

pub(crate) async fn applied(cx: &Context, tail: &Tail) -> Result<u8, Failure> {
    if cx.flags.curl {
        let target = cx.flags.node.map_or(Target::Any, Target::Node);
        let endpoint = acts::endpoint_for_curl(cx, target).await;
        let query: Vec<String> = [
            ("fromHeight", tail.from_height),
            ("fromIndex", tail.from_index),
            ("maxItemBytes", tail.max_item_bytes),
        ]
        .iter()
        .filter_map(|(k, v)| Some(format!("{k}={}", (*v)?)))
        .collect();
        let path =
            if query.is_empty() { "/v1/applied".into() } else { format!("/v1/applied?{}", query.join("&")) };
        out::print_line(&curl::get(&endpoint, "-sSN", &path, cx.token_file()))?;
        return Ok(exit::DONE);
    }
    let position = Position::Applied {
        next_index: tail.from_index,
        from_height: tail.from_height,
        max_item_bytes: tail.max_item_bytes,
    };
    follow(cx, subscription::APPLIED, position, render::block::applied).await
}

fn leadership_line(item: &Value) -> String {
    let leader = match &item["leaderId"] {
        Value::Null => "no leader".into(),
        id => format!("node {id} leads"),
    };
    let ready = if item["ready"].as_bool() == Some(true) { ", ready" } else { "" };
    let fence = if item["fence"].is_null() { String::new() } else { format!(", fence {}", item["fence"]) };
    let at = item["at"].as_u64().map_or("-".into(), units::time_ms);
    format!(
        "{at}  term {}  {leader}{ready}{fence}  ({})",
        render::text(&item["term"]),
        render::text(&item["cause"])
    )
}

/// Until somebody stops it, nobody reads it any more, or the node refuses the subscription itself.
async fn follow(
    cx: &Context,
    topic: Topic,
    position: Position,
    line: fn(&Value) -> String,
) -> Result<u8, Failure> {
    tokio::select! {
        biased;
        ended = go_on(cx, topic, position, line) => ended,
        () = out::reader_gone() => Ok(exit::DONE),
    }
}

async fn go_on(
    cx: &Context,
    topic: Topic,
    mut position: Position,
    line: fn(&Value) -> String,
) -> Result<u8, Failure> {
    let cluster = cx.cluster(plan::PATIENCE);
    let target = cx.flags.node.map_or(Target::Any, Target::Node);
    let mut has_begun = false;
    loop {
        let end = Instant::now() + cluster.timeout();
        let opened: Result<(Endpoint, Subscription), ClusterError> = async {
            let endpoint = cluster.find(target, end).await?;
            let within = end.saturating_duration_since(Instant::now());
            let s = Subscription::open(cluster.http(), &endpoint, topic, position.params(), within).await?;
            Ok((endpoint, s))
        }
        .await;
        let (endpoint, mut items) = match opened {
            Ok(opened) => opened,
            // What is wrong with the call stays wrong.
            Err(ClusterError::Call(CallError::Rpc { error, .. })) if error.code == METHOD_NOT_FOUND => {
                return Err(Failure::failed(format!("the node's version does not have {}", topic.subscribe)));
            }
            Err(e) if !is_passing(&e, has_begun) => {
                return Err(match e {
                    ClusterError::Call(CallError::Rpc { .. }) => e.into(),
                    e => Failure::failed(e.to_string()),
                });
            }
            Err(_) => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        has_begun = true;
        while let Some(item) = items.next().await {
            if let Some(end) = item["end"].as_object() {
                let reason = end.get("reason").map_or("-".into(), render::text);
                out::note(&format!("# {endpoint} ended the subscription: {reason}"));
                break;
            }
            position.moved(&item);
            out::print_line(&if cx.flags.json { item.to_string() } else { line(&item) })?;
        }
        out::note(&format!("# lost {endpoint}, going on"));
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether what once was a subscription may be one again: whatever a node refuses it for while it stops, starts or
/// is overloaded, but not a place that is forgotten, nor a call that is wrong.
fn is_passing(error: &ClusterError, has_begun: bool) -> bool {
    has_begun
        && match error {
            ClusterError::Call(CallError::Rpc { error, .. }) => {
                !error.is("pruned") && !WRONG_CALL.contains(&error.code)
            }
            _ => true,
        }
}

const METHOD_NOT_FOUND: i64 = -32601;
/// Invalid request, no such method, invalid parameters.
const WRONG_CALL: [i64; 3] = [-32600, METHOD_NOT_FOUND, -32602];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tail_goes_on_behind_the_last_item() {
        let mut at = Position::Applied { next_index: None, from_height: Some(5), max_item_bytes: None };
        assert_eq!(Value::Object(at.params()), json!({"fromHeight": 5}));
        at.moved(&json!({"block": {}, "index": 9}));
        assert_eq!(Value::Object(at.params()), json!({"fromIndex": 10}));
        at.moved(&json!({"gap": {"fromIndex": 10, "toIndex": 12, "repair": "replay"}}));
        assert_eq!(Value::Object(at.params()), json!({"fromIndex": 10}), "its blocks are still to come");
        at.moved(&json!({"gap": {"fromIndex": 10, "toIndex": 12, "repair": "pruned"}}));
        assert_eq!(Value::Object(at.params()), json!({"fromIndex": 13}));
        at.moved(&json!({"caughtUp": {"height": 9, "index": 20}}));
        assert_eq!(Value::Object(at.params()), json!({"fromIndex": 21}));
    }

    #[test]
    fn what_passes_does_not_end_a_tail_that_has_begun() {
        let refused = |code: i64, reason: &str| {
            let error = serde_json::from_value(json!({"code": code, "data": {"reason": reason}})).unwrap();
            ClusterError::Call(CallError::Rpc { endpoint: "http://127.0.0.1:1".parse().unwrap(), error })
        };
        for (code, reason) in [(-32040, "shuttingDown"), (-32005, "overloaded"), (-32041, "storage")] {
            assert!(is_passing(&refused(code, reason), true), "{reason}");
            assert!(!is_passing(&refused(code, reason), false), "{reason} before it began");
        }
        for (code, reason) in [(-32004, "pruned"), (-32602, "-"), (-32601, "-"), (-32600, "-")] {
            assert!(!is_passing(&refused(code, reason), true), "{code} {reason}");
        }
    }

    #[test]
    fn a_watch_goes_on_behind_the_last_leadership() {
        let mut at = Position::Leadership { next_id: None };
        assert!(at.params().is_empty());
        at.moved(&json!({"id": 4}));
        assert_eq!(Value::Object(at.params()), json!({"fromId": 5}));
    }

    #[test]
    fn leaderships_in_one_line() {
        let item = json!({"id": 1, "at": 0, "term": 3, "leaderId": 2, "fence": 3, "ready": true, "cause": "transfer"});
        assert_eq!(
            leadership_line(&item),
            "1970-01-01 00:00:00.000Z  term 3  node 2 leads, ready, fence 3  (transfer)"
        );
    }
}
