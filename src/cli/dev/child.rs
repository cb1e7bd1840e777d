//! One node's process.
//!
//! A task owns the process, so that a signal never goes to a number that another process has by then. The
//! child ends by itself when this process does, however that happens: it sees the end of its stdin.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::OpenOptions,
    future::Future,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
};

use crate::cli::config_args::{ConfigArgs, environment};
use crate::cli::ctl::curl::quote;
use crate::cli::dev::folder::Folder;
use crate::cli::exit::Failure;
use crate::types::NodeId;

/// How a node is started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) node_id: NodeId,
    pub(crate) program: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) set: Vec<String>,
}

/// How each node of a folder is started, if its settings are what a node takes.
pub(crate) fn launches(folder: &Folder, set: &[String]) -> Result<BTreeMap<NodeId, Launch>, Failure> {
    let program =
        std::env::current_exe().map_err(|e| Failure::failed(format!("cannot find this program: {e}")))?;
    let launches: BTreeMap<NodeId, Launch> = (1..=NodeId::from(folder.n_nodes()))
        .map(|node_id| {
            let (config, log) = (folder.config_of(node_id), folder.log_of(node_id));
            (node_id, Launch { node_id, program: program.clone(), config, log, set: set.to_vec() })
        })
        .collect();
    launches.values().try_for_each(Launch::check)?;
    Ok(launches)
}

impl Launch {
    /// All that a node would refuse its settings for, before one is started.
    fn check(&self) -> Result<(), Failure> {
        let args = ConfigArgs { config: Some(self.config.clone()), set: self.set.clone() };
        args.load_with(passed_on()).map(drop)
    }
}

/// A process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) node_id: NodeId,
    /// In words.
    pub(crate) how: String,
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
}

/// A running process. Dropping it closes the child's stdin, which stops the child.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    signals: mpsc::UnboundedSender<Signal>,
}

impl Process {
    pub(crate) fn signal(&self, signal: Signal) {
        // It has ended, and `Ended` is on its way.
        let _ = self.signals.send(signal);
    }
}

/// Signals all, and waits until they have ended; those that have not `within` are killed. Completing
/// `hurry` kills the rest at once. Returns who had to be killed for the time.
pub(crate) async fn stop_all(
    mut processes: BTreeMap<NodeId, Process>,
    ended: &mut mpsc::UnboundedReceiver<Ended>,
    within: Duration,
    hurry: impl Future<Output = ()>,
) -> Vec<NodeId> {
    for process in processes.values() {
        process.signal(Signal::TERM);
    }
    let late = tokio::time::sleep(within);
    tokio::pin!(late, hurry);
    let mut killed = Vec::new();
    let mut is_killed = false;
    while !processes.is_empty() {
        tokio::select! {
            Some(ended) = ended.recv() => drop(processes.remove(&ended.node_id)),
            () = &mut hurry, if !is_killed => is_killed = true,
            () = &mut late, if !is_killed => {
                killed = processes.keys().copied().collect();
                is_killed = true;
            }
        }
        if is_killed {
            processes.values().for_each(|p| p.signal(Signal::KILL));
        }
    }
    killed
}

/// The line that starts the same node by hand.
pub(crate) fn command_line(launch: &Launch) -> String {
    let config = quote(&launch.config.display().to_string());
    format!("blockraft node --config {config}{}", set_flags(&launch.set))
}

/// The flags that give the same settings again.
pub(crate) fn set_flags(set: &[String]) -> String {
    set.iter().map(|set| format!(" --set {}", quote(set))).collect()
}

/// Starts the node; its end is told to `ended`.
pub(crate) fn start(launch: &Launch, ended: mpsc::UnboundedSender<Ended>) -> std::io::Result<Process> {
    let log = OpenOptions::new().create(true).append(true).open(&launch.log)?;
    let mut command = Command::new(&launch.program);
    command.args(["node", "--exit-with-parent", "--config"]).arg(&launch.config);
    for set in &launch.set {
        command.args(["--set", set]);
    }
    command.env_clear().envs(passed_on());
    // A group of its own: Ctrl-C reaches dev alone, which then stops the nodes, once.
    command.process_group(0).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn()?;
    let pid = child.id().expect("a child that was not waited for has a pid");
    let (signals, queue) = mpsc::unbounded_channel();
    tokio::spawn(own(launch.node_id, child, queue, ended));
    Ok(Process { pid, signals })
}

