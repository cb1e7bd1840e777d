//! The store on real folders.

mod suite;
mod support;
