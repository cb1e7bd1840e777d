//! The node as a process: signals, how it ended last time, what systemd is told, the exit code.

use std::io::Write;
use std::{path::PathBuf, time::Duration};

use prometheus::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config;
use crate::node::{
    StartError,
    build::{self, Process},
    stop,
};
use crate::store;
use crate::telemetry;

/// Log lines that are still queued get so long at the end.
const LOG_WITHIN: Duration = Duration::from_millis(200);

/// Runs a node until a signal or a failure ends it. Returns the exit code.
///
/// `until` completes when somebody else wants it to end, such as a parent that is gone.
pub(crate) fn run(settings: config::Settings, until: impl Future<Output = ()> + Send + 'static) -> u8 {
    let registry = Registry::new();
    let rejected = telemetry::trace::counted::Rejected::default();
    let (log, lines) = match telemetry::log::start(&settings.telemetry.log, &registry, &rejected) {
        Ok(started) => started,
        Err(error) => return refuse(&StartError { exit_code: 2, message: error.to_string() }),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            return refuse(&StartError { exit_code: 1, message: format!("no runtime: {error}") });
        }
    };
    let code = runtime.block_on(live(settings, Process { registry, log: Some(log), rejected }, until));
    // What is left are reads that nobody waits for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    lines.flush(LOG_WITHIN);
    code
}

/// One worker for two processors: the other one has the log's writer and the database. A block is
/// a chain of small steps, and each that another worker is woken for costs a switch
/// (`benches/README.md`). `TOKIO_WORKER_THREADS` overrides it.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        builder.worker_threads(processors.div_ceil(2));
    }
    builder.enable_all().thread_name("blockraft").build()
}

/// A start that was refused is told on stderr too: the log may go elsewhere, or nowhere. The exit code says it where that
/// cannot be written.
fn refuse(error: &StartError) -> u8 {
    let _ = writeln!(std::io::stderr().lock(), "blockraft: {error}");
    error.exit_code
}

async fn live(settings: config::Settings, process: Process, until: impl Future<Output = ()>) -> u8 {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            return refuse(&StartError { exit_code: 1, message: format!("signals: {error}") });
        }
    };
    let data_dir = settings.node.data_dir.clone();
    if let Err(error) = telemetry::process::register(&process.registry) {
        tracing::warn!(%error, "no process metrics");
    }
    let within = stop::within(&settings);
    let mut starting = std::pin::pin!(build::start(settings, process));
    let started = tokio::select! {
        started = &mut starting => started,
        name = signals.stop() => {
            tracing::info!(signal = name, "stopping as soon as the node has started");
            let started = tokio::select! {
                started = tokio::time::timeout(within, &mut starting) => started,
                name = signals.stop() => return leave_on(name),
            };
            match started {
                Ok(Ok(running)) => return end_orderly(data_dir, running, signals, within).await,
                Ok(Err(error)) => Err(error),
                Err(_) => {
                    // A disk that hangs, or a log that is read for long.
                    tracing::warn!(?within, "the start does not end: leaving");
                    return leave_now(1);
                }
            }
        }
    };
    let mut running = match started {
        Ok(running) => running,
        Err(error) => {
            tracing::error!(error = %error, exit_code = error.exit_code, "the node does not start");
            return refuse(&error);
        }
    };
    notify_systemd("READY=1");
    tokio::select! {
        failure = running.failed() => {
            tracing::error!(error = %failure, exit_code = failure.exit_code, "the node cannot go on");
            end_fatally(data_dir, failure).await
        }
        name = signals.stop() => {
            tracing::info!(signal = name, "stopping");
            end_orderly(data_dir, running, signals, within).await
        }
        () = until => {
            tracing::info!("stopping: the parent process is gone");
            end_orderly(data_dir, running, signals, within).await
        }
    }
}

/// 0 only when everything acknowledged is durable and the folder is closed.
async fn end_orderly(
    data_dir: PathBuf,
    running: build::Running,
    mut signals: Signals,
    within: Duration,
) -> u8 {
    notify_systemd("STOPPING=1");
    let health = running.health.clone();
    tokio::select! {
        stopped = tokio::time::timeout(within, stop::stop(running)) => {
            // A sync that failed on the way out, or one that never returned.
            if let Some(fatal) = health.get().fatal {
                return end_fatally(data_dir, fatal.into()).await;
            }
            if stopped.is_err() {
                let message = format!("the stop did not end within {within:?}: the disk hangs or is too slow");
                tracing::error!(error = message, "leaving without closing the store");
                return end_fatally(data_dir, StartError { exit_code: 1, message }).await;
            }
            if let Err(error) = store::exit::record(&data_dir, store::exit::Cause::Clean, "stopped in order") {
                tracing::warn!(%error, "LAST_EXIT cannot be written");
            }
            0
        }
        name = signals.stop() => leave_on(name),
    }
}

/// Says why, and goes: within a second, whatever hangs.
async fn end_fatally(data_dir: PathBuf, failure: StartError) -> u8 {
    let code = failure.exit_code;
    let recorded = tokio::task::spawn_blocking(move || {
        store::exit::record(&data_dir, store::exit::Cause::Fatal, &failure.message)
    });
    if tokio::time::timeout(build::FATAL_WITHIN, recorded).await.is_err() {
        tracing::warn!("LAST_EXIT is not written: the disk hangs");
    }
    leave_now(code)
}

fn leave_on(second_signal: &str) -> u8 {
    tracing::warn!(signal = second_signal, "a second signal: leaving at once");
    leave_now(1)
}

/// Without closing anything: what is not durable was never acknowledged.
#[expect(clippy::disallowed_methods, reason = "the way out that waits for nothing is asked for here")]
fn leave_now(code: u8) -> u8 {
    std::process::exit(i32::from(code))
}

/// The signals a node minds.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Completes with the name of a signal that ends the node.
    async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "SIGTERM",
                _ = self.int.recv() => return "SIGINT",
                _ = self.hup.recv() => tracing::info!("SIGHUP is ignored"),
            }
        }
    }
}

/// Tells a systemd that started this process; without one it does nothing.
fn notify_systemd(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|s| {
        // An abstract address begins with @, which stands for a zero byte.
        let path = socket.to_string_lossy();
        match path.strip_prefix('@') {
            Some(name) => {
                use std::os::linux::net::SocketAddrExt;
                let addr = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                s.send_to_addr(state.as_bytes(), &addr)
            }
            None => s.send_to(state.as_bytes(), &*path),
        }
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
