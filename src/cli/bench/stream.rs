//! Load by the ordered stream: one connection, a window of blocks in flight.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use crate::cli::bench::schedule::Pacer;
use crate::cli::bench::{DRAIN, NO_LEADER_MAX, Run};
use crate::cli::blocks::Maker;
use crate::cli::exit::Failure;
use crate::client::producer::{Outlook, Producer};

/// How often the ends are looked at when nothing else happens.
const LOOK: Duration = Duration::from_millis(20);

/// For the node to end its answer: a round trip and a slow moment.
const CLOSE: Duration = Duration::from_millis(200);

/// Until the run is over and its blocks are answered.
pub(crate) async fn send(run: &Run, maker: Maker, pacer: Option<&Pacer>) -> Result<(), Failure> {
    let mut producer = Producer::new(run.cluster.clone(), Box::new(move |next| maker.block(next)));
    let mut outcomes = Vec::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // Arrivals taken so far.
    let mut taken = 0;
    let mut n_connects = 0;
    loop {
        let mut now = Instant::now();
        let is_over = run.end <= now;
        if is_over && (producer.in_flight() == 0 || run.end + DRAIN <= now) {
            producer.close(CLOSE).await;
            return Ok(());
        }
        if !producer.is_connected() {
            let connecting = producer.connect(NO_LEADER_MAX);
            let Ok(connected) = tokio::time::timeout_at(run.end + DRAIN, connecting).await else {
                // What is in flight stays unanswered: nobody leads any more.
                return Ok(());
            };
            connected.map_err(|e| Failure::failed(e.to_string()))?;
            n_connects += 1;
            run.tally().reconnects = n_connects - 1;
            now = Instant::now();
        }
        offer(run, &mut producer, now, &mut taken);
        let stepped = tokio::select! {
            biased;
            stepped = producer.step(&mut outcomes) => stepped,
            () = woken(pacer) => Ok(()),
            _ = look.tick() => Ok(()),
        };
        if !outcomes.is_empty() {
            let now = Instant::now();
            let mut tally = run.tally();
            for o in outcomes.drain(..) {
                tally.acked(o.due, now, o.duplicate);
            }
        }
        if let Err(broken) = stepped {
            run.tally().refused(&broken.reason);
            if let Some(why) = words(broken.outlook) {
                return Err(Failure::failed(format!("{}; {why}", broken.why)));
            }
        }
    }
}

/// Why a run cannot go on; `None` where it can.
pub(super) fn words(outlook: Outlook) -> Option<&'static str> {
    match outlook {
        Outlook::Again => None,
        Outlook::Contested => Some("another producer writes to this chain"),
        Outlook::Unfit => Some("the cluster does not take such blocks"),
    }
}

/// Puts what is due into the stream, as far as there is room.
fn offer(run: &Run, producer: &mut Producer, now: Instant, taken: &mut u64) {
    if now < run.arrivals.start() {
        return;
    }
    let room = (run.in_flight - producer.in_flight().min(run.in_flight)) as u64;
    if !run.arrivals.is_open() {
        if now < run.end {
            (0..room).for_each(|_| producer.offer(now));
        }
        return;
    }
    let due = run.arrivals.count_before(now.min(run.end)) - *taken;
    for _ in 0..due.min(room) {
        producer.offer(run.arrivals.due(*taken).expect("an open loop has times"));
        *taken += 1;
    }
}

async fn woken(pacer: Option<&Pacer>) {
    match pacer {
        Some(pacer) => pacer.woken().await,
        None => std::future::pending().await,
    }
}
