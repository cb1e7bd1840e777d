//! What `dev` and `ctl watch` show: the texts of one screen that is drawn again and again, and of the lines that `dev`
//! prints where there is no terminal.
//!
//! Made by plain functions; `terminal` puts them on the terminal.

use std::{
    fmt::Write,
    time::{Instant, UNIX_EPOCH},
};

use crate::cli::ctl::render;
use crate::cli::dev::board::{Board, Row};
use crate::cli::dev::feed::Feed;
use crate::cli::dev::install;
use crate::cli::table::{Cell, Table, Tone};
use crate::cli::units;
use crate::client::wire::Status;

/// The check that says only who leads.
const ROLE: &str = "role";

/// What does not change while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) cluster_id: String,
    /// host:port of each API.
    pub(crate) apis: Vec<String>,
    /// `None`: somebody else's cluster is watched.
    pub(crate) demo: Option<Demo>,
}

/// Of a cluster that `dev` runs itself.
#[derive(Debug, Clone)]
pub(crate) struct Demo {
    pub(crate) folder: String,
    pub(crate) is_temporary: bool,
    /// The line that goes on from a folder that is kept.
    pub(crate) again: String,
    /// How each node is started by hand, by index.
    pub(crate) commands: Vec<String>,
    pub(crate) is_producing: bool,
    pub(crate) restarts: bool,
}

impl Facts {
    fn export(&self) -> String {
        format!("export BLOCKRAFT_ENDPOINTS={}", self.apis.join(","))
    }
}

/// The first lines of a plain log: everything to be copied.
pub(crate) fn intro(facts: &Facts, board: &Board) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "blockraft dev: {} nodes, cluster {}", board.rows.len(), facts.cluster_id);
    if let Some(demo) = &facts.demo {
        let kept = if demo.is_temporary { "removed at the end" } else { "kept" };
        let _ = writeln!(text, "folder {} ({kept}); each node's log is nN.log there\n", demo.folder);
    }
    let mut nodes = Table::new(&["NODE", "URL", "PID"]);
    for row in &board.rows {
        let pid = row.pid.map_or("-".into(), |p| p.to_string());
        nodes.row([row.node_id.into(), format!("http://{}", row.api).into(), pid.into()]);
    }
    text += &nodes.render(false);
    let _ = writeln!(text, "\n{}", facts.export());
    let _ = writeln!(text, "\nTry in another terminal:");
    for line in try_lines(&facts.apis[0]) {
        let _ = writeln!(text, "  {line}");
    }
    let _ = writeln!(text, "\nKill a node, and see another one lead:");
    for row in &board.rows {
        text += &kill_line(row);
    }
    text.push('\n');
    text
}

fn try_lines(api: &str) -> [String; 5] {
    [
        "blockraft ctl status --all".into(),
        "blockraft ctl why".into(),
        "blockraft ctl block head".into(),
        format!("curl -s http://{api}/status"),
        format!(
            r#"curl -s http://{api}/ -H 'Content-Type: application/json' -d '{{"jsonrpc":"2.0","id":1,"method":"raft_leader"}}'"#
        ),
    ]
}

/// Only of a process that runs: the number of another one would be killed.
pub(crate) fn kill_line(row: &Row) -> String {
    row.pid.map_or(String::new(), |pid| format!("  kill -9 {pid}    # node {}\n", row.node_id))
}

/// The line of a plain log every few seconds.
pub(crate) fn summary(board: &Board, now: Instant) -> String {
    let head = board.head.map_or("-".into(), |h| h.to_string());
    let answering = board.rows.iter().filter(|r| r.status.is_some()).count();
    format!(
        "{} · head {head} · {:.1} blocks/s · {answering} of {} nodes answer",
        leader(board),
        board.rate(now),
        board.rows.len()
    )
}

fn leader(board: &Board) -> String {
    match (board.leader, board.fence) {
        (None, _) => "no node leads".into(),
        (Some((id, term)), Some(fence)) => format!("node {id} leads, term {term}, fence {fence}"),
        (Some((id, term)), None) => format!("node {id} leads, term {term}, not ready"),
    }
}

