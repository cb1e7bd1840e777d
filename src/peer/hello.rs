//! The handshake: who is on the other side, and whether it may be talked to.
//!
//! Both sides compare, both sides refuse, and an incarnation seen for the first time is durable
//! before the connection is used (safety rule 8). Knows nothing of what is said afterwards.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::{
    TcpStream,
    tcp::{OwnedReadHalf, OwnedWriteHalf},
};

use crate::peer::{
    Incarnation, LogPos,
    metrics::{Reason, Rpc},
    network::Shared,
    said::Topic,
    wire::{Frame, HELLO_BYTES_MAX, Outbox, Reader, WireError},
};
use crate::raft::convert::KNOWN_COMMANDS;
use crate::types::{
    LogIndex, NodeId,
    proto::{self, FrameKind, Purpose, RefusalCode},
};

/// Both halves of a connection whose other side is known.
pub(super) struct Connection {
    pub(super) peer_id: NodeId,
    pub(super) purpose: Purpose,
    pub(super) reader: Reader<OwnedReadHalf>,
    pub(super) outbox: Outbox<OwnedWriteHalf>,
}

/// Not admitted, by either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: RefusalCode,
    pub(super) reason: String,
}

impl Refused {
    fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    fn label(&self) -> Reason {
        match self.code {
            RefusalCode::ClusterId => Reason::ClusterId,
            RefusalCode::ClusterEpoch => Reason::ClusterEpoch,
            RefusalCode::NodeId => Reason::NodeId,
            RefusalCode::Incarnation => Reason::Incarnation,
            RefusalCode::Position => Reason::Position,
            RefusalCode::Malformed => Reason::Malformed,
            RefusalCode::Busy => Reason::Busy,
            RefusalCode::Storage => Reason::Storage,
            RefusalCode::Unknown => Reason::Refused,
        }
    }
}

/// Why a handshake led to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    #[error("handshake failed: {0}")]
    Wire(#[from] WireError),
    #[error("the other side did not finish the handshake in time")]
    TimedOut,
    #[error("refused here: {}", .0.reason)]
    Here(Refused),
    #[error("refused by the other side: {}", .0.reason)]
    There(Refused),
}

impl HelloError {
    pub(super) fn label(&self) -> Reason {
        match self {
            Self::Wire(e) => wire_reason(e),
            Self::TimedOut => Reason::Timeout,
            Self::Here(refused) | Self::There(refused) => refused.label(),
        }
    }

    /// Somebody must look: retrying alone does not help.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Here(refused) | Self::There(refused) => refused.code != RefusalCode::Busy,
            Self::Wire(_) | Self::TimedOut => false,
        }
    }
}

pub(super) fn wire_reason(error: &WireError) -> Reason {
    match error {
        WireError::Closed | WireError::Io(_) => Reason::Closed,
        WireError::Stalled(_) => Reason::Timeout,
        WireError::TooLarge(_) | WireError::Version(_) | WireError::Malformed(_) => Reason::Malformed,
        WireError::Corrupt(_) => Reason::Corrupt,
    }
}

/// The dialler's side.
pub(super) async fn greet(
    shared: &Shared,
    stream: TcpStream,
    node_id: NodeId,
    purpose: Purpose,
) -> Result<Connection, HelloError> {
    let within = shared.config.hello_timeout;
    let greeted = tokio::time::timeout(within, greet_unbounded(shared, stream, node_id, purpose)).await;
    let greeted = greeted.unwrap_or(Err(HelloError::TimedOut));
    match &greeted {
        Ok(_) => shared.said.admitted(Topic::Dialled, node_id),
        Err(e) => {
            shared.metrics_of(node_id).failed(Rpc::Hello, e.label());
            shared.said.refused(Topic::Dialled, node_id, e);
        }
    }
    greeted
}

async fn greet_unbounded(
    shared: &Shared,
    stream: TcpStream,
    node_id: NodeId,
    purpose: Purpose,
) -> Result<Connection, HelloError> {
    let (mut reader, mut outbox) = halves(shared, stream);
    outbox.put(FrameKind::Hello, 0, &own_hello(shared, purpose, node_id, 0));
    outbox.flush().await?;
    let hello = hello_from(reader.next().await?)?;
    if let Err(refused) = check(shared, &hello, Some(node_id)).await {
        refuse(&mut outbox, &refused).await;
        return Err(HelloError::Here(refused));
    }
    Ok(admitted(shared, reader, outbox, &hello, purpose))
}

