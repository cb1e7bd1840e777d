//! Operation ids of the last ten minutes: a call that is sent again joins or answers the first.
//!
//! Clients send calls in flight again after a reconnect (design 5, "Once"). A call that was refused did
//! nothing, so its id may be used again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::api::control::{OPERATION_ID, Outcomes};
use crate::api::error::{Fault, Kind};
use crate::leadership::once::REMEMBERED_FOR;

/// Ids at once. By eye: 16 a second over ten minutes, far above what operators do.
const IDS_MAX: usize = 10_000;
/// Before a caller that found no room tries again.
const RETRY_AFTER_MS: u64 = 1_000;

/// The ids and what became of their calls.
///
/// A lock, held for a look-up.
#[derive(Default)]
pub(crate) struct Once {
    calls: Arc<Mutex<HashMap<String, Made>>>,
}

struct Made {
    at: Instant,
    method: &'static str,
    /// Of the parameters: they may have 32 MiB, and are kept for ten minutes.
    params: blake3::Hash,
    /// `None`: under way.
    outcome: watch::Receiver<Option<Outcomes>>,
}

/// What a call with an id is.
pub(crate) enum Turn {
    First(Begun),
    Join(First),
}

/// The first call with its id. Dropped, its outcome is unknown to those that joined.
pub(crate) struct Begun {
    calls: Arc<Mutex<HashMap<String, Made>>>,
    id: String,
    outcome: watch::Sender<Option<Outcomes>>,
}

/// The call that another one with the same id waits for.
pub(crate) struct First(watch::Receiver<Option<Outcomes>>);

fn lock(calls: &Mutex<HashMap<String, Made>>) -> MutexGuard<'_, HashMap<String, Made>> {
    calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Once {
    /// Refused where the id was given to another call, or too many are remembered.
    pub(crate) fn turn(&self, id: &str, method: &'static str, params: &RawValue) -> Result<Turn, Fault> {
        self.turn_at(id, method, params, Instant::now())
    }

    fn turn_at(
        &self,
        id: &str,
        method: &'static str,
        params: &RawValue,
        now: Instant,
    ) -> Result<Turn, Fault> {
        let params = blake3::hash(params.get().as_bytes());
        let mut calls = lock(&self.calls);
        calls.retain(|_, made| {
            now.saturating_duration_since(made.at) < REMEMBERED_FOR || made.outcome.borrow().is_none()
        });
        if let Some(made) = calls.get(id) {
            if (made.method, made.params) == (method, params) {
                return Ok(Turn::Join(First(made.outcome.clone())));
            }
            let message = "operationId was given to another call less than 10 minutes ago";
            return Err(Fault::param(OPERATION_ID.name, message));
        }
        if IDS_MAX <= calls.len() {
            return Err(Fault::overloaded("too many operationIds are remembered", RETRY_AFTER_MS));
        }
        let (outcome, receiver) = watch::channel(None);
        let made = Made { at: now, method, params, outcome: receiver };
        calls.insert(id.to_owned(), made);
        Ok(Turn::First(Begun { calls: Arc::clone(&self.calls), id: id.to_owned(), outcome }))
    }
}

impl Begun {
    pub(crate) fn end(self, outcome: Outcomes) {
        let is_refused = outcome.as_ref().is_err_and(|fault| fault.data.kind != Some(Kind::Unknown));
        self.outcome.send_replace(Some(outcome));
        if is_refused {
            lock(&self.calls).remove(&self.id);
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.outcome.borrow().is_none() {
            self.outcome.send_replace(Some(Err(Fault::internal("the first call with this id broke off"))));
        }
    }
}

impl First {
    pub(crate) async fn answer(mut self) -> Outcomes {
        match self.0.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().expect("it was waited for"),
            // The sender is dropped behind its last word only.
            Err(_) => Err(Fault::internal("the first call with this id broke off")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::Code;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    fn first(once: &Once, id: &str, at: Instant) -> Begun {
        match once.turn_at(id, "m", &raw("{}"), at).unwrap() {
            Turn::First(begun) => begun,
            Turn::Join(_) => panic!("{id} is known"),
        }
    }

    fn joined(once: &Once, id: &str, at: Instant) -> First {
        match once.turn_at(id, "m", &raw("{}"), at).unwrap() {
            Turn::First(_) => panic!("{id} is not known"),
            Turn::Join(first) => first,
        }
    }

    #[tokio::test]
    async fn a_second_call_joins_and_a_third_is_answered() {
        let (once, now) = (Once::default(), Instant::now());
        let begun = first(&once, "a", now);
        let second = joined(&once, "a", now);
        begun.end(Ok(raw("7")));
        assert_eq!(second.answer().await.unwrap().get(), "7");
        assert_eq!(joined(&once, "a", now + REMEMBERED_FOR / 2).answer().await.unwrap().get(), "7");
        drop(first(&once, "a", now + REMEMBERED_FOR));
    }

    #[tokio::test]
    async fn a_call_under_way_is_joined_however_old_and_one_that_broke_off_is_unknown() {
        let (once, now) = (Once::default(), Instant::now());
        let begun = first(&once, "a", now);
        let late = joined(&once, "a", now + 2 * REMEMBERED_FOR);
        drop(begun);
        assert_eq!(late.answer().await.unwrap_err().data.kind, Some(Kind::Unknown));
    }

    #[tokio::test]
    async fn what_was_refused_may_be_tried_again() {
        let (once, now) = (Once::default(), Instant::now());
        let begun = first(&once, "a", now);
        let second = joined(&once, "a", now);
        begun.end(Err(Fault::overloaded("busy", 5)));
        assert_eq!(second.answer().await.unwrap_err().code, Code::Overloaded);
        drop(first(&once, "a", now));
    }

    #[test]
    fn an_id_belongs_to_one_call() {
        let (once, now) = (Once::default(), Instant::now());
        let _begun = first(&once, "a", now);
        for (method, params) in [("n", "{}"), ("m", r#"{"x":1}"#)] {
            let fault = once.turn_at("a", method, &raw(params), now).err().unwrap();
            assert_eq!(fault.data.param.as_deref(), Some("operationId"));
        }
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (once, now) = (Once::default(), Instant::now());
        for n in 0..IDS_MAX {
            first(&once, &n.to_string(), now).end(Ok(raw("1")));
        }
        let fault = once.turn_at("one more", "m", &raw("{}"), now).err().unwrap();
        assert_eq!(fault.code, Code::Overloaded);
    }
}
