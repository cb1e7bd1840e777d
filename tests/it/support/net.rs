//! A network between peer ports that can be made bad: one proxy in front of each node.
//!
//! A proxy learns who dials, and what for, from the first frame of a connection. Rules are kept by the way a
//! byte goes, from one node to another, whoever dialled. TCP hides loss as lateness, so nothing is ever dropped:
//! what a cut holds back is delivered when the cut is over, unless the connection ended meanwhile. The one thing
//! that is ever changed on the way is what a node says in its first frame, which is how an older one is played.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::support::{NodeId, block::put_varint};

/// `Purpose` of the peer protocol's Hello.
const PURPOSE_LOG: u64 = 1;
const PURPOSE_SNAPSHOT: u64 = 3;
/// Bytes read at once; what waits of one direction is bounded by the sockets and so many pieces.
const PIECE_BYTES: usize = 64 << 10;
const PIECES_MAX: usize = 64;
/// The first frame is small.
const HELLO_BYTES_MAX: usize = 4 << 10;
/// `FRAME_KIND_HELLO`, and where a frame says its kind: behind its length and the version.
const KIND_HELLO: u8 = 1;
const KIND_AT: usize = 5;
/// Where the message begins: behind length, version, kind and id.
const MESSAGE_AT: usize = 14;
/// `known_commands`, as the key of a packed field.
const KNOWN_COMMANDS: u64 = 8 << 3 | 2;

/// What happens to bytes on one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Way {
    /// Nothing passes, nothing is closed: a cable that was pulled.
    pub(crate) is_cut: bool,
    /// As above for log data alone: heartbeats and votes pass.
    pub(crate) is_log_cut: bool,
    /// Everything comes so much later.
    pub(crate) delay: Duration,
    /// Some pieces come later still, and all behind them: what a lost packet costs.
    pub(crate) burst: Option<Burst>,
}

impl Way {
    pub(crate) const CUT: Self = Self { is_cut: true, ..Self::OPEN };
    pub(crate) const LOG_CUT: Self = Self { is_log_cut: true, ..Self::OPEN };
    const OPEN: Self = Self { is_cut: false, is_log_cut: false, delay: Duration::ZERO, burst: None };

    /// Open, and each n-th piece late.
    pub(crate) const fn late(every: u32, least_ms: u64, most_ms: u64) -> Self {
        let (least, most) = (Duration::from_millis(least_ms), Duration::from_millis(most_ms));
        Self { burst: Some(Burst { every, least, most }), ..Self::OPEN }
    }

    pub(crate) const fn delayed(self, ms: u64) -> Self {
        Self { delay: Duration::from_millis(ms), ..self }
    }
}

/// Each n-th piece is late, by one of eleven times from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Burst {
    every: u32,
    least: Duration,
    most: Duration,
}

impl Burst {
    fn of(&self, n_pieces: u32) -> Duration {
        if !n_pieces.is_multiple_of(self.every) {
            return Duration::ZERO;
        }
        // Seven steps of eleven: all of them come, and neighbours differ.
        self.least + (self.most - self.least) * (n_pieces / self.every * 7 % 11) / 10
    }
}

/// What happens to connections that carry a snapshot, from whoever sends to whoever receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Snapshots {
    /// So many of them end as by a reset, each once so many bytes passed on it.
    pub(crate) breaks: Option<(u32, u64)>,
    /// Nothing passes behind so many bytes of a connection: held back, and delivered when this is over.
    pub(crate) hold_after: Option<u64>,
}

/// What passed on connections that carry a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Passed {
    pub(crate) connections: u64,
    /// From sender to receiver.
    pub(crate) bytes: u64,
    pub(crate) broken: u32,
}

#[derive(Default)]
struct State {
    ways: BTreeMap<(NodeId, NodeId), Way>,
    snapshots: Snapshots,
    passed: Passed,
    /// What nodes say that they know, where that is not what they do.
    commands: BTreeMap<NodeId, Vec<u16>>,
    /// Both ends of every connection, with the two nodes it is between.
    open: Vec<(NodeId, NodeId, TcpStream)>,
    /// Connections that are open by the proxy's address.
    n_open: BTreeMap<String, usize>,
    is_over: bool,
}

