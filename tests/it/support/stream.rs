//! `POST /v1/blocks/stream`: many blocks in flight on one request, answered line by line.

use anyhow::bail;
use serde_json::Value;

use crate::support::{
    block::{Answer, Block, put_varint},
    cluster::Cluster,
    http::{Connection, Failure},
    wait::{LATER, wait_for},
};

/// Blocks that [`fill`] keeps in flight: enough that syncs are shared, few enough that their answers fit
/// into the sockets' buffers while nobody reads.
const IN_FLIGHT: usize = 200;

/// One open stream.
pub(crate) struct Stream {
    conn: Connection,
    /// Status of the answer, once it came.
    pub(crate) status: Option<u16>,
    body: Vec<u8>,
}

impl Stream {
    pub(crate) fn open(addr: &str, fence: Option<u64>) -> Result<Self, Failure> {
        let fence = fence.map(|f| f.to_string());
        let header = fence.as_deref().map(|f| ("Blockraft-Fence", f));
        Self::open_with(addr, header.as_slice())
    }

    /// With more headers.
    pub(crate) fn open_with(addr: &str, headers: &[(&str, &str)]) -> Result<Self, Failure> {
        let mut conn = Connection::open(addr)?;
        let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        conn.send(
            format!(
                "POST /v1/blocks/stream HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/x-protobuf\r\n\
                 {more}Transfer-Encoding: chunked\r\n\r\n"
            )
            .as_bytes(),
        )?;
        Ok(Self { conn, status: None, body: Vec::new() })
    }

    pub(crate) fn send(&mut self, blocks: &[Block]) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        for block in blocks {
            put_framed(&mut bytes, block);
        }
        self.send_raw(&bytes)
    }

    /// Any bytes as one chunk of the body.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.conn.send(&chunk)
    }

    /// Ends the body.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        self.conn.send(b"0\r\n\r\n")
    }

    /// The next line; `None` when the answer is over.
    pub(crate) fn next(&mut self) -> Result<Option<Answer>, Failure> {
        let line = self.next_line()?;
        Ok(line.map(|line| Answer::from_line(&line, self.status.unwrap_or(0))))
    }

    /// As [`Stream::next`], as it stands there.
    pub(crate) fn next_line(&mut self) -> Result<Option<Value>, Failure> {
        if self.status.is_none() {
            self.status = Some(self.conn.head()?.status);
        }
        loop {
            if let Some(at) = self.body.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.body.drain(..=at).collect();
                return parse(&line).map(Some);
            }
            if !self.conn.read_body(&mut self.body)? {
                // An answer that is no stream, such as a refusal before the first block, may lack the newline.
                let line = std::mem::take(&mut self.body);
                return if line.is_empty() { Ok(None) } else { parse(&line).map(Some) };
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(line).map_err(|e| Failure::Unknown(format!("a line that is no JSON ({e})")))
}

/// A block after its length.
pub(crate) fn put_framed(out: &mut Vec<u8>, block: &Block) {
    let bytes = block.to_protobuf();
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(&bytes);
}

/// Proposes all the blocks in order and returns term and index of each; panics on the first that is not
/// acknowledged.
#[track_caller]
pub(crate) fn fill(addr: &str, blocks: &[Block]) -> Vec<(u64, u64)> {
    let mut stream = Stream::open(addr, None).expect("the node answers");
    let mut places = Vec::with_capacity(blocks.len());
    let mut take = |stream: &mut Stream| {
        let answer = stream.next().expect("the stream goes on").expect("an answer for each block");
        places.push(answer.acknowledged());
    };
    for (i, block) in blocks.iter().enumerate() {
        stream.send(std::slice::from_ref(block)).expect("the stream is open");
        if IN_FLIGHT <= i {
            take(&mut stream);
        }
    }
    stream.end().expect("the stream is open");
    for _ in 0..blocks.len().min(IN_FLIGHT) {
        take(&mut stream);
    }
    assert!(stream.next().expect("the answer ends").is_none(), "more lines than blocks");
    places
}

/// Proposes all the blocks in order, through whoever leads: on a busy machine leadership is lost and found
/// again at times. Panics when they are not all acknowledged in time.
#[track_caller]
pub(crate) fn fill_patiently(cluster: &mut Cluster, blocks: &[Block]) {
    let mut left = blocks;
    wait_for("all blocks are acknowledged", LATER, || {
        while !left.is_empty() {
            let leader = cluster.leader();
            let (n_done, why) = fill_some(&cluster.node(leader).api, left);
            left = &left[n_done..];
            if let Some(why) = why {
                bail!("{} blocks to go: {why}", left.len());
            }
        }
        Ok(())
    });
}

/// As [`fill`]; how many were acknowledged, and why not more. What was sent and not answered is proposed
/// again: the same block again is a success.
fn fill_some(addr: &str, blocks: &[Block]) -> (usize, Option<String>) {
    let mut stream = match Stream::open(addr, None) {
        Ok(stream) => stream,
        Err(e) => return (0, Some(format!("{e:?}"))),
    };
    let (mut sent, mut done, mut is_open) = (0, 0, true);
    loop {
        if is_open && sent < blocks.len() && sent - done < IN_FLIGHT {
            is_open = stream.send(std::slice::from_ref(&blocks[sent])).is_ok();
            sent += usize::from(is_open);
            continue;
        }
        if is_open && sent == blocks.len() {
            is_open = false;
            // A stream that broke says so at the next answer.
            let _ = stream.end();
        }
        match stream.next() {
            Ok(Some(Answer::Acknowledged { .. })) => done += 1,
            Ok(Some(other)) => return (done, Some(other.to_string())),
            Ok(None) if done == blocks.len() => return (done, None),
            Ok(None) => return (done, Some("the answer ended".into())),
            Err(e) => return (done, Some(format!("{e:?}"))),
        }
    }
}
