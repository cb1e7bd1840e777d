//! A network that can be made bad: a proxy between two nodes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What the proxy does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Forward,
    /// Bytes of the answering side come so much later.
    SlowAnswers(Duration),
    /// Nothing passes, nothing is closed: a cable that was pulled.
    Hold,
    /// The connection ends after so many bytes to the answering side.
    CutAfter(u64),
    /// The byte at this place towards the answering side is another one.
    Flip(u64),
}

pub(super) struct Proxy {
    pub(super) addr: SocketAddr,
    mode_tx: watch::Sender<(Mode, u64)>,
    accepted: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
}

impl Proxy {
    pub(super) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (mode_tx, mode_rx) = watch::channel((Mode::Forward, 0));
        let accepted = Arc::new(AtomicU64::new(0));
        let passed = Arc::new(AtomicU64::new(0));
        let (counted, bytes) = (Arc::clone(&accepted), Arc::clone(&passed));
        tokio::spawn(async move {
            let closed = mode_rx.clone();
            loop {
                let mut gone = closed.clone();
                let client = tokio::select! {
                    Ok((client, _)) = listener.accept() => client,
                    _ = async { while gone.changed().await.is_ok() {} } => return,
                };
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(client, target, mode_rx.clone(), Arc::clone(&bytes)));
            }
        });
        Self { addr, mode_tx, accepted, passed }
    }

    pub(super) fn set(&self, mode: Mode) {
        self.mode_tx.send_modify(|(old, _)| *old = mode);
    }

    /// Every connection ends.
    pub(super) fn cut(&self) {
        self.mode_tx.send_modify(|(_, generation)| *generation += 1);
    }

    pub(super) fn n_accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Bytes towards the answering side.
    pub(super) fn n_passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }
}

async fn serve(
    client: TcpStream,
    target: SocketAddr,
    mode_rx: watch::Receiver<(Mode, u64)>,
    passed: Arc<AtomicU64>,
) {
    let generation = mode_rx.borrow().1;
    let mut cut = mode_rx.clone();
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::select! {
        () = forward(client_read, server_write, mode_rx.clone(), Some(passed)) => {}
        () = forward(server_read, client_write, mode_rx, None) => {}
        _ = cut.wait_for(|(_, now)| *now != generation) => {}
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode_rx: watch::Receiver<(Mode, u64)>,
    passed: Option<Arc<AtomicU64>>,
) {
    let mut buf = vec![0; 64 << 10];
    let mut n_here = 0u64;
    loop {
        let Ok(n) = from.read(&mut buf).await else {
            return;
        };
        if n == 0 {
            return;
        }
        if mode_rx.wait_for(|(mode, _)| *mode != Mode::Hold).await.is_err() {
            return;
        }
        let mode = mode_rx.borrow().0;
        let is_asking = passed.is_some();
        let mut n = n;
        match mode {
            Mode::SlowAnswers(by) if !is_asking => tokio::time::sleep(by).await,
            Mode::CutAfter(bytes) if is_asking && bytes < n_here + n as u64 => {
                n = bytes.saturating_sub(n_here) as usize;
            }
            Mode::Flip(at) if is_asking && (n_here..n_here + n as u64).contains(&at) => {
                buf[(at - n_here) as usize] ^= 1;
            }
            _ => {}
        }
        if to.write_all(&buf[..n]).await.is_err() {
            return;
        }
        n_here += n as u64;
        if let Some(passed) = &passed {
            passed.fetch_add(n as u64, Ordering::SeqCst);
        }
        if matches!(mode, Mode::CutAfter(bytes) if is_asking && bytes <= n_here) {
            return;
        }
    }
}
