//! Frames against what a connection may do to them.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use openraft::{EntryPayload, raft::AppendEntriesRequest};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use crate::machine::{Command, command::Kind};
use crate::peer::{
    convert::{self, OutgoingAppend},
    tests::support::in_time,
    wire::{Outbox, Reader, VERSION, WireError},
};
use crate::raft::{TypeConfig, convert::vote_from_proto, log_id_of};
use crate::types::{
    position::LogPos,
    proto::{self, FrameKind},
};

/// Of a frame; above everything here.
const MAX: usize = 48 << 20;

const STALL: Duration = Duration::from_millis(100);

fn reader(io: DuplexStream, frame_bytes_max: usize) -> Reader<DuplexStream> {
    Reader::new(io, frame_bytes_max, STALL)
}

fn error_message(reason: &str) -> proto::Error {
    proto::Error { code: 8, reason: reason.into(), version: 0 }
}

fn append_of(sizes: &[usize]) -> AppendEntriesRequest<TypeConfig> {
    let entries = sizes.iter().enumerate().map(|(i, size)| openraft::Entry {
        log_id: log_id_of(LogPos { term: 3, index: 10 + i as u64 }),
        payload: EntryPayload::Normal(Command::new(Kind::Block, Bytes::from(vec![i as u8; *size]))),
    });
    AppendEntriesRequest {
        vote: vote_from_proto(&proto::Vote { term: 3, node_id: 1, committed: true }),
        prev_log_id: Some(log_id_of(LogPos { term: 2, index: 9 })),
        entries: entries.collect(),
        leader_commit: Some(log_id_of(LogPos { term: 2, index: 8 })),
    }
}

