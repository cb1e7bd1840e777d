//! A client's socket, and what it tells of how its connection went.
//!
//! A write that makes no headway for a while ends the connection: a reader that stopped reading would
//! otherwise hold its buffers and its place for ever. Nothing is read of a WebSocket that has enough calls
//! under way: the library takes every message that comes, in a task of its own.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
};
use tokio_io_timeout::TimeoutStream;

use crate::api::accept::Slot;

/// Longest time without headway of a write.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// The same for a subscriber, which may stand still for a while: as long as its pings may stay unanswered.
const WRITE_MAX_PATIENT: Duration = Duration::from_secs(300);
/// TCP keep-alive finds a peer that is gone without a word: after 30 + 4 × 10 s.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 4;
/// Calls of one WebSocket whose answer it has not taken, and bytes of their parameters and answers: beyond
/// either nothing more is read.
/// By eye: many times what a client has reason to send without waiting, and two of the largest requests.
const CALLS_MAX: usize = 256;
const CALL_BYTES_MAX: usize = 64 << 20;

/// One connection, as the requests on it and its sessions see it.
pub(crate) struct Connection {
    pub(crate) remote: IpAddr,
    pub(crate) remote_addr: SocketAddr,
    /// Beyond the bounds: only probes and metrics are answered.
    pub(crate) is_extra: bool,
    opened: Instant,
    /// Milliseconds after `opened` at which the last byte was read.
    last_read_ms: AtomicU64,
    has_write_timed_out: AtomicBool,
    is_ended: AtomicBool,
    /// Bytes that the kernel took, and how often everything was flushed to it.
    n_written: AtomicU64,
    n_flushed: AtomicU64,
    is_flushed: AtomicBool,
    flushed: Notify,
    has_request: AtomicBool,
    is_patient: AtomicBool,
    /// Calls by WebSocket under way, and bytes of their parameters and answers.
    calls: AtomicUsize,
    call_bytes: AtomicUsize,
    /// Woken when there is room for more calls, or when it is ended.
    reader: AtomicWaker,
    /// Woken when it is ended.
    writer: AtomicWaker,
    /// Held until the connection and any session on it are over.
    _slot: Slot,
}

impl Connection {
    pub(crate) fn new(remote_addr: SocketAddr, slot: Slot) -> Self {
        // IPv4 over IPv6 is IPv4.
        let remote = remote_addr.ip().to_canonical();
        Self {
            remote,
            remote_addr: SocketAddr::new(remote, remote_addr.port()),
            is_extra: slot.is_extra(),
            opened: Instant::now(),
            last_read_ms: AtomicU64::new(0),
            has_write_timed_out: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
            n_written: AtomicU64::new(0),
            n_flushed: AtomicU64::new(0),
            is_flushed: AtomicBool::new(true),
            flushed: Notify::new(),
            has_request: AtomicBool::new(false),
            is_patient: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            call_bytes: AtomicUsize::new(0),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            _slot: slot,
        }
    }

