#!/usr/bin/env bash
# The server of jsonrpsee 0.26.1 gives up a batch in the middle when its answers grow over max_response_body_size: the calls
# before were run, those behind were not, and all of them are answered by one error with the id null.
#
# One would expect an error in the place of the answer that does not fit, as a single call gets one with its own id, or a
# refusal before anything is run, as of a batch with too many calls. JSON-RPC 2.0, section 6: "The Server should respond with
# an Array". Output seen with rustc 1.95, a limit of 1000 bytes, and a batch of act, read, read, act, where `read`
# answers 600 bytes and `act` counts:
#
#   alone, act:             {"jsonrpc":"2.0","id":1,"result":"done"}
#   alone, read of 2000 B:  {"jsonrpc":"2.0","id":2,"error":{"code":-32008,"message":"Response is too big","data":"Exceeded max limit of 1000"}}
#   the batch:              {"jsonrpc":"2.0","id":null,"error":{"code":-32011,"message":"The batch response was too large","data":"Exceeded max limit of 1000"}}, act was run 1 of 2 times
#
# A client that takes this for a refusal and sends the batch again acts twice, and one that takes it for done misses the end of
# it. What acts belongs in a call of its own, or wants an operation id. Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$dir/target}"
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "batch"
version = "0.0.0"
edition = "2021"

[dependencies]
jsonrpsee = { version = "=0.26.1", features = ["server"] }
tokio = { version = "1", features = ["rt-multi-thread", "macros"] }

[workspace]
TOML
cat >"$dir/src/main.rs" <<'RS'
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use jsonrpsee::server::{RpcModule, Server, ServerConfig};
use jsonrpsee::types::Params;
use jsonrpsee::Extensions;

static RUN: AtomicU32 = AtomicU32::new(0);

/// The body of the answer.
fn ask(addr: SocketAddr, body: &str) -> String {
    let mut stream = TcpStream::connect(addr).expect("it listens");
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer.split_once("\r\n\r\n").expect("headers end").1.to_owned()
}

fn call(id: u32, method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":[{params}]}}"#)
}

#[tokio::main]
async fn main() {
    let config = ServerConfig::builder().max_response_body_size(1000).build();
    let server = Server::builder().set_config(config).build("127.0.0.1:0").await.expect("a port is free");
    let addr = server.local_addr().expect("it listens");
    let mut module = RpcModule::new(());
    let act = |_: Params<'_>, _: &(), _: &Extensions| {
        RUN.fetch_add(1, SeqCst);
        "done"
    };
    module.register_method("act", act).expect("the name is free");
    let read = |params: Params<'_>, _: &(), _: &Extensions| "x".repeat(params.one::<usize>().expect("a length"));
    module.register_method("read", read).expect("the name is free");
    let running = server.start(module);
    let asking = tokio::task::spawn_blocking(move || {
        let alone = ask(addr, &call(1, "act", ""));
        println!("alone, act:             {alone}");
        let large = ask(addr, &call(2, "read", "2000"));
        println!("alone, read of 2000 B:  {large}");
        RUN.store(0, SeqCst);
        let calls = [call(1, "act", ""), call(2, "read", "600"), call(3, "read", "600"), call(4, "act", "")];
        let batch = ask(addr, &format!("[{}]", calls.join(",")));
        let n = RUN.load(SeqCst);
        println!("the batch:              {batch}, act was run {n} of 2 times");
        large.contains(r#""id":2,"error""#) && batch.contains(r#""id":null,"error":{"code":-32011"#) && n == 1
    });
    let holds = asking.await.expect("it ends");
    running.stop().expect("it runs");
    if !holds {
        eprintln!("finding no longer holds");
        std::process::exit(1);
    }
}
RS
cd "$dir"
cargo run -q --release
echo "finding holds: a batch whose answers are too large is run in part, and answered by one error without an id"
