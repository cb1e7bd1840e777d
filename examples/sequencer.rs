//! A sequencer that embeds a blockraft node and obeys the fence.
//!
//! Runs a cluster of one, so that it works alone: `cargo run --release --example sequencer`. For
//! three machines give each its own file and list all three under `cluster.peers`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to whoever runs it")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blockraft::{
    node::{Node, Options},
    types::{block::Block, error::Certainty},
};

/// Whatever turns a height into a block; here twelve bytes.
fn build_block(height: u64) -> Block {
    let data = format!("block {height:06}").into_bytes();
    let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_nanos();
    Block {
        height,
        hash: blake3::hash(&data).as_bytes().to_vec().into(),
        timestamp: timestamp as u64,
        data: data.into(),
        ..Block::default()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let toml = format!(
        r#"
        [cluster]
        id = "example"
        peers = [{{ id = 1, peer = "127.0.0.1:7599", api = "127.0.0.1:7499" }}]
        [node]
        id = 1
        data_dir = {:?}
        [peer]
        listen = "127.0.0.1:7599"
        [api]
        listen = "127.0.0.1:7499"
        "#,
        dir.path()
    );
    let node = Node::start(Options::from_toml(&toml)?).await?;

    let mut produced = 0;
    while produced < 10 {
        // Ask before every block: the answer is true now, not a moment ago.
        let Some(fence) = node.leadership().fence else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let height = node.head().map_or(1, |head| head.height + 1);
        let block = build_block(height);
        loop {
            match node.propose(block.clone(), Some(fence)).await {
                Ok(accepted) => {
                    println!("block {height} is agreed on: term {}, index {}", accepted.term, accepted.index);
                    produced += 1;
                    break;
                }
                // It may have happened: the same block again is always safe.
                Err(error) if error.certainty() == Certainty::Unknown => continue,
                // It did not happen: look who leads, and where the chain stands.
                Err(error) => {
                    eprintln!("block {height} was refused: {error}");
                    break;
                }
            }
        }
    }
    node.stop().await;
    Ok(())
}
