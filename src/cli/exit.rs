//! Exit codes, and how a command ends before its time.

use std::io;

use crate::client::cluster::ClusterError;
use crate::client::rpc::CallError;
use crate::types::error::Certainty;

pub(crate) const DONE: u8 = 0;
/// Failed or refused: nothing happened.
pub(crate) const FAILED: u8 = 1;
/// Usage or config.
pub(crate) const USAGE: u8 = 2;
/// It may have happened.
pub(crate) const UNKNOWN: u8 = 3;

/// Why a command ends, and with which code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// `None`: there is nobody to tell, or it has been told.
    pub(crate) message: Option<String>,
}

impl Failure {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: FAILED, message: Some(message.into()) }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: Some(message.into()) }
    }

    /// Everything that is to be said has been printed.
    pub(crate) fn told(code: u8) -> Self {
        Self { code, message: None }
    }
}

impl From<io::Error> for Failure {
    /// A write to stdout that failed. A reader that went away (`… | head`) has read what it wanted.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::told(DONE),
            _ => Self::failed(format!("cannot write: {error}")),
        }
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self { code: code_of(error.certainty()), message: Some(error.to_string()) }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        ClusterError::Call(error).into()
    }
}

pub(crate) fn code_of(certainty: Certainty) -> u8 {
    match certainty {
        Certainty::Refused => FAILED,
        Certainty::Unknown => UNKNOWN,
    }
}

/// The exit code of a command's outcome; tells the failure on stderr.
pub(crate) fn code(outcome: Result<u8, Failure>) -> u8 {
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            if let Some(message) = failure.message {
                crate::cli::out::complain(&message);
            }
            failure.code
        }
    }
}
