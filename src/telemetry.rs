//! Log format, trace exporter and metric registry. No domain words.

pub(crate) mod buckets;
pub(crate) mod encode;
pub(crate) mod exemplars;
pub(crate) mod family;
pub(crate) mod info;
pub(crate) mod log;
pub(crate) mod names;
pub(crate) mod process;
pub(crate) mod runtime;
pub(crate) mod ticks;
pub(crate) mod trace;