/// Asks whoever listens there who it is; nothing is admitted.
pub(super) async fn probe(shared: &Shared, stream: TcpStream) -> Result<proto::Hello, HelloError> {
    let asked = async {
        let (mut reader, mut outbox) = halves(shared, stream);
        outbox.put(FrameKind::Hello, 0, &own_hello(shared, Purpose::Probe, 0, 0));
        outbox.flush().await?;
        hello_from(reader.next().await?)
    };
    tokio::time::timeout(shared.config.hello_timeout, asked).await.unwrap_or(Err(HelloError::TimedOut))
}

/// The acceptor's side. `Ok(None)`: it was a probe, and was answered.
pub(super) async fn welcome(
    shared: &Shared,
    stream: TcpStream,
    from: SocketAddr,
) -> Result<Option<Connection>, HelloError> {
    // Filled in as soon as the other side says who it is.
    let mut said_id = 0;
    let within = shared.config.hello_timeout;
    let welcomed = tokio::time::timeout(within, welcome_unbounded(shared, stream, &mut said_id)).await;
    let welcomed = welcomed.unwrap_or(Err(HelloError::TimedOut));
    if let Err(e) = &welcomed {
        shared.metrics_of(said_id).failed(Rpc::Hello, e.label());
        tracing::debug!(%from, peer_id = said_id as i64, error = %e, "connection was not admitted");
        // Whether all is well only the other side knows yet: it may still refuse.
        shared.said.refused(Topic::Accepted, said_id, e);
    }
    welcomed
}

async fn welcome_unbounded(
    shared: &Shared,
    stream: TcpStream,
    said_id: &mut NodeId,
) -> Result<Option<Connection>, HelloError> {
    let (mut reader, mut outbox) = halves(shared, stream);
    let hello = match reader.next().await {
        Ok(frame) => hello_from(frame),
        Err(e) => Err(HelloError::Wire(e)),
    };
    let hello = match hello {
        Ok(hello) => hello,
        Err(HelloError::Wire(e @ (WireError::Version(_) | WireError::Malformed(_)))) => {
            refuse(&mut outbox, &Refused::new(RefusalCode::Malformed, e.to_string())).await;
            return Err(HelloError::Wire(e));
        }
        Err(e) => return Err(e),
    };
    *said_id = hello.node_id;
    let not_member = shared.not_member(hello.node_id).unwrap_or(0);
    if hello.purpose() == Purpose::Probe {
        outbox.put(FrameKind::Hello, 0, &own_hello(shared, Purpose::Probe, 0, not_member));
        outbox.flush().await?;
        return Ok(None);
    }
    if let Err(refused) = check(shared, &hello, None).await {
        refuse(&mut outbox, &refused).await;
        return Err(HelloError::Here(refused));
    }
    shared.announced(hello.node_id, &hello.advertise);
    outbox.put(FrameKind::Hello, 0, &own_hello(shared, hello.purpose(), 0, not_member));
    outbox.flush().await?;
    let purpose = hello.purpose();
    Ok(Some(admitted(shared, reader, outbox, &hello, purpose)))
}

fn halves(shared: &Shared, stream: TcpStream) -> (Reader<OwnedReadHalf>, Outbox<OwnedWriteHalf>) {
    let (read, write) = stream.into_split();
    let stall = shared.config.stall_timeout;
    (Reader::new(read, HELLO_BYTES_MAX, stall), Outbox::new(write, stall))
}

fn own_hello(shared: &Shared, purpose: Purpose, expected: NodeId, not_member: LogIndex) -> proto::Hello {
    let who = &shared.identity;
    proto::Hello {
        cluster_id: who.cluster_id.clone(),
        cluster_epoch: shared.epoch(),
        node_id: who.node_id,
        incarnation: bytes::Bytes::copy_from_slice(&who.incarnation),
        purpose: purpose as i32,
        expected_node_id: expected,
        last_log_id: shared.notices.own_last().map(proto::LogId::from),
        known_commands: KNOWN_COMMANDS
            .iter()
            .map(|(kind, version)| u32::from(kind.to_u8()) << 8 | u32::from(*version))
            .collect(),
        not_member_version: not_member,
        advertise: shared.config.advertise.clone(),
        process: shared.process,
        recorded_by: match shared.newest_membership() {
            (entry, true) => Some(entry.into()),
            (_, false) => None,
        },
    }
}

