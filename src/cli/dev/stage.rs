//! Starts the cluster, keeps what is known of it, shows it, and takes it down again.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinHandle, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::cli::ctl::curl::quote;
use crate::cli::dev::board::Board;
use crate::cli::dev::child::{self, Ended, Launch, Process};
use crate::cli::dev::demo::{self, News};
use crate::cli::dev::feed::{self, Feeds};
use crate::cli::dev::folder::Folder;
use crate::cli::dev::screen::{self, Demo, Facts};
use crate::cli::dev::terminal::Screen;
use crate::cli::dev::watch::{self, Look};
use crate::cli::dev::{Args, ports};
use crate::cli::exit::{self, Failure};
use crate::cli::out;
use crate::cli::signals::{Ends, Suspends};
use crate::client::cluster::Cluster;
use crate::client::endpoint::Endpoint;
use crate::client::http::Http;
use crate::types::NodeId;

/// Between two lines of a plain log that say how it stands.
const SUMMARY_EVERY: Duration = Duration::from_secs(5);
/// Between two screens: quick enough to look alive.
const DRAW_EVERY: Duration = Duration::from_millis(250);
/// A node's own bound of a stop at the defaults is 5 s; then it is killed.
const STOP_MAX: Duration = Duration::from_secs(7);
/// Before a node is started again, doubled each time it ends at once, up to the second one.
const RESTART_WAIT: Duration = Duration::from_secs(1);
const RESTART_WAIT_MAX: Duration = Duration::from_secs(16);
/// A node that ran so long starts with the short wait again.
const RAN_WELL: Duration = Duration::from_secs(30);
/// Exit codes that a restart does not mend: settings, and a data folder that refuses.
const NO_RESTART: [i32; 2] = [2, 4];
/// Of news from the producer: one message per batch of answers, so a full queue means that nobody reads.
const NEWS_MAX: usize = 1_024;

/// Where lines and pictures go.
enum Display {
    Screen(Screen),
    Plain { next_summary: Instant },
}

/// Owns the processes and the board.
struct Stage {
    facts: Facts,
    board: Board,
    launches: BTreeMap<NodeId, Launch>,
    processes: BTreeMap<NodeId, Process>,
    started_at: BTreeMap<NodeId, Instant>,
    restart_wait: BTreeMap<NodeId, Duration>,
    restart_at: BTreeMap<NodeId, Instant>,
    ended: mpsc::UnboundedSender<Ended>,
    display: Display,
}

pub(crate) async fn run(args: Args) -> Result<u8, Failure> {
    // Before there is anything to take down again.
    let mut ends = Ends::listen()?;
    let mut folder = Folder::open(args.dir.as_deref(), args.nodes)?;
    let addresses = ports::addresses(args.base_port, folder.n_nodes())?;
    folder
        .write_configs(&addresses)
        .map_err(|e| Failure::failed(format!("{}: {e}", folder.path().display())))?;
    let launches = child::launches(&folder, &args.set)?;
    ports::check_free(&addresses)?;
    let apis: Vec<String> = addresses.iter().map(|a| a.api.to_string()).collect();
    let endpoints: Vec<Endpoint> =
        apis.iter().map(|a| a.parse().expect("an address of ours is well-formed")).collect();
    let demo = Demo {
        folder: folder.path().display().to_string(),
        is_temporary: folder.is_temporary(),
        again: again(&args, folder.path()),
        commands: launches.values().map(child::command_line).collect(),
        is_producing: 0 < args.produce,
        restarts: args.restart,
    };
    let facts = Facts { cluster_id: folder.cluster_id().into(), apis, demo: Some(demo) };
    let (ended_tx, ended_rx) = mpsc::unbounded_channel();
    let stage = Stage {
        board: Board::new((1..).zip(facts.apis.iter().cloned())),
        facts,
        launches,
        processes: BTreeMap::new(),
        started_at: BTreeMap::new(),
        restart_wait: BTreeMap::new(),
        restart_at: BTreeMap::new(),
        ended: ended_tx,
        display: Display::Plain { next_summary: Instant::now() + SUMMARY_EVERY },
    };
    // Of one call: two looks of the watch.
    let cluster = Cluster::new(Http::new(Duration::from_secs(1), None), endpoints, Duration::from_secs(1));
    let outcome = play(stage, &args, cluster, ended_rx, &mut ends).await;
    for (node_id, by) in folder.users() {
        out::complain(&format!(
            "node {node_id}, which somebody started by hand, still runs ({by}): its folder {} stays",
            folder.path().display()
        ));
        folder.keep();
    }
    // After the nodes have ended: a temporary folder goes with it.
    drop(folder);
    outcome
}

