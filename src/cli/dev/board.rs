//! What is known of the demo cluster, and what of it is worth telling.
//!
//! Pure: fed with looks, news and ends of processes, it answers with events in words.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::cli::dev::demo::News;
use crate::cli::dev::feed::{Feed, Feeds};
use crate::cli::dev::install;
use crate::cli::dev::watch::Look;
use crate::cli::units;
use crate::client::wire::Status;
use crate::types::{Height, NodeId, Term};

/// What fits below the table on a small screen.
const EVENTS_MAX: usize = 12;
/// The rate is that of the last seconds: long enough not to flicker, short enough to follow.
const RATE_WINDOW: Duration = Duration::from_secs(3);
/// A pause of the blocks longer than this is told: longer than a slow disk's hiccup.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// One node, as the view shows it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) node_id: NodeId,
    pub(crate) api: String,
    /// `None` once the process has ended.
    pub(crate) pid: Option<u32>,
    /// How it ended.
    pub(crate) ended: Option<String>,
    pub(crate) status: Option<Status>,
    pub(crate) feed: Option<Feed>,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) at: std::time::SystemTime,
    pub(crate) text: String,
}

/// Owned by the stage. Invariant: rows are in the order of node ids.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) rows: Vec<Row>,
    pub(crate) events: VecDeque<Event>,
    /// Who leads and in which term, by the newest term that any node tells.
    pub(crate) leader: Option<(NodeId, Term)>,
    /// The fence, while that leader is ready.
    pub(crate) fence: Option<u64>,
    /// Acknowledged to the demo producer.
    pub(crate) acked: u64,
    pub(crate) head: Option<Height>,
    pub(crate) leader_changes: u64,
    /// Longest time without an acknowledged block after the first one.
    pub(crate) longest_pause: Duration,
    acks: VecDeque<(Instant, u64)>,
    last_ack: Option<Instant>,
    /// Heads as they were seen, within the rate's window.
    heads: VecDeque<(Instant, Height)>,
}

impl Board {
    pub(crate) fn new(nodes: impl IntoIterator<Item = (NodeId, String)>) -> Self {
        let row = |(node_id, api)| Row { node_id, api, pid: None, ended: None, status: None, feed: None };
        Self {
            rows: nodes.into_iter().map(row).collect(),
            events: VecDeque::new(),
            leader: None,
            fence: None,
            acked: 0,
            head: None,
            leader_changes: 0,
            longest_pause: Duration::ZERO,
            acks: VecDeque::new(),
            last_ack: None,
            heads: VecDeque::new(),
        }
    }

    /// Keeps an event for the view, and hands it back for a plain log.
    pub(crate) fn event(&mut self, text: String) -> String {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(Event { at: std::time::SystemTime::now(), text: text.clone() });
        text
    }

    pub(crate) fn row(&mut self, node_id: NodeId) -> &mut Row {
        self.rows.iter_mut().find(|r| r.node_id == node_id).expect("a node of this cluster")
    }

    pub(crate) fn started(&mut self, node_id: NodeId, pid: u32) {
        let row = self.row(node_id);
        row.pid = Some(pid);
        row.ended = None;
    }

    pub(crate) fn ended(&mut self, node_id: NodeId, how: &str) -> String {
        let row = self.row(node_id);
        row.pid = None;
        row.ended = Some(how.to_string());
        row.status = None;
        row.feed = None;
        self.event(format!("node {node_id} {how}"))
    }

    pub(crate) fn is_anybody_running(&self) -> bool {
        self.rows.iter().any(|r| r.pid.is_some())
    }

    /// Blocks a second, over the last seconds.
    pub(crate) fn rate(&self, now: Instant) -> f64 {
        let since = |at: Instant| now.saturating_duration_since(at);
        let in_window = self.acks.iter().filter(|(at, _)| since(*at) <= RATE_WINDOW);
        let count: u64 = in_window.map(|(_, n)| n).sum();
        count as f64 / RATE_WINDOW.as_secs_f64()
    }

    /// Notes the head for [`Self::head_rate`].
    pub(crate) fn see_head(&mut self, now: Instant) {
        let Some(head) = self.head else { return };
        self.heads.push_back((now, head));
        let is_old = |(at, _): &(Instant, Height)| RATE_WINDOW < now.saturating_duration_since(*at);
        while 2 < self.heads.len() && self.heads.front().is_some_and(is_old) {
            self.heads.pop_front();
        }
    }

