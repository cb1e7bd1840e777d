//! One node: its files, its process, and its interfaces.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    config::{self, Founder, Settings},
    exposition::Scrape,
    http::{self, Connection, Response},
    logs::{self, Line},
    ports,
    rpc::{self, CallError},
    wait::{SOON, wait_for},
};

/// A node answers from its own view: longer, and it hangs.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// The binary under test.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockraft"));
    // The machine's own settings are no part of a test.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("BLOCKRAFT_") || name.starts_with("OTEL_") || name.ends_with("_PROXY") {
            command.env_remove(name.as_ref());
        }
    }
    command.env("NO_COLOR", "1");
    command
}

/// A node of a test. Dropped, it is killed.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) api: String,
    pub(crate) peer: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) log: PathBuf,
    /// Where the others reach it, when that is not where it listens.
    pub(crate) advertise: Option<String>,
    /// Beside those that every node has.
    pub(crate) settings: Settings,
    /// Beside what a node's environment is anyway.
    pub(crate) env: Vec<(&'static str, PathBuf)>,
    child: Option<Child>,
    /// A process of it was, so the next one may find a write that was cut short.
    pub(crate) was_killed: bool,
}

impl Node {
    /// `dir` holds the files of all nodes of a cluster.
    pub(crate) fn new(id: NodeId, dir: &Path) -> Self {
        Self {
            id,
            api: ports::free_addr(),
            peer: ports::free_addr(),
            data_dir: dir.join(format!("n{id}")),
            config: dir.join(format!("n{id}.toml")),
            log: dir.join(format!("n{id}.log")),
            advertise: None,
            settings: Settings::new(),
            env: Vec::new(),
            child: None,
            was_killed: false,
        }
    }

    pub(crate) fn founder(&self) -> Founder {
        let peer = self.advertise.clone().unwrap_or_else(|| self.peer.clone());
        Founder { id: self.id, peer, api: self.api.clone() }
    }

    /// Writes the config file; later settings win.
    pub(crate) fn write_config(&self, cluster_id: &str, founders: &[Founder], more: &Settings) {
        let mut all = config::settings([
            ("cluster.id", cluster_id.into()),
            ("cluster.peers", config::peers(founders)),
            ("node.id", toml::Value::Integer(self.id as i64)),
            ("node.data_dir", self.data_dir.to_string_lossy().as_ref().into()),
            ("peer.listen", self.peer.as_str().into()),
            ("api.listen", self.api.as_str().into()),
            ("telemetry.log_format", "json".into()),
        ]);
        if let Some(advertise) = &self.advertise {
            all.insert("peer.advertise".into(), advertise.as_str().into());
        }
        all.extend(more.clone());
        all.extend(self.settings.clone());
        config::write(&self.config, &all);
    }

    #[track_caller]
    pub(crate) fn start(&mut self) {
        assert!(!self.is_running(), "node {} is running", self.id);
        self.child = Some(self.spawn());
    }

