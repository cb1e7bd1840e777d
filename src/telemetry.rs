//! Log format, trace exporter and metric registry. No domain words.

pub(crate) mod buckets;