/// The last lines of all.
pub(crate) fn farewell(facts: &Facts, board: &Board) -> String {
    let mut text = format!(
        "{} blocks accepted, head {}, {} changes of leader, longest time without a block {}\n",
        board.acked,
        board.head.map_or("-".into(), |h| h.to_string()),
        board.leader_changes.saturating_sub(1),
        units::duration(board.longest_pause)
    );
    if let Some(demo) = facts.demo.as_ref().filter(|d| !d.is_temporary) {
        let _ = writeln!(text, "go on with: {}", demo.again);
    }
    text
}

/// One screen of at most `height` lines, none wider than `width`.
pub(crate) fn frame(
    facts: &Facts,
    board: &Board,
    width: usize,
    height: usize,
    is_colored: bool,
    now: Instant,
) -> String {
    let mut lines = Vec::new();
    lines.push(title(facts, is_colored));
    lines.push(String::new());
    let tone = if board.fence.is_some() { Tone::Good } else { Tone::Bad };
    let head = board.head.map_or("-".into(), |h| h.to_string());
    let rate = match &facts.demo {
        Some(demo) if demo.is_producing => {
            format!("{:.1} blocks/s · {} accepted", board.rate(now), board.acked)
        }
        Some(_) => "no demo blocks".into(),
        None => board.head_rate().map_or("- blocks/s".into(), |rate| format!("{rate:.1} blocks/s")),
    };
    lines.push(format!("{} · head {head} · {rate}", tone.paint(&leader(board), is_colored)));
    lines.push(String::new());
    lines.extend(nodes(board, facts.demo.is_some()).render(is_colored).lines().map(String::from));
    let statuses = || board.rows.iter().filter_map(|r| r.status.as_ref());
    lines.extend(statuses().filter_map(install::line).map(|l| format!("  {l}")));
    let why = why(board);
    if !why.is_empty() {
        lines.push(String::new());
        lines.extend(why.into_iter().map(|l| format!("  {}", Tone::Warn.paint(&l, is_colored))));
    }
    if let Some(demo) = &facts.demo {
        lines.push(String::new());
        lines.push(Tone::Faint.paint("try", is_colored));
        lines.extend(to_try(facts, demo, board));
    }
    lines.push(String::new());
    lines.push(Tone::Faint.paint("events", is_colored));
    let room = height.saturating_sub(lines.len() + 1);
    let skip = board.events.len().saturating_sub(room);
    for event in board.events.iter().skip(skip) {
        let ms = event.at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        // The time of day alone.
        let time = units::time_ms(ms)[11..19].to_string();
        lines.push(format!("  {} {}", Tone::Faint.paint(&time, is_colored), event.text));
    }
    lines.truncate(height);
    lines.iter().map(|l| clip(l, width)).collect::<Vec<_>>().join("\n")
}

fn title(facts: &Facts, is_colored: bool) -> String {
    let (command, place) = match &facts.demo {
        Some(demo) => ("blockraft dev", demo.folder.clone()),
        None => ("blockraft ctl watch", format!("{} nodes", facts.apis.len())),
    };
    let command = Tone::Strong.paint(command, is_colored);
    format!("{command} · cluster {} · {place} · Ctrl-C stops it", facts.cluster_id)
}

fn to_try(facts: &Facts, demo: &Demo, board: &Board) -> Vec<String> {
    let mut lines =
        vec![format!("  {}", facts.export()), format!("  open http://{}/ in a browser", facts.apis[0])];
    lines.extend(try_lines(&facts.apis[0]).into_iter().take(2).map(|l| format!("  {l}")));
    if let Some((id, _)) = board.leader
        && let Some(pid) = board.rows.iter().find(|r| r.node_id == id).and_then(|r| r.pid)
    {
        lines.push(format!("  kill -9 {pid}    # node {id}, which leads"));
    }
    if !demo.restarts {
        let ended =
            board.rows.iter().zip(&demo.commands).filter(|(r, _)| r.ended.is_some() && r.status.is_none());
        lines.extend(ended.map(|(r, command)| format!("  {command}    # starts node {} again", r.node_id)));
    }
    lines
}

/// What stands in the way, in the nodes' own words. That a follower follows a ready leader is no trouble.
fn why(board: &Board) -> Vec<String> {
    let mut lines = Vec::new();
    for status in board.rows.iter().filter_map(|r| r.status.as_ref()) {
        let told = status.blockers.iter().filter(|b| board.fence.is_none() || b.check != ROLE);
        lines.extend(told.map(|b| format!("node {}: {}", status.node_id, b.hint)));
    }
    lines
}

