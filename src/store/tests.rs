//! The store on real folders.

mod build;
mod damage;
mod folder;
mod log;
mod model;
mod options;
mod payloads;
mod shared;
mod snapshot;
mod state;
mod suite;
pub(crate) mod support;
mod tap;
mod torn;