/// The line that goes on from what this run leaves behind, on the same ports and with the same settings.
fn again(args: &Args, folder: &Path) -> String {
    let dir = quote(&folder.display().to_string());
    let port = match args.base_port {
        ports::BASE => String::new(),
        port => format!(" --base-port {port}"),
    };
    format!("blockraft dev --dir {dir}{port}{}", child::set_flags(&args.set))
}

/// What a run listens to.
struct Inputs {
    ended: mpsc::UnboundedReceiver<Ended>,
    looks: mpsc::Receiver<Look>,
    feeds: mpsc::Receiver<Feeds>,
    news: mpsc::Receiver<News>,
}

async fn play(
    mut stage: Stage,
    args: &Args,
    cluster: Cluster,
    ended: mpsc::UnboundedReceiver<Ended>,
    ends: &mut Ends,
) -> Result<u8, Failure> {
    let stop = CancellationToken::new();
    let (looks_tx, looks) = mpsc::channel(1);
    let (feeds_tx, feeds) = mpsc::channel(1);
    let (news_tx, news) = mpsc::channel(NEWS_MAX);
    let mut inputs = Inputs { ended, looks, feeds, news };
    let outcome = match stage.begin() {
        Ok(()) => {
            tokio::spawn(watch::run(cluster.clone(), watch::HERE, looks_tx, stop.clone()));
            tokio::spawn(feed::run(cluster.clone(), feeds_tx, stop.clone()));
            let producer = (0 < args.produce)
                .then(|| tokio::spawn(demo::run(cluster, args.produce, args.size, news_tx, stop.clone())));
            let outcome = stage.watch(&mut inputs, args.restart, ends).await;
            stop.cancel();
            stage.end_producer(producer, &mut inputs.news).await;
            outcome
        }
        Err(failure) => Err(failure),
    };
    stage.end(&mut inputs.ended, ends).await;
    outcome.map(|()| exit::DONE)
}

impl Stage {
    /// Starts all nodes and shows where they are.
    fn begin(&mut self) -> Result<(), Failure> {
        let ids: Vec<NodeId> = self.launches.keys().copied().collect();
        for node_id in ids {
            self.start(node_id)
                .map_err(|e| Failure::failed(format!("node {node_id} cannot be started: {e}")))?;
        }
        if out::is_terminal() {
            self.display = Display::Screen(Screen::open()?);
        } else {
            out::print(&screen::intro(&self.facts, &self.board))?;
        }
        Ok(())
    }

    fn start(&mut self, node_id: NodeId) -> std::io::Result<()> {
        let process = child::start(&self.launches[&node_id], self.ended.clone())?;
        self.board.started(node_id, process.pid);
        self.started_at.insert(node_id, Instant::now());
        self.processes.insert(node_id, process);
        Ok(())
    }