fn nodes(board: &Board, has_pids: bool) -> Table {
    let mut heads =
        vec!["NODE", "URL", "PID", "ROLE", "TERM", "HEAD", "APPLIED", "BEHIND", "REPLAY", "UP", "FEED"];
    if !has_pids {
        heads.remove(2);
    }
    let mut t = Table::new(&heads);
    for row in &board.rows {
        let name = row.status.as_ref().map(|s| s.name.clone()).unwrap_or_default();
        let node = if has_pids || name.is_empty() {
            row.node_id.to_string()
        } else {
            format!("{} {name}", row.node_id)
        };
        let mut cells: Vec<Cell> = vec![node.into(), format!("http://{}", row.api).into()];
        if has_pids {
            cells.push(row.pid.map_or("-".into(), |p| p.to_string()).into());
        }
        match (&row.status, &row.ended) {
            (Some(s), _) => {
                cells.extend(status(s));
                cells.push(feed(row.feed));
            }
            (None, Some(ended)) => cells.push(Cell::new(ended.as_str(), Tone::Bad)),
            (None, None) => cells.push(Cell::new("does not answer", Tone::Warn)),
        }
        t.row(cells);
    }
    t
}

fn status(s: &Status) -> [Cell; 7] {
    let mut role = s.role.clone();
    for (is, word) in [(s.ready, "ready"), (s.paused, "paused")] {
        if is {
            role += ", ";
            role += word;
        }
    }
    let tone = if s.ready { Tone::Good } else { Tone::Plain };
    [
        Cell::new(role, tone),
        s.term.into(),
        s.height().map_or("-".into(), |h| h.to_string()).into(),
        s.applied_index.into(),
        s.cluster_committed_index.saturating_sub(s.applied_index).into(),
        s.applied_index.saturating_sub(s.snapshot_index).into(),
        render::span(&s.uptime_ms.into()).into(),
    ]
}

/// Who follows the blocks applied there, and what that cost.
fn feed(feed: Option<Feed>) -> Cell {
    match feed {
        None => "-".into(),
        Some(Feed { subscribers, depth, dropped }) => {
            let tone = if dropped == 0 { Tone::Plain } else { Tone::Warn };
            Cell::new(format!("{subscribers} read, {depth} wait, {dropped} dropped"), tone)
        }
    }
}