fn hello_from(frame: Frame) -> Result<proto::Hello, HelloError> {
    match frame.kind() {
        Some(FrameKind::Hello) => Ok(frame.decode()?),
        Some(FrameKind::Refusal) => {
            let refusal: proto::Refusal = frame.decode()?;
            Err(HelloError::There(Refused { code: refusal.code(), reason: refusal.reason }))
        }
        _ => Err(WireError::Malformed(format!("frame of kind {} in a handshake", frame.kind)).into()),
    }
}

/// `dialled`: whom this node meant to reach; `None` on the accepting side.
async fn check(shared: &Shared, hello: &proto::Hello, dialled: Option<NodeId>) -> Result<(), Refused> {
    let who = &shared.identity;
    if hello.cluster_id != who.cluster_id {
        let reason = format!("cluster is {:?} here and {:?} there", who.cluster_id, hello.cluster_id);
        return Err(Refused::new(RefusalCode::ClusterId, reason));
    }
    let own_epoch = shared.epoch();
    // A node without any data belongs to the epoch that its cluster is in. One that shows none is let
    // in: it takes ours over, or refuses us.
    let is_blank_there = hello.cluster_epoch == 0 && hello.last_log_id.is_none();
    let may_adopt = own_epoch == 0 && shared.incarnations.may_adopt_epoch();
    if hello.cluster_epoch != own_epoch && !is_blank_there && !may_adopt {
        let reason = format!(
            "epoch is {own_epoch} here and {} there: one of them was recovered without the other",
            hello.cluster_epoch
        );
        return Err(Refused::new(RefusalCode::ClusterEpoch, reason));
    }
    let (meant, found) = match dialled {
        Some(node_id) => (node_id, hello.node_id),
        None => (hello.expected_node_id, who.node_id),
    };
    if meant != found {
        let reason = format!("node {meant} was meant, node {found} listens at this address");
        return Err(Refused::new(RefusalCode::NodeId, reason));
    }
    if hello.node_id == who.node_id || hello.node_id == 0 {
        let reason = format!("both sides are node {}", who.node_id);
        return Err(Refused::new(RefusalCode::NodeId, reason));
    }
    if dialled.is_none() && !matches!(hello.purpose(), Purpose::Log | Purpose::Control | Purpose::Snapshot) {
        let reason = format!("purpose {} is not known here", hello.purpose);
        return Err(Refused::new(RefusalCode::Malformed, reason));
    }
    // First whose life it is: one that lost everything has other things to say than its position.
    check_incarnation(shared, hello).await?;
    check_position(shared, hello)?;
    if hello.cluster_epoch != own_epoch && !is_blank_there {
        adopt_epoch(shared, hello).await?;
    }
    Ok(())
}

/// Takes over the epoch of a cluster that was recovered or restored, durably, before this node hears
/// anything else of it.
async fn adopt_epoch(shared: &Shared, hello: &proto::Hello) -> Result<(), Refused> {
    let epoch = hello.cluster_epoch;
    let incarnations = Arc::clone(&shared.incarnations);
    let adopted = tokio::task::spawn_blocking(move || incarnations.adopt_epoch(epoch)).await;
    match adopted.map_err(std::io::Error::other).and_then(|adopted| adopted) {
        Ok(()) => {
            shared.set_epoch(epoch);
            tracing::info!(peer_id = hello.node_id as i64, epoch, "the cluster's epoch was taken over");
            Ok(())
        }
        Err(e) => Err(Refused::new(RefusalCode::Storage, format!("epoch could not be stored: {e}"))),
    }
}

