//! The replicated state: what is proposed, and what applying it does.
//!
//! Deterministic: no clock, no randomness, no floats, ordered maps only. Driven by `store`, which
//! supplies the [`table::Table`] the state lives in. Knows nothing of openraft, disks or the network.

pub(crate) mod apply;
pub(crate) mod command;
pub(crate) mod table;

#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod scenarios;

/// Everything a module that drives the machine needs to name.
pub(crate) type Command = command::Command;
pub(crate) type Outcome = apply::Outcome;