/// The network. Dropped, every connection ends.
pub(crate) struct Net {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Net {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default() }
    }

    /// A proxy in front of a node that listens at `target`; returns the address to advertise.
    pub(crate) fn before(&self, node_id: NodeId, target: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("it is bound").to_string();
        let target: SocketAddr = target.parse().expect("an address");
        let (shared, own) = (Arc::clone(&self.shared), addr.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.lock().is_over {
                    return;
                }
                let (shared, own) = (Arc::clone(&shared), own.clone());
                thread::spawn(move || {
                    *shared.lock().n_open.entry(own.clone()).or_default() += 1;
                    serve(&shared, node_id, client, target);
                    *shared.lock().n_open.entry(own).or_default() -= 1;
                });
            }
        });
        addr
    }

    /// Connections that are open through one proxy.
    pub(crate) fn n_open(&self, addr: &str) -> usize {
        self.shared.lock().n_open.get(addr).copied().unwrap_or_default()
    }

    pub(crate) fn set(&self, from: NodeId, to: NodeId, way: Way) {
        self.shared.lock().ways.insert((from, to), way);
        self.shared.changed.notify_all();
    }

    pub(crate) fn set_snapshots(&self, rule: Snapshots) {
        self.shared.lock().snapshots = rule;
        self.shared.changed.notify_all();
    }

    /// What passed of snapshots so far.
    pub(crate) fn passed(&self) -> Passed {
        self.shared.lock().passed
    }

    /// What happens to everything that goes from some nodes to others.
    pub(crate) fn set_all(&self, from: &[NodeId], to: &[NodeId], way: Way) {
        for a in from {
            to.iter().filter(|b| *b != a).for_each(|b| self.set(*a, *b, way));
        }
    }

    /// Nothing passes between these and those, in either direction.
    pub(crate) fn part(&self, these: &[NodeId], those: &[NodeId]) {
        self.set_all(these, those, Way::CUT);
        self.set_all(those, these, Way::CUT);
    }

    /// All is well again.
    pub(crate) fn heal(&self) {
        let mut state = self.shared.lock();
        state.ways.clear();
        state.snapshots = Snapshots::default();
        drop(state);
        self.shared.changed.notify_all();
    }

    /// From its next connections on a node says that it knows these commands alone, as an older one would; `None`:
    /// what it does know.
    pub(crate) fn claim(&self, node_id: NodeId, commands: Option<&[u16]>) {
        let mut state = self.shared.lock();
        match commands {
            Some(commands) => state.commands.insert(node_id, commands.to_vec()),
            None => state.commands.remove(&node_id),
        };
        drop(state);
        self.reset(node_id);
    }

    /// Every connection of a node ends, as by a reset.
    pub(crate) fn reset(&self, node_id: NodeId) {
        self.shared.lock().open.retain(|(a, b, stream)| {
            let is_of_it = *a == node_id || *b == node_id;
            if is_of_it {
                // It may have ended by itself.
                let _ = stream.shutdown(Shutdown::Both);
            }
            !is_of_it
        });
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_over = true;
        for (.., stream) in state.open.drain(..) {
            // As above.
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

fn serve(shared: &Arc<Shared>, to: NodeId, mut client: TcpStream, target: SocketAddr) {
    let Some(hello) = read_frame(&mut client) else { return };
    let fields = varints(hello.get(MESSAGE_AT..).unwrap_or_default());
    let of = |number| fields.get(&number).copied().unwrap_or(0);
    let (from, purpose) = (of(3), of(5));
    let Ok(server) = TcpStream::connect(target) else { return };
    let (Ok(client_in), Ok(mut server_in)) = (client.try_clone(), server.try_clone()) else { return };
    for stream in [&client, &server] {
        // Held-back frames must not be glued together by the proxy's own socket.
        let _ = stream.set_nodelay(true);
        if let Ok(stream) = stream.try_clone() {
            shared.lock().open.push((from, to, stream));
        }
    }
    if purpose == PURPOSE_SNAPSHOT {
        shared.lock().passed.connections += 1;
    }
    let traffic = |way, is_sender| match purpose {
        PURPOSE_LOG => Traffic { way, carries: Carries::Log },
        PURPOSE_SNAPSHOT if is_sender => Traffic { way, carries: Carries::Snapshot },
        _ => Traffic { way, carries: Carries::Other },
    };
    let there = {
        let (shared, traffic, hello) =
            (Arc::clone(shared), traffic((from, to), true), said_by(shared, from, hello));
        thread::spawn(move || pass(&shared, traffic, hello, client_in, server))
    };
    let answer = read_frame(&mut server_in).map(|answer| said_by(shared, to, answer));
    pass(shared, traffic((to, from), false), answer.unwrap_or_default(), server_in, client);
    // A panic there ended its connection, which is all that matters here.
    let _ = there.join();
}

/// The first frame of a node, with what it shall say that it knows.
fn said_by(shared: &Shared, node_id: NodeId, frame: Vec<u8>) -> Vec<u8> {
    let Some(commands) = shared.lock().commands.get(&node_id).cloned() else { return frame };
    if frame.get(KIND_AT) != Some(&KIND_HELLO) {
        return frame;
    }
    let (head, mut rest) = frame.split_at(MESSAGE_AT);
    let mut message = Vec::new();
    while !rest.is_empty() {
        let field = rest;
        let Some(key) = skip(&mut rest) else { return frame };
        if key != KNOWN_COMMANDS {
            message.extend_from_slice(&field[..field.len() - rest.len()]);
        }
    }
    let mut known = Vec::new();
    commands.iter().for_each(|command| put_varint(&mut known, u64::from(*command)));
    put_varint(&mut message, KNOWN_COMMANDS);
    put_varint(&mut message, known.len() as u64);
    message.extend(known);
    let length = (head.len() - 4 + message.len()) as u32;
    [&length.to_be_bytes()[..], &head[4..], &message[..]].concat()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carries {
    Log,
    Snapshot,
    Other,
}

/// One direction of one connection.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    way: (NodeId, NodeId),
    carries: Carries,
}

/// Counts what was read of a snapshot; whether the connection ends here, after so many bytes of it.
fn breaks(shared: &Shared, n_bytes: u64, so_far: u64) -> bool {
    let mut state = shared.lock();
    state.passed.bytes += n_bytes;
    let State { snapshots, passed, .. } = &mut *state;
    let Some((left, after)) = snapshots.breaks.as_mut().filter(|(left, _)| 0 < *left) else { return false };
    let is_end = *after <= so_far;
    if is_end {
        *left -= 1;
        passed.broken += 1;
    }
    is_end
}

/// Moves bytes one way until either end is gone. `first` was read already.
fn pass(shared: &Arc<Shared>, traffic: Traffic, first: Vec<u8>, mut from: TcpStream, mut to: TcpStream) {
    let (pieces, received) = mpsc::sync_channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let writer = {
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let mut n_passed = 0;
            for (due, piece) in received {
                if !wait_until(&shared, traffic, n_passed, due) || to.write_all(&piece).is_err() {
                    break;
                }
                n_passed += piece.len() as u64;
            }
            // The other end may be gone already.
            let _ = to.shutdown(Shutdown::Both);
        })
    };
    let (mut piece, mut n_pieces, mut n_bytes, mut due) = (first, 0u32, 0, Instant::now());
    loop {
        if !piece.is_empty() {
            n_pieces += 1;
            n_bytes += piece.len() as u64;
            if traffic.carries == Carries::Snapshot && breaks(shared, piece.len() as u64, n_bytes) {
                break;
            }
            let rule = shared.lock().ways.get(&traffic.way).copied().unwrap_or_default();
            let late = rule.burst.map_or(Duration::ZERO, |burst| burst.of(n_pieces));
            // Nothing overtakes what was sent before.
            due = due.max(Instant::now() + rule.delay + late);
            if pieces.send((due, std::mem::take(&mut piece))).is_err() {
                break;
            }
        }
        piece.resize(PIECE_BYTES, 0);
        match from.read(&mut piece) {
            Ok(n) if 0 < n => piece.truncate(n),
            _ => break,
        }
    }
    drop(pieces);
    let _ = from.shutdown(Shutdown::Both);
    let _ = writer.join();
}

