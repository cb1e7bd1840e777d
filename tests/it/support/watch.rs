//! Who says that it is ready, asked of every node again and again.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{NodeId, http::Connection, rpc::call_on, wait::pause};

/// Between two questions to one node: the resolution of what is measured.
const EVERY: Duration = Duration::from_millis(10);
/// A node that stands still answers nothing.
const TIMEOUT: Duration = Duration::from_millis(400);

/// One answer of a node that is ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) node: NodeId,
    pub(crate) fence: u64,
    asked: Instant,
    answered: Instant,
}

/// One thread a node.
pub(crate) struct Watch {
    is_over: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Ready>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(endpoints: Vec<(NodeId, String)>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let seen: Arc<Mutex<Vec<Ready>>> = Arc::default();
        let threads = endpoints.into_iter().map(|(node, api)| {
            let (is_over, seen) = (Arc::clone(&is_over), Arc::clone(&seen));
            thread::spawn(move || ask(node, &api, &is_over, &seen))
        });
        let threads = threads.collect();
        Self { is_over, seen, threads }
    }

    /// Every answer so far, by when it came.
    pub(crate) fn seen(&self) -> Vec<Ready> {
        let mut seen = self.seen.lock().expect("no holder of the lock panics").clone();
        seen.sort_by_key(|r| r.answered);
        seen
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || thread::panicking(), "a watcher panicked");
        }
    }
}

fn ask(node: NodeId, api: &str, is_over: &AtomicBool, seen: &Mutex<Vec<Ready>>) {
    let mut conn = None;
    while !is_over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        if conn.is_none() {
            conn = Connection::open_within(api, TIMEOUT).ok();
        }
        let answer = conn.as_mut().map(|conn| call_on(conn, "raft_leader", &Value::Null));
        match answer {
            Some(Ok(leader)) if leader["isSelf"] == true && leader["ready"] == true => {
                let fence = leader["fence"].as_u64().expect("who is ready has a fence");
                let ready = Ready { node, fence, asked, answered: Instant::now() };
                seen.lock().expect("no holder of the lock panics").push(ready);
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => conn = None,
        }
        pause(EVERY);
    }
}

/// The longest time without one of these moments, from a first one on.
pub(crate) fn longest_gap(from: Instant, moments: impl IntoIterator<Item = Instant>) -> Duration {
    let (mut last, mut longest) = (from, Duration::ZERO);
    for at in moments.into_iter().filter(|at| from < *at) {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}

impl Ready {
    pub(crate) fn answered(&self) -> Instant {
        self.answered
    }
}

/// Once a node answered that it is ready in a term, nobody who is asked afterwards is ready in an older one; and in
/// one term it is always the same node.
pub(crate) fn two_ready(seen: &[Ready]) -> Option<(Ready, Ready)> {
    // By term: the first answer of each, and who gave it.
    let mut firsts: Vec<Ready> = Vec::new();
    for r in seen {
        match firsts.iter_mut().find(|first| first.fence == r.fence) {
            Some(first) if first.node != r.node => return Some((*first, *r)),
            Some(_) => {}
            None => firsts.push(*r),
        }
    }
    seen.iter().find_map(|late| {
        let first = firsts.iter().find(|first| late.fence < first.fence && first.answered < late.asked);
        first.map(|first| (*first, *late))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_are_ready_and_a_gap_are_found() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let ready =
            |node, fence, asked, answered| Ready { node, fence, asked: at(asked), answered: at(answered) };
        let change = [ready(1, 3, 0, 5), ready(2, 4, 30, 35), ready(1, 3, 10, 40), ready(2, 4, 50, 55)];
        assert!(two_ready(&change).is_none(), "asked before the other answered");
        let late = [ready(2, 4, 30, 35), ready(1, 3, 36, 40)];
        assert!(two_ready(&late).is_some(), "an older fence that outlived its term");
        assert!(two_ready(&[ready(1, 3, 0, 5), ready(2, 3, 10, 15)]).is_some(), "one term, two nodes");
        let gap = longest_gap(at(6), change.iter().map(Ready::answered));
        assert_eq!(gap, Duration::from_millis(29));
    }
}