    /// Until somebody stops it, or no node is left.
    async fn watch(&mut self, inputs: &mut Inputs, restarts: bool, ends: &mut Ends) -> Result<(), Failure> {
        let mut suspends = match &self.display {
            Display::Screen(_) => Suspends::listen()?,
            Display::Plain { .. } => Suspends::ignored(),
        };
        let mut draw = tokio::time::interval(DRAW_EVERY);
        draw.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = ends.next() => return Ok(()),
                () = suspends.next() => {
                    if let Display::Screen(screen) = &self.display {
                        screen.suspend()?;
                    }
                }
                Some(ended) = inputs.ended.recv() => self.on_ended(&ended, restarts)?,
                Some(look) = inputs.looks.recv() => {
                    for text in self.board.look(look) {
                        self.tell(&text)?;
                    }
                }
                Some(feeds) = inputs.feeds.recv() => self.board.feeds(feeds),
                Some(news) = inputs.news.recv() => {
                    if let Some(text) = self.board.news(news, Instant::now()) {
                        self.tell(&text)?;
                    }
                }
                _ = draw.tick() => self.on_tick()?,
            }
        }
    }

    fn on_ended(&mut self, ended: &Ended, restarts: bool) -> Result<(), Failure> {
        let node_id = ended.node_id;
        self.processes.remove(&node_id);
        let text = self.board.ended(node_id, &ended.how);
        self.tell(&text)?;
        let is_hopeless = ended.code.is_some_and(|c| NO_RESTART.contains(&c));
        if restarts && !is_hopeless {
            let ran = self.started_at.get(&node_id).map_or(Duration::ZERO, Instant::elapsed);
            let wait = self.restart_wait.entry(node_id).or_insert(RESTART_WAIT);
            if RAN_WELL < ran {
                *wait = RESTART_WAIT;
            }
            self.restart_at.insert(node_id, Instant::now() + *wait);
            *wait = RESTART_WAIT_MAX.min(*wait * 2);
            return Ok(());
        }
        if let Display::Plain { .. } = self.display {
            let line = child::command_line(&self.launches[&node_id]);
            self.tell(&format!("start node {node_id} again with: {line}"))?;
        }
        if self.board.is_anybody_running() || !self.restart_at.is_empty() {
            return Ok(());
        }
        let log = &self.launches[&node_id].log;
        let last = child::last_line(log).map_or(String::new(), |l| format!("; the last one said: {l}"));
        Err(Failure::failed(format!("all nodes have ended{last}")))
    }

    fn on_tick(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let due: Vec<NodeId> =
            self.restart_at.iter().filter(|(_, at)| **at <= now).map(|(node_id, _)| *node_id).collect();
        for node_id in due {
            self.restart_at.remove(&node_id);
            let text = match self.start(node_id) {
                Ok(()) => format!("node {node_id} was started again"),
                Err(e) => format!("node {node_id} cannot be started again: {e}"),
            };
            let text = self.board.event(text);
            self.tell(&text)?;
            if let Display::Plain { .. } = self.display {
                out::print(&screen::kill_line(self.board.row(node_id)))?;
            }
        }
        match &mut self.display {
            Display::Screen(screen) => screen.draw(&self.facts, &self.board)?,
            Display::Plain { next_summary } if *next_summary <= now => {
                *next_summary = now + SUMMARY_EVERY;
                out::print_line(&screen::summary(&self.board, now))?;
            }
            Display::Plain { .. } => {}
        }
        Ok(())
    }

    /// A line of the plain log; on the screen the event is there already.
    fn tell(&self, text: &str) -> Result<(), Failure> {
        match self.display {
            Display::Plain { .. } => Ok(out::print_line(&format!("- {text}"))?),
            Display::Screen(_) => Ok(()),
        }
    }

    /// Lets the producer read its last answers.
    async fn end_producer(&mut self, producer: Option<JoinHandle<()>>, news: &mut mpsc::Receiver<News>) {
        let Some(producer) = producer else { return };
        tokio::pin!(producer);
        loop {
            tokio::select! {
                biased;
                Some(news) = news.recv() => drop(self.board.news(news, Instant::now())),
                _ = &mut producer => break,
            }
        }
        while let Ok(news) = news.try_recv() {
            self.board.news(news, Instant::now());
        }
    }

    /// Stops all nodes, gracefully within bounds; a second Ctrl-C kills them.
    async fn end(mut self, ended: &mut mpsc::UnboundedReceiver<Ended>, ends: &mut Ends) {
        // The last lines belong on the terminal that stays.
        self.display = Display::Plain { next_summary: Instant::now() + SUMMARY_EVERY };
        let _ = out::print_line("stopping the nodes; Ctrl-C again kills them");
        let processes = std::mem::take(&mut self.processes);
        for node_id in child::stop_all(processes, ended, STOP_MAX, ends.interrupted()).await {
            out::complain(&format!("node {node_id} did not stop in {STOP_MAX:?}: killed"));
        }
        // Whoever closed stdout has seen enough.
        let _ = out::print(&screen::farewell(&self.facts, &self.board));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_run_goes_on_as_it_was() {
        let again_of = |words: &[&str]| {
            let words = std::iter::once("dev").chain(words.iter().copied());
            again(&Line::try_parse_from(words).expect("well-formed").args, Path::new("/tmp/my dir"))
        };
        assert_eq!(again_of(&[]), "blockraft dev --dir '/tmp/my dir'");
        assert_eq!(
            again_of(&["--base-port", "8401", "--set", "a.b=x y"]),
            "blockraft dev --dir '/tmp/my dir' --base-port 8401 --set 'a.b=x y'"
        );
    }
}