/// What these frames are on the wire.
async fn written(write: impl FnOnce(&mut Outbox<DuplexStream>)) -> Vec<u8> {
    let (near, mut far) = duplex(64 << 20);
    let mut outbox = Outbox::new(near, STALL);
    write(&mut outbox);
    outbox.flush().await.unwrap();
    drop(outbox);
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn frames_survive_any_cut() {
    let bytes = written(|outbox| {
        for i in 0..50u64 {
            outbox.put(FrameKind::Error, i, &error_message(&"x".repeat(i as usize)));
        }
    })
    .await;
    for cut in [1, 2, 3, 7, 64, 1000] {
        let (mut near, far) = duplex(64);
        let bytes = bytes.clone();
        tokio::spawn(async move {
            for piece in bytes.chunks(cut) {
                near.write_all(piece).await.unwrap();
            }
            // Kept open until the other side has read all.
            near.flush().await.unwrap();
        });
        let mut reader = reader(far, 4096);
        for i in 0..50u64 {
            let frame = in_time("a frame", reader.next()).await.unwrap();
            assert_eq!((frame.kind(), frame.id), (Some(FrameKind::Error), i));
            let error: proto::Error = frame.decode().unwrap();
            assert_eq!(error.reason.len(), i as usize);
        }
        assert!(matches!(reader.next().await, Err(WireError::Closed)));
    }
}

#[tokio::test]
async fn an_append_is_the_same_by_hand_as_by_the_encoder() {
    // Payloads that are copied and payloads that are sent from where they lie, in any order.
    for sizes in [&[0usize, 10, 100][..], &[20_000], &[5, 40_000, 6, 100_000, 7], &[]] {
        let bytes = written(|outbox| OutgoingAppend::new(append_of(sizes), MAX).put(7, outbox)).await;
        let message = proto::AppendRequest::decode(&bytes[14..]).unwrap();
        assert_eq!(message.encode_to_vec(), bytes[14..], "the layout is protobuf's own");
        assert_eq!(bytes.len() - 14, OutgoingAppend::new(append_of(sizes), MAX).bytes());
        let request = convert::append_from_proto(message).unwrap();
        assert_eq!(format!("{request:?}"), format!("{:?}", append_of(sizes)));
    }
}

#[tokio::test]
async fn an_append_too_large_for_a_frame_is_cut_and_never_to_nothing() {
    let last = |append: &OutgoingAppend| append.last.map(|id| id.index());
    let append = OutgoingAppend::new(append_of(&[1000, 1000, 1000]), 2500);
    assert_eq!((last(&append), append.n_entries(), append.is_cut), (Some(11), 2, true));
    let append = OutgoingAppend::new(append_of(&[1000, 1000]), 10);
    assert_eq!((last(&append), append.n_entries(), append.is_cut), (Some(10), 1, true));
    let append = OutgoingAppend::new(append_of(&[]), 10);
    assert_eq!((last(&append), append.is_cut), (Some(9), false));
}

#[tokio::test]
async fn an_entry_that_changed_on_the_way_is_found() {
    let bytes = written(|outbox| OutgoingAppend::new(append_of(&[50, 60]), MAX).put(7, outbox)).await;
    let good = proto::AppendRequest::decode(&bytes[14..]).unwrap();
    let mut bad = good.clone();
    bad.entries[1].payload = Bytes::from(vec![9; 60]);
    assert!(matches!(convert::append_from_proto(bad), Err(WireError::Corrupt(_))));
    let mut bad = good.clone();
    bad.entries[0].term += 1;
    assert!(matches!(convert::append_from_proto(bad), Err(WireError::Corrupt(_))));
    let mut bad = good.clone();
    bad.entries.remove(0);
    assert!(matches!(convert::append_from_proto(bad), Err(WireError::Malformed(_))));
    assert!(convert::append_from_proto(good).is_ok());
}

#[tokio::test]
async fn a_payload_is_a_slice_of_the_frame() {
    let bytes = written(|outbox| OutgoingAppend::new(append_of(&[30_000]), MAX).put(7, outbox)).await;
    let (mut near, far) = duplex(1 << 20);
    near.write_all(&bytes).await.unwrap();
    let frame = reader(far, 1 << 20).next().await.unwrap();
    let range = frame.payload.as_ptr() as usize..frame.payload.as_ptr() as usize + frame.payload.len();
    let message: proto::AppendRequest = frame.decode().unwrap();
    assert!(range.contains(&(message.entries[0].payload.as_ptr() as usize)));
}

#[tokio::test]
async fn a_frame_above_the_bound_is_refused_before_it_is_read() {
    let (mut near, far) = duplex(64);
    near.write_u32(4097).await.unwrap();
    let started = Instant::now();
    let refused = reader(far, 4096).next().await;
    assert!(matches!(refused, Err(WireError::TooLarge(4096))), "{refused:?}");
    assert!(started.elapsed() < STALL);
}

#[tokio::test]
async fn half_a_frame_and_then_silence_ends_the_connection() {
    // Within the length, within the head, within the payload.
    for sent in
        [&[0u8, 0][..], &[0, 0, 0, 20, VERSION], &[0, 0, 0, 20, VERSION, 3, 0, 0, 0, 0, 0, 0, 0, 1, 8]]
    {
        let (mut near, far) = duplex(64);
        near.write_all(sent).await.unwrap();
        let stalled = in_time("the stall is noticed", reader(far, 4096).next()).await;
        assert!(matches!(stalled, Err(WireError::Stalled(_))), "{stalled:?}");
    }
}

#[tokio::test]
async fn silence_between_frames_is_no_stall() {
    let (mut near, far) = duplex(64);
    let mut reader = reader(far, 4096);
    let waiting = tokio::time::timeout(3 * STALL, reader.next()).await;
    assert!(waiting.is_err());
    near.write_all(&[0, 0, 0, 10, VERSION, 4, 0, 0, 0, 0, 0, 0, 0, 9]).await.unwrap();
    assert_eq!(in_time("a frame", reader.next()).await.unwrap().id, 9);
}

#[tokio::test]
async fn closed_within_a_frame_is_not_closed_between_two() {
    let (mut near, far) = duplex(64);
    near.write_all(&[0, 0, 0, 10, VERSION]).await.unwrap();
    drop(near);
    assert!(matches!(reader(far, 4096).next().await, Err(WireError::Io(_))));
}

#[tokio::test]
async fn another_version_and_a_frame_without_a_head_are_refused() {
    let (mut near, far) = duplex(64);
    near.write_all(&[0, 0, 0, 10, VERSION + 1, 4, 0, 0, 0, 0, 0, 0, 0, 9]).await.unwrap();
    assert!(matches!(reader(far, 4096).next().await, Err(WireError::Version(2))));
    let (mut near, far) = duplex(64);
    near.write_all(&[0, 0, 0, 2, VERSION, 4]).await.unwrap();
    assert!(matches!(reader(far, 4096).next().await, Err(WireError::Malformed(_))));
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_ends_the_connection() {
    let (near, _far) = duplex(64);
    let mut outbox = Outbox::new(near, STALL);
    outbox.put(FrameKind::Error, 1, &error_message(&"x".repeat(1000)));
    let stalled = in_time("the stall is noticed", outbox.flush()).await;
    assert!(matches!(stalled, Err(WireError::Stalled(_))), "{stalled:?}");
}

#[tokio::test]
async fn a_flush_that_was_dropped_loses_nothing() {
    let (near, mut far) = duplex(100);
    let mut outbox = Outbox::new(near, STALL);
    for i in 0..20 {
        outbox.put(FrameKind::Error, i, &error_message("some reason"));
        outbox.put_encoded(FrameKind::Error, i, &Bytes::from(vec![0; 20_000]));
    }
    let whole = written(|outbox| {
        for i in 0..20 {
            outbox.put(FrameKind::Error, i, &error_message("some reason"));
            outbox.put_encoded(FrameKind::Error, i, &Bytes::from(vec![0; 20_000]));
        }
    })
    .await;
    let mut received = BytesMut::new();
    while !outbox.is_empty() {
        // Dropped at its first pause.
        let _ = futures::poll!(std::pin::pin!(outbox.flush()));
        let mut buf = [0; 100];
        let n = far.read(&mut buf).await.unwrap();
        received.put_slice(&buf[..n]);
    }
    drop(outbox);
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).await.unwrap();
    received.put_slice(&rest);
    assert!(received[..] == whole[..]);
}
