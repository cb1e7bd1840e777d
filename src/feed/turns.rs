//! A subscription that is handed over in turns, each within the room it was given.
//!
//! While it waits it holds nothing but its position. Everything of a turn is read, made into messages and written
//! before its room is given back, so a turn has at most a page, or one block.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use crate::feed::Subscription;
use crate::feed::room::{Charge, Outlet};
use crate::types::LogIndex;
use crate::types::feed::FeedItem;

pub(crate) struct Turns {
    subscription: Subscription,
    outlet: Arc<Outlet>,
    /// Room that is waited for, by a task of its own: a connection that does not look would be given room that
    /// nobody could take from it. Whoever gives up waiting for an item keeps its place.
    taking: Option<AbortOnDropHandle<Charge>>,
    /// Bytes of blocks that it is asked, or was taken for.
    bytes: u64,
    charge: Option<Arc<Charge>>,
}

impl Turns {
    pub(crate) fn new(subscription: Subscription, outlet: Arc<Outlet>) -> Self {
        Self { subscription, outlet, taking: None, bytes: 0, charge: None }
    }

    /// The first item of the next turn, or of the rest of this one; `None` behind the end. Safe to drop: no
    /// item is lost.
    pub(crate) async fn first(&mut self) -> Option<FeedItem> {
        loop {
            if self.charge.is_none() {
                self.take_room().await;
                self.subscription.begin_turn(self.bytes);
            }
            if let Some(item) = self.subscription.next_of_turn().await {
                if let Some(charge) = &self.charge {
                    charge.set_used();
                }
                return Some(item);
            }
            self.charge = None;
            if self.subscription.has_ended() {
                return None;
            }
        }
    }

    /// What else there is of this turn.
    pub(crate) fn more(&mut self) -> Option<FeedItem> {
        self.subscription.ready()
    }

    /// To be kept until what was handed over was written. `None`: it needs no room worth counting.
    pub(crate) fn charge(&self) -> Option<Arc<Charge>> {
        self.charge.clone()
    }

    /// Nothing more is taken out of this turn.
    pub(crate) fn end_turn(&mut self) -> Option<Arc<Charge>> {
        self.charge.take()
    }

    /// Everything up to it was handed over; a subscription that begins behind it misses nothing.
    pub(crate) fn position(&self) -> Option<LogIndex> {
        self.subscription.position()
    }

    async fn take_room(&mut self) {
        let taking = match &mut self.taking {
            Some(taking) => taking,
            none => {
                self.bytes = self.subscription.wait().await;
                if self.bytes == 0 {
                    return;
                }
                if let Some(charge) = self.outlet.try_take(self.bytes) {
                    self.charge = Some(Arc::new(charge));
                    return;
                }
                none.insert(AbortOnDropHandle::new(tokio::spawn(self.outlet.clone().take(self.bytes))))
            }
        };
        tokio::select! {
            biased;
            // It ends with the runtime alone.
            charge = taking => self.charge = charge.ok().map(Arc::new),
            // It is told without room.
            () = self.subscription.ended() => self.bytes = 0,
        }
        self.taking = None;
    }
}
