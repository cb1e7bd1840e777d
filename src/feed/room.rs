//! Bytes on their way out: what all connections of subscribers together hold.
//!
//! A turn takes room before anything is read or written for it, and gives it back once the connection has
//! written it: so a reader that stands still holds its one turn, and all that wait hold their positions. Room has
//! two halves, one for connections that were quick with their last turn: they never wait behind those that were
//! not. Whoever holds room too long while others wait for it loses its connection.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

/// Bytes of each half. By eye: ten readers of 1 MiB blocks that stand still, and nobody waits. A turn that
/// needs more has its half alone.
const HALF_BYTES: u32 = 32 << 20;
/// What a turn costs for each byte of its blocks: the block itself, and twice as much in hex.
const COST: u64 = 3;
/// A turn that took no longer was quick. By eye: several times what 15 MiB take to be read and written.
const QUICK: Duration = Duration::from_secs(2);
/// How long a turn may hold room that others wait for, and a second more for each [`BYTES_A_SECOND`]. By eye: a
/// round trip of a poor link many times over.
const TURN_MAX: Duration = Duration::from_secs(5);
const BYTES_A_SECOND: u64 = 4 << 20;
/// How often those that wait look for one that holds it too long.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Room {
    quick: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    /// A lock for a look-up: turns begin and end on any thread, the last one inside a dropped buffer.
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next_id: u64,
    by_id: BTreeMap<u64, Turn>,
}

#[derive(Debug, Clone)]
struct Turn {
    until: Instant,
    outlet: Arc<Outlet>,
}

impl Room {
    pub(super) fn new() -> Arc<Self> {
        let half = || Arc::new(Semaphore::new(HALF_BYTES as usize));
        Arc::new(Self { quick: half(), slow: half(), held: Mutex::default() })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn end_overdue(&self, now: Instant) {
        let overdue: Vec<Turn> =
            self.held().by_id.values().filter(|turn| turn.until <= now).cloned().collect();
        // Outside the lock: what ends gives its room back.
        overdue.iter().for_each(|turn| turn.outlet.end());
    }
}

/// One connection's way out, for all its subscriptions. One of them has the turn.
pub(crate) struct Outlet {
    room: Arc<Room>,
    turn: Arc<Semaphore>,
    is_quick: AtomicBool,
    has_ended: AtomicBool,
    /// Ends the connection.
    end: Box<dyn Fn() + Send + Sync>,
}

impl Outlet {
    pub(super) fn new(room: Arc<Room>, end: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            room,
            turn: Arc::new(Semaphore::new(1)),
            is_quick: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            end: Box::new(end),
        })
    }

    /// Room for blocks of so many bytes, where it is this caller's turn and nobody has to be waited for.
    pub(super) fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        let turn = self.turn.clone().try_acquire_owned().ok()?;
        let permit = self.half().try_acquire_many_owned(permits(bytes)).ok()?;
        Some(self.charge(bytes, permit, turn))
    }

    /// As [`Outlet::try_take`], once there is room: those that wait are served in their order. Safe to drop.
    pub(super) async fn take(self: Arc<Self>, bytes: u64) -> Charge {
        const CLOSED: &str = "no semaphore is ever closed";
        let turn = self.turn.clone().acquire_owned().await.expect(CLOSED);
        let mut acquiring = pin!(self.half().acquire_many_owned(permits(bytes)));
        let permit = loop {
            tokio::select! {
                biased;
                permit = &mut acquiring => break permit.expect(CLOSED),
                () = sleep(LOOK_EVERY) => self.room.end_overdue(Instant::now()),
            }
        };
        self.charge(bytes, permit, turn)
    }

    fn half(&self) -> Arc<Semaphore> {
        let half = if self.is_quick.load(Ordering::Relaxed) { &self.room.quick } else { &self.room.slow };
        half.clone()
    }

    fn charge(
        self: &Arc<Self>,
        bytes: u64,
        permit: OwnedSemaphorePermit,
        turn: OwnedSemaphorePermit,
    ) -> Charge {
        let since = Instant::now();
        let until = since + TURN_MAX + Duration::from_secs(bytes.saturating_mul(COST) / BYTES_A_SECOND);
        let mut held = self.room.held();
        let id = held.next_id;
        held.next_id += 1;
        held.by_id.insert(id, Turn { until, outlet: self.clone() });
        drop(held);
        Charge {
            outlet: self.clone(),
            id,
            since,
            is_used: AtomicBool::new(false),
            _permit: permit,
            _turn: turn,
        }
    }

    /// With room of its own.
    #[cfg(test)]
    pub(crate) fn lone() -> Arc<Self> {
        Self::new(Room::new(), || {})
    }

    fn end(&self) {
        if !self.has_ended.swap(true, Ordering::Relaxed) {
            tracing::info!("a reader of the feed that holds others up loses its connection");
            (self.end)();
        }
    }
}

fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.saturating_mul(COST)).unwrap_or(HALF_BYTES).clamp(1, HALF_BYTES)
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlet").field("is_quick", &self.is_quick).finish_non_exhaustive()
    }
}

/// The room of one turn, given back when dropped: once what was handed over in it was written.
#[derive(Debug)]
pub(crate) struct Charge {
    outlet: Arc<Outlet>,
    id: u64,
    since: Instant,
    /// Something was handed over in it.
    is_used: AtomicBool,
    _permit: OwnedSemaphorePermit,
    _turn: OwnedSemaphorePermit,
}

impl Charge {
    pub(super) fn set_used(&self) {
        self.is_used.store(true, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // A turn that came to nothing shows nothing.
        if self.is_used.load(Ordering::Relaxed) {
            self.outlet.is_quick.store(self.since.elapsed() <= QUICK, Ordering::Relaxed);
        }
        self.outlet.room.held().by_id.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use futures::FutureExt;

    use super::*;

    const WHOLE: u64 = HALF_BYTES as u64;

    /// A connection, and how often it was ended.
    fn outlet(room: &Arc<Room>) -> (Arc<Outlet>, Arc<AtomicU32>) {
        let ended = Arc::new(AtomicU32::new(0));
        let counted = ended.clone();
        let end = move || {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        (Outlet::new(room.clone(), end), ended)
    }

    #[tokio::test]
    async fn a_connection_has_one_turn_whatever_its_subscriptions() {
        let room = Room::new();
        let (one, _) = outlet(&room);
        let charge = one.clone().take(1).await;
        let mut second = Box::pin(one.clone().take(1));
        assert!(second.as_mut().now_or_never().is_none());
        drop(charge);
        second.await;
    }

    #[tokio::test]
    async fn who_was_quick_does_not_wait_behind_those_that_were_not() {
        let room = Room::new();
        let (stalled, _) = outlet(&room);
        let held = stalled.take(WHOLE).await;
        let (other, _) = outlet(&room);
        let mut waiting = Box::pin(other.take(1));
        assert!(waiting.as_mut().now_or_never().is_none());
        let (quick, _) = outlet(&room);
        quick.is_quick.store(true, Ordering::Relaxed);
        for _ in 0..100 {
            drop(quick.try_take(WHOLE).expect("there is room for it"));
        }
        // Slow once, it waits with the others, behind those that came before.
        quick.is_quick.store(false, Ordering::Relaxed);
        let mut slow = Box::pin(quick.take(WHOLE));
        assert!(slow.as_mut().now_or_never().is_none());
        drop(held);
        let charge = waiting.await;
        assert!(slow.as_mut().now_or_never().is_none());
        drop(charge);
        slow.await;
    }

    #[tokio::test]
    async fn a_turn_that_comes_to_nothing_makes_nobody_quick() {
        let room = Room::new();
        let (one, _) = outlet(&room);
        drop(one.try_take(1));
        assert!(!one.is_quick.load(Ordering::Relaxed));
        let charge = one.try_take(1).expect("there is room");
        charge.set_used();
        drop(charge);
        assert!(one.is_quick.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn who_holds_room_too_long_is_ended_once_and_keeps_it_until_it_is_gone() {
        let room = Room::new();
        let (stalled, ended) = outlet(&room);
        let (small, small_ended) = outlet(&room);
        let held = stalled.take(WHOLE / COST / 2).await;
        let small_held = small.take(1).await;
        let began = Instant::now();
        let ends = |after| {
            room.end_overdue(began + after);
            (ended.load(Ordering::Relaxed), small_ended.load(Ordering::Relaxed))
        };
        assert_eq!(ends(TURN_MAX / 2), (0, 0));
        // A second longer, for they began before.
        assert_eq!(ends(TURN_MAX + Duration::from_secs(1)), (0, 1), "what is large may take longer");
        let longer = TURN_MAX + Duration::from_secs(WHOLE / 2 / BYTES_A_SECOND);
        assert_eq!(ends(longer), (1, 1));
        assert_eq!(ends(longer), (1, 1), "once");
        let (other, _) = outlet(&room);
        let mut waiting = Box::pin(other.take(WHOLE));
        assert!(waiting.as_mut().now_or_never().is_none(), "it is not given what is still held");
        drop((held, small_held));
        waiting.await;
    }
}