/// Waits until a piece is due and its way is open; `false`: the network is over.
fn wait_until(shared: &Shared, traffic: Traffic, n_passed: u64, due: Instant) -> bool {
    let mut state = shared.lock();
    loop {
        let rule = state.ways.get(&traffic.way).copied().unwrap_or_default();
        let now = Instant::now();
        let is_snapshot_held = traffic.carries == Carries::Snapshot
            && state.snapshots.hold_after.is_some_and(|after| after <= n_passed);
        let is_held = rule.is_cut || (rule.is_log_cut && traffic.carries == Carries::Log) || is_snapshot_held;
        if state.is_over || (!is_held && due <= now) {
            return !state.is_over;
        }
        let wait = if is_held { Duration::from_secs(1) } else { due - now };
        let waited = shared.changed.wait_timeout(state, wait);
        state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
    }
}

/// One frame, its length included.
fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).ok()?;
    let length = u32::from_be_bytes(frame[..4].try_into().ok()?) as usize;
    if !(MESSAGE_AT - 4..=HELLO_BYTES_MAX).contains(&length) {
        return None;
    }
    frame.resize(4 + length, 0);
    stream.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}

/// Takes one field of a protobuf message off; its key.
fn skip(message: &mut &[u8]) -> Option<u64> {
    let key = varint(message)?;
    match key & 7 {
        0 => varint(message).map(|_| key),
        2 => {
            let length = varint(message)? as usize;
            *message = message.get(length..)?;
            Some(key)
        }
        _ => None,
    }
}

/// The integer fields of a protobuf message.
fn varints(mut message: &[u8]) -> BTreeMap<u64, u64> {
    let mut fields = BTreeMap::new();
    while !message.is_empty() {
        let field = message;
        let Some(key) = skip(&mut message) else { break };
        if key & 7 == 0 {
            let mut field = field;
            let value = varint(&mut field).and_then(|_| varint(&mut field));
            fields.insert(key >> 3, value.unwrap_or(0));
        }
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