/// One environment for all nodes would give all the same id and ports: settings come by --set.
fn passed_on() -> Vec<(OsString, OsString)> {
    let is_setting = |name: &OsString| name.to_string_lossy().starts_with("BLOCKRAFT_");
    environment().into_iter().filter(|(name, _)| !is_setting(name)).collect()
}

async fn own(
    node_id: NodeId,
    mut child: Child,
    mut signals: mpsc::UnboundedReceiver<Signal>,
    ended: mpsc::UnboundedSender<Ended>,
) {
    // `wait` would close it.
    let mut stdin = child.stdin.take();
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            signal = signals.recv() => match signal {
                Some(signal) => {
                    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
                        // Gone already: `wait` says so next.
                        let _ = kill_process(pid, signal);
                    }
                }
                None => {
                    drop(stdin.take());
                    break child.wait().await;
                }
            },
        }
    };
    let (how, code) = match status {
        Ok(status) => (words(status), status.code()),
        Err(e) => (format!("lost: {e}"), None),
    };
    // Nobody listens when dev itself ends.
    let _ = ended.send(Ended { node_id, how, code });
}

/// `ended with 1`, `killed by signal 9`.
fn words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => "stopped".into(),
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// The last line of a log, for the message about a node that did not start.
pub(crate) fn last_line(log: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    // By eye: some lines.
    const TAIL_BYTES: u64 = 4 << 10;
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let mut text = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().find(|l| !l.trim().is_empty()).map(|l| l.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(dir: &Path, script: &str) -> Launch {
        use std::os::unix::fs::PermissionsExt;
        let program = dir.join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("executable");
        Launch { node_id: 7, program, config: dir.join("c"), log: dir.join("log"), set: vec!["a.b=1".into()] }
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_told_in_words() {
        let dir = tempfile::tempdir().expect("a folder");
        let (tx, mut rx) = mpsc::unbounded_channel();
        let _process = start(&launch(dir.path(), "echo \"$@\"; echo; exit 3"), tx.clone()).expect("started");
        let ended = rx.recv().await.expect("told");
        assert_eq!((ended.node_id, ended.how.as_str(), ended.code), (7, "ended with exit code 3", Some(3)));
        let want = format!("node --exit-with-parent --config {} --set a.b=1", dir.path().join("c").display());
        assert_eq!(last_line(&dir.path().join("log")), Some(want));

        // Reads its stdin as a node does.
        let process = start(&launch(dir.path(), "read line; exit 9"), tx.clone()).expect("started");
        process.signal(Signal::KILL);
        assert_eq!(rx.recv().await.expect("told").how, "killed by signal 9");
    }

    #[test]
    fn lines_to_be_pasted_survive_the_shell() {
        let dir = Path::new("/tmp/my dir");
        let mut launch = Launch {
            node_id: 1,
            program: dir.into(),
            config: dir.join("n1.toml"),
            log: dir.into(),
            set: vec!["telemetry.log_filter=info,a=debug b".into(), "a.b=1".into()],
        };
        assert_eq!(
            command_line(&launch),
            "blockraft node --config '/tmp/my dir/n1.toml' --set 'telemetry.log_filter=info,a=debug b' --set a.b=1"
        );
        launch.set.clear();
        assert_eq!(command_line(&launch), "blockraft node --config '/tmp/my dir/n1.toml'");
    }

    #[tokio::test]
    async fn a_process_that_does_not_stop_is_killed_and_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let (tx, mut rx) = mpsc::unbounded_channel();
        // Not before the signal is ignored would the test show anything.
        let ready = dir.path().join("ready");
        let script =
            format!("trap '' TERM; : > {}; while :; do read line || sleep 0.1; done", ready.display());
        let stubborn = start(&launch(dir.path(), &script), tx).expect("started");
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let processes = BTreeMap::from([(7, stubborn)]);
        let within = Duration::from_millis(100);
        let killed = stop_all(processes, &mut rx, within, std::future::pending()).await;
        assert_eq!(killed, [7]);
    }

    #[tokio::test]
    async fn a_child_sees_the_end_of_its_parents_pipe() {
        let dir = tempfile::tempdir().expect("a folder");
        let launch = launch(dir.path(), "read line; echo over");
        let mut command = Command::new(&launch.program);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("started");
        drop(child.stdin.take());
        let status = child.wait().await.expect("waited for");
        assert_eq!(words(status), "stopped");
    }
}
