//! Operation ids of the last ten minutes: a call that is sent again joins or answers the first.
//!
//! Clients send calls in flight again after a reconnect (design 5, "Once"). A call that was refused did
//! nothing, so its id may be used again. One whose outcome is unknown is looked at anew, for more may be known by now; a
//! refusal says nothing of what came of the first, so that it stays unknown.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::api::control::{OPERATION_ID, Outcomes};
use crate::api::error::{Fault, Kind};
use crate::leadership::once::REMEMBERED_FOR;

/// Ids at once. By eye: 16 a second over ten minutes, far above what operators do. One more takes the place of the
/// oldest that has ended: whoever sends so many must not keep others from acting.
const IDS_MAX: usize = 10_000;
/// Before a caller that found no room, all of them being under way, tries again.
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
    /// It has ended, and nobody knows what came of it.
    is_unknown: bool,
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
    /// What the call before it with the same id was answered, where nobody knows what came of that.
    before: Option<Outcomes>,
}

/// The call that another one with the same id waits for.
pub(crate) struct First(watch::Receiver<Option<Outcomes>>);

fn lock(calls: &Mutex<HashMap<String, Made>>) -> MutexGuard<'_, HashMap<String, Made>> {
    calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Once {
    /// Refused where the id was given to another call, or too many are under way.
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
        let begin = |before| {
            let (outcome, receiver) = watch::channel(None);
            (receiver, Begun { calls: Arc::clone(&self.calls), id: id.to_owned(), outcome, before })
        };
        if let Some(made) = calls.get_mut(id) {
            if (made.method, made.params) == (method, params) {
                if !std::mem::take(&mut made.is_unknown) {
                    return Ok(Turn::Join(First(made.outcome.clone())));
                }
                let before = made.outcome.borrow().clone();
                let (receiver, begun) = begin(before);
                made.outcome = receiver;
                return Ok(Turn::First(begun));
            }
            let message = "operationId was given to another call less than 10 minutes ago";
            return Err(Fault::param(OPERATION_ID.name, message));
        }
        if IDS_MAX <= calls.len() {
            let ended = calls.iter().filter(|(_, made)| made.outcome.borrow().is_some());
            let Some(oldest) = ended.min_by_key(|(_, made)| made.at).map(|(id, _)| id.clone()) else {
                return Err(Fault::overloaded(
                    "too many calls with an operationId are under way",
                    RETRY_AFTER_MS,
                ));
            };
            calls.remove(&oldest);
        }
        let (receiver, begun) = begin(None);
        let made = Made { at: now, method, params, outcome: receiver, is_unknown: false };
        calls.insert(id.to_owned(), made);
        Ok(Turn::First(begun))
    }
}

impl Begun {
    /// What the call is answered. `is_unknown`: though it is answered, nobody knows what came of it.
    pub(crate) fn end(mut self, outcome: Outcomes, is_unknown: bool) -> Outcomes {
        let kind = outcome.as_ref().err().map(|fault| fault.data.kind == Some(Kind::Unknown));
        let is_refused = kind == Some(false);
        match self.before.take() {
            Some(before) if is_refused => self.told(before, Some(true)),
            _ => self.told(outcome, (!is_refused).then_some(is_unknown || kind == Some(true))),
        }
    }

    /// Keeps it, as unknown or not, or forgets it.
    fn told(&self, outcome: Outcomes, keep: Option<bool>) -> Outcomes {
        let mut calls = lock(&self.calls);
        let own = self.outcome.subscribe();
        // Somebody else may have been given the id meanwhile, where many were.
        if let Entry::Occupied(mut made) = calls.entry(self.id.clone())
            && made.get().outcome.same_channel(&own)
        {
            match keep {
                Some(is_unknown) => made.get_mut().is_unknown = is_unknown,
                None => drop(made.remove()),
            }
        }
        self.outcome.send_replace(Some(outcome.clone()));
        outcome
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.outcome.borrow().is_none() {
            let _ = self.told(Err(Fault::internal("the first call with this id broke off")), Some(true));
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
    use std::time::Duration;

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
        begun.end(Ok(raw("7")), false).unwrap();
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
    async fn what_was_refused_or_is_unknown_is_looked_at_anew() {
        let (once, now) = (Once::default(), Instant::now());
        let begun = first(&once, "a", now);
        let second = joined(&once, "a", now);
        begun.end(Err(Fault::overloaded("busy", 5)), false).unwrap_err();
        assert_eq!(second.answer().await.unwrap_err().code, Code::Overloaded);
        // A refusal of the second says nothing of what came of the first.
        let unknown = first(&once, "a", now).end(Err(Fault::internal("broke off")), false).unwrap_err();
        let again = first(&once, "a", now).end(Err(Fault::overloaded("busy", 5)), false).unwrap_err();
        assert_eq!((again.code, again.data.kind), (unknown.code, Some(Kind::Unknown)));
        let late = first(&once, "a", now).end(Ok(raw("\"timedOut\"")), true);
        assert_eq!(late.unwrap().get(), "\"timedOut\"");
        let again = first(&once, "a", now).end(Err(Fault::overloaded("busy", 5)), false);
        assert_eq!(again.unwrap().get(), "\"timedOut\"");
        drop(first(&once, "a", now));
        first(&once, "a", now).end(Ok(raw("8")), false).unwrap();
        assert_eq!(joined(&once, "a", now).answer().await.unwrap().get(), "8");
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

    #[tokio::test]
    async fn who_sends_many_ids_keeps_nobody_from_acting() {
        let (once, now) = (Once::default(), Instant::now());
        let under_way: Vec<Begun> = (0..10).map(|n| first(&once, &format!("slow-{n}"), now)).collect();
        let later = |n: usize| now + Duration::from_millis(n as u64);
        for n in 10..IDS_MAX {
            first(&once, &n.to_string(), later(n)).end(Ok(raw("1")), false).unwrap();
        }
        first(&once, "one more", later(IDS_MAX)).end(Ok(raw("2")), false).unwrap();
        assert_eq!(joined(&once, "one more", later(IDS_MAX)).answer().await.unwrap().get(), "2");
        assert_eq!(joined(&once, "11", later(IDS_MAX)).answer().await.unwrap().get(), "1");
        drop(joined(&once, "slow-0", later(IDS_MAX)));
        // The oldest that had ended.
        drop(first(&once, "10", later(IDS_MAX)));
        drop(under_way);
    }

    #[test]
    fn no_more_are_under_way_than_there_is_room_for() {
        let (once, now) = (Once::default(), Instant::now());
        let under_way: Vec<Begun> = (0..IDS_MAX).map(|n| first(&once, &n.to_string(), now)).collect();
        let fault = once.turn_at("one more", "m", &raw("{}"), now).err().unwrap();
        assert_eq!(fault.code, Code::Overloaded);
        drop(under_way);
    }
}
