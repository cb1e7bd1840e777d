//! `node_setLogFilter`: which lines this node logs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::{
    args::Args,
    error::{Code, Fault},
    handlers::{Answer, Call, to_raw},
    status::ms,
};

/// A filter for a while may last a week: who wants more sets one without a time.
const FOR_MS_MAX: u64 = 7 * 24 * 3_600 * 1_000;

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "LogFilter")]
pub(crate) struct LogFilterJson {
    filter: String,
    previous: String,
    /// Unix milliseconds; absent: until it is changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    until_ms: Option<u64>,
}

pub(crate) fn set_filter<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let filter: String = args.need("filter")?;
        let for_ms: Option<u64> = args.get("forMs")?;
        if for_ms.is_some_and(|ms| !(1..=FOR_MS_MAX).contains(&ms)) {
            return Err(Fault::param("forMs", format!("forMs is not from 1 to {FOR_MS_MAX}")));
        }
        let Some(log) = &call.api.parts.log else {
            let why = "the log of this node belongs to the program that embeds it";
            return Err(Fault::new(Code::Unavailable, why));
        };
        let changed = match for_ms {
            None => log.set_filter(&filter),
            Some(ms) => log.set_filter_for(&filter, Duration::from_millis(ms)),
        };
        let previous = changed.map_err(|wrong| Fault::param("filter", wrong.to_string()))?;
        tracing::info!(filter, previous, for_ms, "the log filter was changed");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, ms);
        Ok(to_raw(&LogFilterJson { filter, previous, until_ms: for_ms.map(|ms| now.saturating_add(ms)) }))
    })
}