/// A folder put back from an older copy keeps its incarnation, but lacks what it acknowledged.
fn check_position(shared: &Shared, hello: &proto::Hello) -> Result<(), Refused> {
    let Some(floor) = shared.notices.floor(hello.node_id) else {
        return Ok(());
    };
    // A Hello that was held up on its way is older than what the same process acknowledged meanwhile.
    if shared.was_admitted(hello.node_id, hello.process) {
        return Ok(());
    }
    let last = hello.last_log_id.map(LogPos::from).unwrap_or_default();
    if last < floor {
        let reason = format!(
            "node {} ends at index {} of term {}, it had acknowledged index {} of term {}",
            hello.node_id, last.index, last.term, floor.index, floor.term
        );
        return Err(Refused::new(RefusalCode::Position, reason));
    }
    Ok(())
}

async fn check_incarnation(shared: &Shared, hello: &proto::Hello) -> Result<(), Refused> {
    let node_id = hello.node_id;
    let shown = Incarnation::try_from(hello.incarnation.as_ref()).map_err(|_| {
        let reason = format!("incarnation has {} bytes, not 16", hello.incarnation.len());
        Refused::new(RefusalCode::Malformed, reason)
    })?;
    let recorded = shared.recorded_incarnation(node_id);
    let known = shared.incarnations.known(node_id);
    // The membership record overrules what was seen first, and a newer record an older one: a node that was away while this
    // one lost its data and was added again would else refuse the only one that may tell it so.
    if let Some(expected) = recorded.or(known)
        && expected != shown
        && hello.recorded_by.map(LogPos::from).unwrap_or_default() <= shared.newest_membership().0
    {
        let reason = format!(
            "node {node_id} shows incarnation {}, known is {}: it lost its data; remove it and add it again",
            hex(&shown),
            hex(&expected)
        );
        return Err(Refused::new(RefusalCode::Incarnation, reason));
    }
    if known == Some(shown) || !shared.may_remember(node_id) {
        return Ok(());
    }
    let incarnations = Arc::clone(&shared.incarnations);
    let remembered = tokio::task::spawn_blocking(move || incarnations.remember(node_id, shown)).await;
    match remembered {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => {
            Err(Refused::new(RefusalCode::Storage, format!("incarnation could not be stored: {e}")))
        }
        Err(e) => Err(Refused::new(RefusalCode::Storage, format!("incarnation could not be stored: {e}"))),
    }
}

/// The dialler refused after it was admitted here: the first frame it sends says why.
pub(super) fn refused_by_dialler(shared: &Shared, peer_id: NodeId, frame: Frame) -> WireError {
    let refusal: proto::Refusal = match frame.decode() {
        Ok(refusal) => refusal,
        Err(e) => return e,
    };
    let error = HelloError::There(Refused { code: refusal.code(), reason: refusal.reason });
    shared.metrics_of(peer_id).failed(Rpc::Hello, error.label());
    shared.said.refused(Topic::Accepted, peer_id, &error);
    WireError::Closed
}

/// Says so, if the other side still listens.
async fn refuse(outbox: &mut Outbox<OwnedWriteHalf>, refused: &Refused) {
    let refusal = proto::Refusal { code: refused.code as i32, reason: refused.reason.clone() };
    outbox.put(FrameKind::Refusal, 0, &refusal);
    if let Err(e) = outbox.flush().await {
        tracing::debug!(error = %e, "refusal could not be sent");
    }
}

fn admitted(
    shared: &Shared,
    mut reader: Reader<OwnedReadHalf>,
    mut outbox: Outbox<OwnedWriteHalf>,
    hello: &proto::Hello,
    purpose: Purpose,
) -> Connection {
    let peer_id = hello.node_id;
    let metrics = shared.metrics_of(peer_id);
    reader.admit(shared.config.frame_bytes_max, metrics.received_bytes());
    outbox.admit(metrics.sent_bytes());
    if purpose == Purpose::Log {
        outbox.count_also(metrics.log_sent_bytes());
    }
    shared.admitted(peer_id, hello.process);
    shared.notices.commands_known(peer_id, &commands_of(&hello.known_commands));
    if hello.not_member_version != 0 {
        shared.notices.not_member(peer_id, hello.not_member_version);
    }
    Connection { peer_id, purpose, reader, outbox }
}

/// Each kind and version.
pub(super) fn commands_of(known: &[u32]) -> Vec<(u8, u8)> {
    known.iter().filter_map(|c| Some((u8::try_from(c >> 8).ok()?, (c & 0xff) as u8))).collect()
}

fn hex(incarnation: &Incarnation) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 * incarnation.len());
    for byte in incarnation {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
