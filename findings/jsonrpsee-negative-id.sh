#!/usr/bin/env bash
# The server of jsonrpsee 0.26.1 takes a call whose id is a negative number, or one written with a fraction or an exponent,
# for a notification: it does not run it, and answers 200 with the body `null`.
#
# JSON-RPC 2.0, section 4: an id is "a String, Number, or NULL value"; numbers "SHOULD NOT contain fractional parts", and
# nothing is said of their sign. So one would expect -7 to come back as -7, or an error with the id null. But the library
# knows unsigned ids of 64 bits alone, and tries a notification next, whose unknown members it skips. Output seen with
# rustc 1.95:
#
#   id 7: 200, {"jsonrpc":"2.0","id":7,"result":"here"}, run 1 times
#   id -7: 200, null, run 0 times
#   id 7.0: 200, null, run 0 times
#   id 7e0: 200, null, run 0 times
#
# A client that draws its ids from signed integers loses every other call, without an error. blockraft looks at the body
# of a POST first and answers such a call with -32600 and the ids there are; over a WebSocket, which is the library's own,
# it is as above, and counts as a request without an id. Fails when it is otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$dir/target}"
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "ids"
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

use jsonrpsee::server::{RpcModule, Server};

static RUN: AtomicU32 = AtomicU32::new(0);

/// The status and the body of the answer to a call with this id, and how often the method was run.
fn ask(addr: SocketAddr, id: &str) -> (String, String, u32) {
    let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"where"}}"#);
    let mut stream = TcpStream::connect(addr).expect("it listens");
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("headers end");
    let status = head.split(' ').nth(1).expect("a status");
    (status.to_owned(), body.to_owned(), RUN.swap(0, SeqCst))
}

#[tokio::main]
async fn main() {
    let server = Server::builder().build("127.0.0.1:0").await.expect("a port is free");
    let addr = server.local_addr().expect("it listens");
    let mut module = RpcModule::new(());
    let method = |_: jsonrpsee::types::Params<'_>, _: &(), _: &jsonrpsee::Extensions| {
        RUN.fetch_add(1, SeqCst);
        "here"
    };
    module.register_method("where", method).expect("the name is free");
    let running = server.start(module);
    let asking = tokio::task::spawn_blocking(move || {
        ["7", "-7", "7.0", "7e0"].map(|id| {
            let (status, body, n) = ask(addr, id);
            println!("id {id}: {status}, {body}, run {n} times");
            status == "200" && body == "null" && n == 0
        })
    });
    let is_lost = asking.await.expect("it ends");
    running.stop().expect("it runs");
    if is_lost != [false, true, true, true] {
        eprintln!("finding no longer holds");
        std::process::exit(1);
    }
}
RS
cd "$dir"
cargo run -q --release
echo "finding holds: a call with such an id is answered null"