    /// A process with this node's config, whether or not one runs.
    pub(crate) fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).expect("writable");
        let mut command = binary();
        command
            .args(["node", "--config"])
            .arg(&self.config)
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file has another handle"))
            .stderr(log);
        spawn_mortal(command)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| c.try_wait().is_ok_and(|exit| exit.is_none()))
    }

    /// How it ended, when it did.
    pub(crate) fn exit(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it was started");
        // The child is not reaped yet, so its pid is nobody else's.
        kill_process(Pid::from_child(child), signal).expect("a signal reaches a child");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it was started").id()
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.kill_at_once();
        if let Some(mut child) = self.child.take() {
            child.wait().expect("a child can be waited for");
        }
    }

    /// Other ports and no past, as if it had never been started.
    pub(crate) fn begin_anew(&mut self) {
        self.kill();
        for path in [&self.data_dir, &self.log] {
            // What is not there is gone already.
            let _ = fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
        }
        (self.api, self.peer) = (ports::free_addr(), ports::free_addr());
    }

    /// kill -9 without waiting: for several at the same moment.
    pub(crate) fn kill_at_once(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself; whoever waits for it sees how.
            let _ = child.kill();
            self.was_killed = true;
        }
    }

    /// SIGTERM; how it ended, and how long that took. Panics after `within`.
    #[track_caller]
    pub(crate) fn stop(&mut self, within: Duration) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        self.signal(Signal::TERM);
        (self.wait_exit(within), begin.elapsed())
    }

    #[track_caller]
    pub(crate) fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        let reason = format!("node {} ends", self.id);
        let exit = wait_for(&reason, within, || self.exit().ok_or_else(|| anyhow!("it runs")));
        self.child = None;
        exit
    }

    /// Waits for an end by itself and asserts its code; every one of the words is in what it wrote since
    /// `from`. A refusal says what and where.
    #[track_caller]
    pub(crate) fn assert_refuses(&mut self, code: i32, words: &[&str]) {
        let from = fs::metadata(&self.log).map_or(0, |m| m.len() as usize);
        self.start();
        let exit = self.wait_exit(SOON);
        let said = fs::read(&self.log).unwrap_or_default().split_off(from);
        let said = String::from_utf8_lossy(&said);
        assert_eq!(exit.code(), Some(code), "exit code; it said: {said}");
        for word in words {
            assert!(said.contains(word), "the refusal does not name {word:?}: {said}");
        }
        assert!(!said.contains("panicked at"), "a panic is no refusal: {said}");
    }

    pub(crate) fn call(&self, method: &str, params: &Value) -> Result<Value, CallError> {
        rpc::call(&self.api, method, params)
    }

    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        let mut conn = Connection::open_within(&self.api, STATUS_TIMEOUT)?;
        Ok(rpc::call_on(&mut conn, "raft_status", &Value::Null)?)
    }

    pub(crate) fn get(&self, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<Response> {
        Ok(http::request(&self.api, "GET", path, headers, b"")?)
    }

    /// The sum of a metric's series with these labels; 0 where there is none.
    #[track_caller]
    pub(crate) fn counted(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.get("/metrics", &[]).expect("it answers").body;
        Scrape::parse(&String::from_utf8_lossy(&text)).get(name, labels).unwrap_or(0.0)
    }

    #[track_caller]
    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.api).expect("the node answers")
    }

    /// Blocks from a height on, page by page, with term and index of each.
    pub(crate) fn range(&self, from: u64, to: u64) -> anyhow::Result<Vec<Value>> {
        let mut conn = Connection::open(&self.api)?;
        let (mut out, mut at) = (Vec::new(), from);
        while at <= to {
            let params = json!({"fromHeight": at, "limit": 1000.min(to - at + 1)});
            let page = rpc::call_on(&mut conn, "block_range", &params)?;
            let blocks = page["blocks"].as_array().context("blocks is no list")?;
            out.extend(blocks.iter().cloned());
            match page.get("nextHeight").and_then(Value::as_u64) {
                Some(next) if at < next => at = next,
                Some(next) => bail!("nextHeight {next} after a page from {at}"),
                None => break,
            }
        }
        Ok(out)
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        logs::read(&self.log)
    }

    /// Waits until a line of the log names all of the words.
    #[track_caller]
    pub(crate) fn wait_line(&self, words: &[&str]) -> Line {
        let reason = format!("node {} says {words:?}", self.id);
        wait_for(&reason, SOON, || {
            let lines = self.lines();
            let last = lines.last().map_or("nothing", |l| l.text.as_str());
            lines.iter().find(|l| l.names(words)).cloned().ok_or_else(|| anyhow!("last line: {last}"))
        })
    }

    /// Forgets everything on disk.
    #[track_caller]
    pub(crate) fn wipe(&mut self) {
        assert!(!self.is_running(), "node {} is running", self.id);
        fs::remove_dir_all(&self.data_dir).expect("the folder was there");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a process that dies with the thread that started it, so with the test.
pub(crate) fn spawn_mortal(mut command: Command) -> Child {
    let parent = getpid();
    #[expect(unsafe_code, reason = "the standard library does not ask for a signal at the parent's death")]
    // SAFETY: between fork and exec only two system calls are made, both allowed there.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
        });
    }
    command.spawn().expect("the binary starts")
}
