#!/usr/bin/env bash
# alloy (alloy-rpc-client and alloy-pubsub 2.5.0) tells subscriptions apart by their parameters alone: of two methods that are
# subscribed to with the same parameters on one connection, the first one's items are lost, and its reader gets the second's.
#
# One would expect a reader for each: the methods are others, and the server gave two ids. But the client's own id is the hash
# of the parameters, for Ethereum, where one method subscribes to all; the second id takes the first one's place, and an item
# under an id that it does not know is dropped, without a line in the log. Output seen with rustc 1.95, a server of jsonrpsee
# 0.26.1, and two methods that send what they are called:
#
#   without parameters:          of subscribeLeadership ["applied", "applied", "applied"], of subscribeApplied ["applied", "applied", "applied"]
#   with [true] and with [null]: of subscribeLeadership ["leadership", "leadership", "leadership"], of subscribeApplied ["applied", "applied", "applied"]
#
# Who follows leadership and blocks over one connection hears of no new leader, and no error. blockraft has `raft_subscribe`,
# with the topic as its parameter, beside a method for each feed. Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$dir/target}"
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "subscriptions"
version = "0.0.0"
edition = "2021"

[dependencies]
alloy-primitives = { version = "1", default-features = false }
alloy-pubsub = "=2.5.0"
alloy-rpc-client = { version = "=2.5.0", default-features = false, features = ["ws-base"] }
jsonrpsee = { version = "=0.26.1", features = ["server"] }
serde_json = { version = "1", features = ["raw_value"] }
tokio = { version = "1", features = ["rt-multi-thread", "macros", "sync", "time"] }

[workspace]
TOML
cat >"$dir/src/main.rs" <<'RS'
use std::{sync::Arc, time::Duration};

use alloy_primitives::B256;
use alloy_rpc_client::{RpcClient, WsConnect};
use jsonrpsee::server::{PendingSubscriptionSink, RpcModule, Server, SubscriptionMessage};
use jsonrpsee::types::Params;
use serde_json::{json, value::to_raw_value, Value};
use tokio::sync::Barrier;

/// What one subscription to each method reads, both on one connection.
async fn read(url: &str, params: [Value; 2]) -> [Vec<String>; 2] {
    let client = RpcClient::connect_pubsub(WsConnect::new(url)).await.expect("it listens");
    client.set_channel_size(4096);
    let mut feeds = Vec::new();
    for (method, params) in ["subscribeLeadership", "subscribeApplied"].into_iter().zip(params) {
        let mut call = client.request::<_, B256>(method, params);
        call.set_is_subscription();
        let id = call.await.expect("it is there");
        feeds.push(client.get_subscription::<String>(id).await);
    }
    let mut read = [Vec::new(), Vec::new()];
    for (feed, read) in feeds.iter_mut().zip(&mut read) {
        for _ in 0..3 {
            read.push(feed.recv().await.expect("more comes"));
        }
    }
    read
}

#[tokio::main]
async fn main() {
    let server = Server::builder().build("127.0.0.1:0").await.expect("a port is free");
    let url = format!("ws://{}", server.local_addr().expect("it listens"));
    // No item before both subscriptions are answered.
    let both = Arc::new(Barrier::new(2));
    let mut module = RpcModule::new(both);
    for (item, subscribe, unsubscribe) in [
        ("leadership", "subscribeLeadership", "unsubscribeLeadership"),
        ("applied", "subscribeApplied", "unsubscribeApplied"),
    ] {
        let feed = move |_: Params<'static>, pending: PendingSubscriptionSink, both: Arc<Arc<Barrier>>, _| async move {
            let sink = pending.accept().await.expect("the caller is there");
            both.wait().await;
            let text = to_raw_value(item).expect("text");
            while sink.send(SubscriptionMessage::from(text.clone())).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        module.register_subscription(subscribe, "item", unsubscribe, feed).expect("the name is free");
    }
    let running = server.start(module);
    let same = read(&url, [json!([]), json!([])]).await;
    println!("without parameters:          of subscribeLeadership {:?}, of subscribeApplied {:?}", same[0], same[1]);
    let other = read(&url, [json!([true]), json!([null])]).await;
    println!("with [true] and with [null]: of subscribeLeadership {:?}, of subscribeApplied {:?}", other[0], other[1]);
    running.stop().expect("it runs");
    let holds = same == [["applied"; 3], ["applied"; 3]] && other == [["leadership"; 3], ["applied"; 3]];
    std::process::exit(i32::from(!holds));
}
RS
cd "$dir"
if cargo run -q --release; then
  echo "finding holds: the second subscription with the same parameters takes the first one's place"
else
  echo "finding no longer holds" >&2
  exit 1
fi