    /// Blocks a second, whoever produces them; `None` until two heads were seen.
    pub(crate) fn head_rate(&self) -> Option<f64> {
        let ((first_at, first), (last_at, last)) = (self.heads.front()?, self.heads.back()?);
        let secs = last_at.saturating_duration_since(*first_at).as_secs_f64();
        (0.0 < secs).then(|| last.saturating_sub(*first) as f64 / secs)
    }

    pub(crate) fn feeds(&mut self, feeds: Feeds) {
        for (row, feed) in self.rows.iter_mut().zip(feeds) {
            row.feed = feed;
        }
    }

    /// Returns what changed.
    pub(crate) fn look(&mut self, look: Look) -> Vec<String> {
        let mut told = Vec::new();
        for (i, status) in look.into_iter().enumerate() {
            let row = &mut self.rows[i];
            let (was, is) = (row.status.is_some(), status.is_some());
            let node_id = row.node_id;
            // The end of a process has been told already.
            let text = match (was, is, row.ended.is_none()) {
                (false, true, _) => Some(format!("node {node_id} answers")),
                (true, false, true) => Some(format!("node {node_id} does not answer")),
                (true, false, false) | (false, false, _) | (true, true, _) => None,
            };
            let install = status.as_ref().and_then(|now| install::change(row.status.as_ref(), now));
            row.status = status;
            told.extend(text.into_iter().chain(install).map(|t| self.event(t)));
        }
        let statuses = || self.rows.iter().filter_map(|r| r.status.as_ref());
        self.head = statuses().filter_map(Status::height).max().max(self.head);
        let newest = statuses()
            .filter_map(|s| Some((s.term, s.leader_id?, s)))
            .max_by_key(|(term, leader_id, s)| (*term, *leader_id == s.node_id));
        let leader = newest.map(|(term, leader_id, _)| (leader_id, term));
        self.fence = leader.and_then(|(id, term)| {
            statuses().find(|s| s.node_id == id && s.term == term && s.ready).and_then(|s| s.fence)
        });
        if leader != self.leader {
            let text = match (self.leader, leader) {
                (_, None) => "no node leads".to_string(),
                (_, Some((id, term))) => format!("node {id} leads in term {term}"),
            };
            if let (Some(_), Some(_)) | (None, Some(_)) = (self.leader, leader) {
                self.leader_changes += 1;
            }
            self.leader = leader;
            told.push(self.event(text));
        }
        told
    }

    /// Returns what is worth telling.
    pub(crate) fn news(&mut self, news: News, now: Instant) -> Option<String> {
        let text = match news {
            News::Acked { count, height, term } => {
                self.acked += count;
                self.head = self.head.max(Some(height));
                self.acks.push_back((now, count));
                while self
                    .acks
                    .front()
                    .is_some_and(|(at, _)| RATE_WINDOW < now.saturating_duration_since(*at))
                {
                    self.acks.pop_front();
                }
                let pause = self.last_ack.replace(now).map(|last| now.saturating_duration_since(last))?;
                self.longest_pause = self.longest_pause.max(pause);
                if pause < PAUSE_MIN.max(self.expected_pause()) {
                    return None;
                }
                format!(
                    "block {height} accepted in term {term}, {} after the one before",
                    units::duration(pause)
                )
            }
            News::Connected { node_id, fence, n_again: 0 } => {
                format!("the producer proposes to node {node_id} under fence {fence}")
            }
            News::Connected { node_id, fence, n_again } => format!(
                "the producer proposes to node {node_id} under fence {fence}, {n_again} unanswered blocks again"
            ),
            News::Broken { why } => format!("the producer's stream ended: {why}"),
            News::Contested { why, n_dropped } => {
                format!("another producer writes to this chain: {why}; {n_dropped} blocks dropped")
            }
            News::Unfit { why, n_dropped } => {
                format!("the cluster does not take such blocks: {why}; {n_dropped} blocks dropped")
            }
            News::Lost { why } => format!("SAFETY: {why}"),
        };
        Some(self.event(text))
    }

