//! `block propose`: a block whose missing parts follow the leader's head.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::cli::ctl::command::Propose;
use crate::cli::ctl::confirm::confirm;
use crate::cli::ctl::{Context, acts, plan};
use crate::cli::exit::Failure;
use crate::client::cluster::Target;
use crate::client::wire;

pub(crate) async fn run(cx: &Context, args: Propose) -> Result<u8, Failure> {
    let block = match &args.block {
        Some(text) => whole(text)?,
        None => {
            let cluster = cx.cluster(plan::PATIENCE);
            let end = Instant::now() + cluster.timeout();
            let leader = cluster.find(Target::Leader, end).await?;
            let head = cluster.status_at(&leader, end).await?.head;
            let block = finish(&args, head)?;
            if args.hash.is_none() && !cx.flags.curl {
                let question = format!(
                    "A block with a made-up hash becomes height {} of the chain, for good. Propose it?",
                    block["height"]
                );
                confirm(&question, cx.flags.yes)?;
            }
            block
        }
    };
    acts::one(cx, plan::propose(block, args.fence, args.wait)).await
}

fn whole(text: &str) -> Result<Value, Failure> {
    let text = if text == "-" { std::io::read_to_string(std::io::stdin())? } else { text.to_string() };
    match serde_json::from_str(&text) {
        Ok(block @ Value::Object(_)) => Ok(block),
        Ok(_) => Err(Failure::usage("BLOCK: a JSON object")),
        Err(e) => Err(Failure::usage(format!("BLOCK: {e}"))),
    }
}

/// What is not given follows the head.
fn finish(args: &Propose, head: Option<wire::Head>) -> Result<Value, Failure> {
    let head = head.unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let behind = |last: u64, option: &str| {
        let message = format!("the head's is 2^64 - 1, and nothing follows it: give {option}");
        last.checked_add(1).ok_or_else(|| Failure::usage(message))
    };
    let height = args.height.map_or_else(|| behind(head.height, "--height"), Ok)?;
    let timestamp =
        args.timestamp.map_or_else(|| behind(head.timestamp, "--timestamp").map(|next| now.max(next)), Ok)?;
    let header = content("--header", args.header.as_deref())?;
    let data = content("--data", args.data.as_deref())?;
    let hash = match &args.hash {
        Some(hash) => hash.clone(),
        None => {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&height.to_be_bytes()).update(&timestamp.to_be_bytes());
            hasher.update(&header).update(&data);
            wire::hex(hasher.finalize().as_bytes())
        }
    };
    let mut block = Map::new();
    block.insert("height".into(), height.into());
    block.insert("hash".into(), hash.into());
    block.insert("timestamp".into(), json!(timestamp.to_string()));
    block.insert("header".into(), wire::hex(&header).into());
    block.insert("data".into(), wire::hex(&data).into());
    if let Some(parent) = &args.parent_hash {
        block.insert("parentHash".into(), parent.clone().into());
    }
    Ok(Value::Object(block))
}

/// `0x` hex, or the content of a file after `@`.
fn content(flag: &str, text: Option<&str>) -> Result<Vec<u8>, Failure> {
    match text {
        None => Ok(Vec::new()),
        Some(text) => match text.strip_prefix('@') {
            Some(file) => std::fs::read(file).map_err(|e| Failure::usage(format!("{flag} {file}: {e}"))),
            None => wire::bytes(text)
                .map(Vec::from)
                .ok_or_else(|| Failure::usage(format!("{flag}: 0x hex, or @FILE"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Propose {
        Propose {
            block: None,
            height: None,
            hash: None,
            timestamp: None,
            header: None,
            data: Some("0x0011".into()),
            parent_hash: None,
            fence: None,
            wait: None,
        }
    }

    #[test]
    fn a_block_follows_the_head() {
        let head = wire::Head { height: 41, hash: "0xaa".into(), timestamp: u64::MAX / 2 };
        let block = finish(&args(), Some(head)).expect("a block");
        assert_eq!(block["height"], 42);
        assert_eq!(block["timestamp"], (u64::MAX / 2 + 1).to_string());
        assert_eq!(block["data"], "0x0011");
        assert_eq!(block["hash"].as_str().map(str::len), Some(2 + 64));
        assert!(block.get("parentHash").is_none());
        assert_eq!(finish(&args(), None).expect("a block")["height"], 1);
    }

    #[test]
    fn nothing_follows_the_end_of_the_range() {
        let head = wire::Head { height: 41, hash: "0xaa".into(), timestamp: u64::MAX };
        let failure = finish(&args(), Some(head.clone())).expect_err("refused");
        assert!(failure.message.as_deref().is_some_and(|m| m.contains("--timestamp")), "{failure:?}");
        let given = Propose { timestamp: Some(u64::MAX), ..args() };
        assert_eq!(finish(&given, Some(head)).expect("a block")["height"], 42);
    }

    #[test]
    fn content_that_is_neither_hex_nor_a_file() {
        for wrong in ["0x1", "abc", "@/nonexistent/file"] {
            let failure = content("--data", Some(wrong)).expect_err("refused");
            assert_eq!(failure.code, crate::cli::exit::USAGE, "{wrong}");
        }
    }
}