/// Cuts a line to so many visible characters; colours count for nothing and are ended.
fn clip(line: &str, width: usize) -> String {
    let mut out = String::with_capacity(line.len());
    let mut n_visible = 0;
    let mut in_escape = false;
    let mut has_color = false;
    for c in line.chars() {
        if in_escape {
            in_escape = !c.is_ascii_alphabetic();
            out.push(c);
            continue;
        }
        if c == '\x1b' {
            in_escape = true;
            has_color = true;
            out.push(c);
            continue;
        }
        if n_visible == width {
            break;
        }
        n_visible += 1;
        out.push(c);
    }
    if has_color {
        out.push_str("\x1b[0m");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::wire::{Blocker, Install};

    fn facts() -> Facts {
        Facts {
            cluster_id: "dev-1".into(),
            apis: vec!["127.0.0.1:7401".into(), "127.0.0.1:7402".into()],
            demo: Some(Demo {
                folder: "/tmp/x".into(),
                is_temporary: true,
                again: "blockraft dev --dir /tmp/x".into(),
                commands: vec!["blockraft node --config /tmp/x/n1.toml".into(), "n2".into()],
                is_producing: true,
                restarts: false,
            }),
        }
    }

    fn board() -> Board {
        let mut board = Board::new([(1, "127.0.0.1:7401".into()), (2, "127.0.0.1:7402".into())]);
        board.started(1, 101);
        board.started(2, 102);
        let leader = Status {
            node_id: 2,
            term: 3,
            leader_id: Some(2),
            role: "leader".into(),
            ready: true,
            fence: Some(3),
            applied_index: 40,
            cluster_committed_index: 42,
            uptime_ms: 1_500,
            ..Default::default()
        };
        board.look(vec![None, Some(leader)]);
        board
    }

    #[test]
    fn the_intro_has_everything_to_copy() {
        let text = intro(&facts(), &board());
        for want in [
            "http://127.0.0.1:7401",
            "export BLOCKRAFT_ENDPOINTS=127.0.0.1:7401,127.0.0.1:7402\n",
            "kill -9 101    # node 1\n",
            "curl -s http://127.0.0.1:7401/status",
        ] {
            assert!(text.contains(want), "{want} in {text}");
        }
    }

    #[test]
    fn a_kill_line_never_names_a_process_that_has_ended() {
        let mut board = board();
        board.ended(1, "killed by signal 9");
        assert_eq!(kill_line(&board.rows[0]), "");
        let text = frame(&facts(), &board, 200, 40, false, Instant::now());
        assert!(!text.contains("101"), "{text}");
        assert!(text.contains("blockraft node --config /tmp/x/n1.toml    # starts node 1 again"), "{text}");
    }

    #[test]
    fn a_frame_shows_the_feed() {
        let mut board = board();
        board.feeds(vec![None, Some(Feed { subscribers: 2, depth: 3, dropped: 41 })]);
        let text = frame(&facts(), &board, 200, 40, false, Instant::now());
        assert!(text.contains("2 read, 3 wait, 41 dropped"), "{text}");
    }

    #[test]
    fn a_frame_shows_how_far_a_snapshot_is() {
        let mut board = board();
        let install = Install { received_bytes: 1 << 20, size_bytes: 4 << 20, ..Default::default() };
        let leader = board.rows[1].status.clone();
        let told = board
            .look(vec![Some(Status { node_id: 1, install: Some(install), ..Default::default() }), leader]);
        assert_eq!(told, ["node 1 answers", "node 1 receives a snapshot of 4.0 MiB"]);
        let text = frame(&facts(), &board, 200, 40, false, Instant::now());
        assert!(text.contains("node 1 receives a snapshot: 1.0 MiB of 4.0 MiB (25 %)"), "{text}");
    }

    #[test]
    fn a_cluster_of_somebody_else_has_no_processes() {
        let mut board = board();
        let hint = "no leader is heard";
        let blocker = |check: &str| Blocker { check: check.into(), hint: hint.into(), ..Default::default() };
        let mut follower =
            Status { node_id: 1, name: "n1".into(), term: 3, leader_id: Some(2), ..Default::default() };
        follower.blockers = vec![blocker(ROLE)];
        let leader = board.rows[1].status.clone();
        board.look(vec![Some(follower.clone()), leader]);
        let facts = Facts { demo: None, ..facts() };
        let text = frame(&facts, &board, 200, 40, false, Instant::now());
        assert!(text.starts_with("blockraft ctl watch · cluster dev-1 · 2 nodes"), "{text}");
        assert!(text.contains("1 n1") && text.contains("node 2 leads, term 3, fence 3"), "{text}");
        for absent in ["PID", "kill", "try", hint] {
            assert!(!text.contains(absent), "{absent} in {text}");
        }
        // Without a ready leader every reason is told.
        board.look(vec![Some(follower), None]);
        let text = frame(&facts, &board, 200, 40, false, Instant::now());
        assert!(text.contains("node 1: no leader is heard"), "{text}");
    }

    #[test]
    fn a_frame_fits_the_screen() {
        let mut board = board();
        (0..20).for_each(|i| drop(board.event(format!("event {i} {}", "x".repeat(300)))));
        for (width, height) in [(80, 24), (20, 5), (300, 60), (0, 0)] {
            let text = frame(&facts(), &board, width, height, false, Instant::now());
            assert!(text.lines().count() <= height, "{width}x{height}: {text}");
            assert!(text.lines().all(|l| l.chars().count() <= width), "{width}x{height}: {text}");
        }
        let text = frame(&facts(), &board, 120, 40, false, Instant::now());
        assert!(text.contains("node 2 leads, term 3, fence 3 · head - · 0.0 blocks/s"), "{text}");
        assert!(text.contains("kill -9 102    # node 2, which leads"), "{text}");
        assert!(text.contains("event 19"), "{text}");
    }

    #[test]
    fn colours_do_not_count_when_a_line_is_cut() {
        assert_eq!(clip("\x1b[1mabc\x1b[0mdef", 4), "\x1b[1mabc\x1b[0md\x1b[0m");
        assert_eq!(clip("äöü", 2), "äö");
    }

    #[test]
    fn one_line_says_how_it_stands() {
        assert_eq!(
            summary(&board(), Instant::now()),
            "node 2 leads, term 3, fence 3 · head - · 0.0 blocks/s · 1 of 2 nodes answer"
        );
    }
}
