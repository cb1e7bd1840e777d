//! The signals that ask a command to end, or to stand still.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::exit::Failure;

/// SIGINT, SIGTERM and SIGHUP. They end the process no longer by themselves once one of these was made.
pub(crate) struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Ends {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|e| Failure::failed(format!("cannot listen for signals: {e}")));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The next one, also when it came before this was called. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }

    /// The next Ctrl-C. A terminal that is closed may say so twice, which asks for no hurry. Cancel-safe.
    pub(crate) async fn interrupted(&mut self) {
        if self.interrupt.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// Ctrl-Z, which stops the process no longer by itself: for who has to give the terminal back first.
pub(crate) struct Suspends(Option<Signal>);

impl Suspends {
    pub(crate) fn listen() -> Result<Self, Failure> {
        const SIGTSTP: i32 = rustix::process::Signal::TSTP.as_raw();
        Ok(Self(Some(listen(SignalKind::from_raw(SIGTSTP))?)))
    }

    /// It stops the process as ever.
    pub(crate) fn ignored() -> Self {
        Self(None)
    }

    /// Cancel-safe.
    pub(crate) async fn next(&mut self) {
        if let Some(signal) = &mut self.0
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|e| Failure::failed(format!("cannot listen for signals: {e}")))
}
