//! Nodes that do not start, or are given up, and their folders afterwards.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::config;
use crate::machine::Command;
use crate::machine::command::Kind;
use crate::node::build::{Process, Running, start};
use crate::node::{Options, StartError, stop};
use crate::store::exit;
use crate::store::tests::support::{block, command, leave_unapplied, membership, proposed};

/// Of the only node, on whatever ports are free.
fn settings(data_dir: &Path) -> config::Settings {
    let text = format!(
        "cluster.id = \"c\"\nnode.id = 1\nnode.data_dir = {data_dir:?}\ncluster.peers = \
         [{{ id = 1, peer = \"127.0.0.1:7500\", api = \"127.0.0.1:7400\" }}]\n"
    );
    let mut settings = Options::from_toml(&text).unwrap_or_else(|e| panic!("{e}")).settings;
    settings.peer.listen.set_port(0);
    settings.api.listen.set_port(0);
    settings
}

async fn started(settings: config::Settings) -> Result<Running, StartError> {
    start(settings, Process::embedded()).await
}

/// The entry was committed before the process ended that could not apply it: each restart meets it while raft is
/// built, where nothing else watches the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_while_the_log_is_applied_again_ends_the_start() {
    let dir = TempDir::new().unwrap();
    let data_dir = dir.path().join("data");
    let mut unknown = Command::new(Kind::Unknown(99), bytes::Bytes::from_static(b"?"));
    unknown.version = 1;
    let entries = vec![membership(0, 0, &[1]), proposed(1, 1, block(1, 10)), command(1, 2, unknown)];
    leave_unapplied(&data_dir, entries).await;

    for _ in 0..2 {
        let starting = tokio::time::timeout(Duration::from_secs(30), started(settings(&data_dir)));
        let error = starting.await.expect("it ends").err().expect("it does not start");
        assert_eq!(error.exit_code, 4, "{error}");
        assert!(error.message.contains("upgrade needed"), "{error}");
        let last = exit::read(&data_dir).unwrap().expect("it is told");
        assert_eq!(last.cause, exit::Cause::Fatal);
        assert!(last.text.contains("upgrade needed"), "{}", last.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_free_again_when_its_node_did_not_start_or_is_dropped() {
    let dir = TempDir::new().unwrap();
    let data_dir = dir.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut refused = settings(&data_dir);
    refused.api.listen = taken.local_addr().unwrap();
    for _ in 0..2 {
        let error = started(refused.clone()).await.err().expect("its port is taken");
        assert!(error.message.contains("api.listen"), "{error}");
    }
    let running = started(settings(&data_dir)).await.unwrap_or_else(|e| panic!("{e}"));
    drop(running);
    // A moment later: on a thread of its own, once the tasks that were aborted have let go.
    let opening = async {
        loop {
            match started(settings(&data_dir)).await {
                Ok(running) => return running,
                Err(error) => assert_eq!(error.exit_code, 1, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let running = tokio::time::timeout(Duration::from_secs(30), opening).await.expect("it is closed");
    stop::stop(running).await;
}