    /// Twice the time between blocks, as the last ones came.
    fn expected_pause(&self) -> Duration {
        let (Some((first, _)), Some((last, _))) = (self.acks.front(), self.acks.back()) else {
            return Duration::ZERO;
        };
        let gaps = self.acks.len().saturating_sub(1).max(1) as u32;
        2 * last.saturating_duration_since(*first) / gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(node_id: NodeId, term: Term, leader_id: Option<NodeId>) -> Option<Status> {
        let is_leader = leader_id == Some(node_id);
        Some(Status {
            node_id,
            term,
            leader_id,
            role: if is_leader { "leader" } else { "follower" }.into(),
            ready: is_leader,
            fence: is_leader.then_some(term),
            ..Default::default()
        })
    }

    fn board() -> Board {
        let mut board = Board::new([(1, "a".into()), (2, "b".into()), (3, "c".into())]);
        (1..=3).for_each(|id| board.started(id, 100 + id as u32));
        board
    }

    #[test]
    fn a_failover_is_told_step_by_step() {
        let mut board = board();
        let all = |leader, term| (1..=3).map(|id| status(id, term, Some(leader))).collect::<Look>();
        assert_eq!(
            board.look(all(1, 2)),
            ["node 1 answers", "node 2 answers", "node 3 answers", "node 1 leads in term 2"]
        );
        assert_eq!(board.fence, Some(2));
        assert!(board.look(all(1, 2)).is_empty());
        assert_eq!(board.ended(1, "killed by signal 9"), "node 1 killed by signal 9");
        assert_eq!(board.look(vec![None, status(2, 2, None), status(3, 2, None)]), ["no node leads"]);
        assert_eq!(board.fence, None);
        assert_eq!(
            board.look(vec![None, status(2, 3, Some(3)), status(3, 3, Some(3))]),
            ["node 3 leads in term 3"]
        );
        assert_eq!((board.leader, board.fence, board.leader_changes), (Some((3, 3)), Some(3), 2));
    }

    #[test]
    fn the_rate_of_heads_is_that_of_the_last_seconds() {
        let mut board = board();
        let begin = Instant::now();
        assert_eq!(board.head_rate(), None);
        for second in 0..10u32 {
            // Ten a second, then five.
            board.head = Some(u64::from(if second < 5 { 10 * second } else { 25 + 5 * second }));
            board.see_head(begin + Duration::from_secs(second.into()));
        }
        assert_eq!(board.head_rate(), Some(5.0));
    }

    #[test]
    fn a_node_of_somebody_else_that_falls_silent_is_told() {
        let mut board = Board::new([(1, "a".into())]);
        assert_eq!(board.look(vec![status(1, 2, Some(1))]), ["node 1 answers", "node 1 leads in term 2"]);
        assert_eq!(board.look(vec![None]), ["node 1 does not answer", "no node leads"]);
    }

    #[test]
    fn a_cut_off_leader_does_not_hide_the_new_one() {
        let mut board = board();
        board.look(vec![status(1, 2, Some(1)), status(2, 3, Some(2)), status(3, 3, Some(2))]);
        assert_eq!(board.leader, Some((2, 3)));
    }

    #[test]
    fn a_pause_of_the_blocks_is_told() {
        let mut board = board();
        let start = Instant::now();
        let acked = |height| News::Acked { count: 1, height, term: 2 };
        for i in 0..20 {
            assert_eq!(board.news(acked(i), start + Duration::from_millis(100 * i)), None);
        }
        let told = board.news(acked(20), start + Duration::from_millis(1_900 + 430));
        assert_eq!(told.as_deref(), Some("block 20 accepted in term 2, 430 ms after the one before"));
        assert_eq!(board.longest_pause, Duration::from_millis(430));
    }

    #[test]
    fn a_block_that_is_too_large_is_told_as_that() {
        let news = News::Unfit { why: "m (tooLarge)".into(), n_dropped: 2 };
        let told = board().news(news, Instant::now());
        assert_eq!(
            told.as_deref(),
            Some("the cluster does not take such blocks: m (tooLarge); 2 blocks dropped")
        );
    }

    #[test]
    fn a_slow_producer_does_not_pause() {
        let mut board = board();
        let start = Instant::now();
        for i in 0..5 {
            let told =
                board.news(News::Acked { count: 1, height: i, term: 2 }, start + Duration::from_secs(i));
            assert!(told.is_none() || i < 2, "{told:?}");
        }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut board = board();
        let start = Instant::now();
        for i in 0..60 {
            board.news(News::Acked { count: 5, height: i, term: 2 }, start + Duration::from_millis(100 * i));
        }
        let rate = board.rate(start + Duration::from_millis(5_900));
        assert!((45.0..55.0).contains(&rate), "{rate}");
        assert_eq!(board.rate(start + Duration::from_secs(60)), 0.0);
    }

    #[test]
    fn old_events_make_room() {
        let mut board = board();
        for i in 0..2 * EVENTS_MAX {
            board.event(i.to_string());
        }
        assert_eq!(board.events.len(), EVENTS_MAX);
        assert_eq!(board.events[0].text, EVENTS_MAX.to_string());
    }
}
