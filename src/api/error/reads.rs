//! Reads and subscriptions that were not served, as callers are told them.

use crate::api::error::{Code, Fault, RETRY_LATER_MS};
use crate::consensus::handle;
use crate::store;
use crate::types::error::ProposeError;
use crate::types::feed::SubscribeError;

impl From<SubscribeError> for Fault {
    fn from(error: SubscribeError) -> Self {
        let message = error.to_string();
        match error {
            SubscribeError::Buffer => Self::param("buffer", message),
            SubscribeError::Pruned { oldest_height } => {
                store::ReadError::Pruned { oldest: Some(oldest_height) }.into()
            }
            SubscribeError::TooMany => Self::overloaded(message, RETRY_LATER_MS),
            SubscribeError::Storage => ProposeError::Storage.into(),
            SubscribeError::ShuttingDown => Self::shutting_down(),
        }
    }
}

impl From<store::ReadError> for Fault {
    fn from(error: store::ReadError) -> Self {
        let message = error.to_string();
        let (reason, oldest) = match error {
            store::ReadError::NotFound { oldest } => ("notFound", oldest),
            store::ReadError::Pruned { oldest } => ("pruned", oldest),
            store::ReadError::Storage(_) => return Self::from(ProposeError::Storage),
        };
        let mut fault = Self::refused(Code::NotFound, reason, message);
        fault.data.oldest_height = Some(oldest);
        fault
    }
}

impl From<handle::ReadError> for Fault {
    fn from(error: handle::ReadError) -> Self {
        // A read that did not succeed changed nothing: it may simply be asked again.
        match error {
            handle::ReadError::NoLeader => {
                Self::from(ProposeError::NoLeader { retry_after_ms: RETRY_LATER_MS })
            }
            handle::ReadError::NoQuorum(why) => {
                let mut f = Self::refused(Code::NoLeader, "noLeader", format!("no quorum answers: {why}"));
                f.data.retry_after_ms = Some(RETRY_LATER_MS);
                f
            }
            handle::ReadError::TimedOut => {
                let mut f = Self::refused(Code::NoLeader, "noLeader", "no quorum answered in time");
                f.data.retry_after_ms = Some(RETRY_LATER_MS);
                f
            }
        }
    }
}
