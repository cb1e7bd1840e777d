//! Log format, trace exporter and metric registry. No domain words.

pub(crate) mod buckets;
pub(crate) mod encode;
#[allow(dead_code, reason = "observed from once spans of blocks are exported")]
pub(crate) mod exemplars;
pub(crate) mod family;
pub(crate) mod info;
pub(crate) mod log;
pub(crate) mod process;
pub(crate) mod runtime;
#[allow(dead_code, reason = "started by the node once spans of blocks are exported")]
pub(crate) mod traces;