    pub(crate) fn on_request(&self) {
        self.has_request.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_request(&self) -> bool {
        self.has_request.load(Ordering::Relaxed)
    }

    /// From the next write on a reader may stand still for longer.
    pub(crate) fn be_patient(&self) {
        self.is_patient.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_write_timed_out(&self) -> bool {
        self.has_write_timed_out.load(Ordering::Relaxed)
    }

    /// As if a write had made no headway.
    pub(crate) fn end(&self) {
        self.is_ended.store(true, Ordering::Release);
        self.reader.wake();
        self.writer.wake();
    }

    /// Bytes that the kernel took until here.
    pub(crate) fn n_written(&self) -> u64 {
        self.n_written.load(Ordering::Acquire)
    }

    /// Until the last of the messages that a WebSocket was given is with the kernel. `upto`: no earlier than
    /// so many bytes; `is_empty`: whether no message waits behind the one being written.
    ///
    /// Where others keep the queue from being empty, so many flushes: each message has one, and no more than
    /// `queue` of them were before it.
    pub(crate) async fn written(&self, upto: u64, queue: u64, is_empty: impl Fn() -> bool) {
        let n_flushed = self.n_flushed.load(Ordering::Acquire);
        loop {
            let mut flushed = pin!(self.flushed.notified());
            flushed.as_mut().enable();
            let is_drained = || self.is_flushed.load(Ordering::Acquire) && is_empty();
            let is_past = || n_flushed + queue < self.n_flushed.load(Ordering::Acquire);
            if upto <= self.n_written() && (is_drained() || is_past()) {
                return;
            }
            flushed.await;
        }
    }

    /// Counts a call by WebSocket until the guard is dropped.
    pub(crate) fn begin_call(self: &Arc<Self>, bytes: usize) -> CallUnderWay {
        self.calls.fetch_add(1, Ordering::AcqRel);
        self.call_bytes.fetch_add(bytes, Ordering::AcqRel);
        CallUnderWay { connection: self.clone(), bytes }
    }

    fn is_busy(&self) -> bool {
        CALLS_MAX <= self.calls.load(Ordering::Acquire)
            || CALL_BYTES_MAX <= self.call_bytes.load(Ordering::Acquire)
    }

    /// How long nothing was heard from the other side.
    pub(crate) fn silence(&self) -> Duration {
        let at = Duration::from_millis(self.last_read_ms.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(at)
    }
}

/// A call by WebSocket.
pub(crate) struct CallUnderWay {
    connection: Arc<Connection>,
    bytes: usize,
}

impl CallUnderWay {
    /// It holds so many bytes more.
    pub(crate) fn grow(&mut self, bytes: usize) {
        self.connection.call_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.bytes += bytes;
    }
}

impl Drop for CallUnderWay {
    fn drop(&mut self) {
        self.connection.calls.fetch_sub(1, Ordering::AcqRel);
        self.connection.call_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.connection.reader.wake();
    }
}

/// The stream of a connection.
pub(crate) struct Socket {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    connection: Arc<Connection>,
    is_patient: bool,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        // Failing to set an option costs speed or a late end, never the connection.
        let _ = stream.set_nodelay(true);
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_EVERY)
            .with_retries(KEEPALIVE_PROBES);
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_MAX));
        Self { stream: Box::pin(stream), connection, is_patient: false }
    }

    /// Before a write: how long it may take is known only once it is known what for.
    fn adjust(&mut self) {
        if !self.is_patient && self.connection.is_patient.load(Ordering::Relaxed) {
            self.is_patient = true;
            self.stream.as_mut().set_write_timeout_pinned(Some(WRITE_MAX_PATIENT));
        }
    }

    /// What became of a write. One that waits is woken when the connection is ended.
    fn note(&self, cx: &Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let connection = &self.connection;
        match &written {
            Poll::Ready(Ok(n)) => {
                connection.is_flushed.store(false, Ordering::Release);
                connection.n_written.fetch_add(*n as u64, Ordering::AcqRel);
            }
            Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::TimedOut => {
                connection.has_write_timed_out.store(true, Ordering::Relaxed);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                connection.writer.register(cx.waker());
                if self.is_ended() {
                    cx.waker().wake_by_ref();
                }
            }
        }
        written
    }

    fn is_ended(&self) -> bool {
        self.connection.is_ended.load(Ordering::Acquire)
    }

    fn ended<T>(&self) -> Poll<io::Result<T>> {
        self.connection.has_write_timed_out.store(true, Ordering::Relaxed);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.connection.reader.register(cx.waker());
        if self.is_ended() {
            return self.ended();
        }
        // Looked at behind the waker: a call may end at any time.
        if self.connection.is_busy() {
            return Poll::Pending;
        }
        let read = self.stream.as_mut().poll_read(cx, buf);
        if read.is_ready() {
            let ms = self.connection.opened.elapsed().as_millis() as u64;
            self.connection.last_read_ms.store(ms, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_ended() {
            return self.ended();
        }
        self.adjust();
        let written = self.stream.as_mut().poll_write(cx, buf);
        self.note(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.stream.as_mut().poll_flush(cx);
        let connection = &self.connection;
        if let Poll::Ready(Ok(())) = &flushed
            && !connection.is_flushed.swap(true, Ordering::AcqRel)
        {
            connection.n_flushed.fetch_add(1, Ordering::AcqRel);
            connection.flushed.notify_waiters();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_ended() {
            return self.ended();
        }
        self.adjust();
        let written = self.stream.as_mut().poll_write_vectored(cx, bufs);
        self.note(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::api::accept;

    async fn pair() -> (TcpStream, Socket, Arc<Connection>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, remote) = listener.accept().await.unwrap();
        let connection = Arc::new(Connection::new(remote, accept::lone_slot()));
        (client, Socket::new(server, connection.clone()), connection)
    }

    async fn is_read(socket: &mut Socket) -> bool {
        let mut byte = [0];
        let read = socket.read_exact(&mut byte);
        tokio::time::timeout(Duration::from_millis(200), read).await.is_ok_and(|r| r.is_ok())
    }

    #[tokio::test]
    async fn nothing_is_read_while_enough_calls_are_under_way() {
        let (mut client, mut socket, connection) = pair().await;
        client.write_all(b"abc").await.unwrap();
        assert!(is_read(&mut socket).await);
        let mut calls: Vec<_> = (0..CALLS_MAX).map(|_| connection.begin_call(1)).collect();
        assert!(!is_read(&mut socket).await);
        let reading = tokio::spawn(async move { (is_read(&mut socket).await, socket) });
        tokio::task::yield_now().await;
        calls.pop();
        let (was_read, mut socket) = reading.await.unwrap();
        assert!(was_read, "a call that ends lets the next one in");
        calls.clear();
        let large = connection.begin_call(CALL_BYTES_MAX);
        assert!(!is_read(&mut socket).await);
        drop(large);
        assert!(is_read(&mut socket).await);
    }

    #[tokio::test]
    async fn silence_is_counted_from_the_last_byte() {
        let (mut client, mut socket, connection) = pair().await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(Duration::from_millis(30) <= connection.silence());
        client.write_all(b"a").await.unwrap();
        assert!(is_read(&mut socket).await);
        assert!(connection.silence() < Duration::from_millis(30));
    }
}
