//! A log line as one JSON object.
//!
//! `trace_id` and `span_id` stand at the top level, whichever span has them; the fields of spans stand
//! under `spans`, from the outermost.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// Fields that are looked up in the spans when the event has none.
const IDS: [&str; 2] = ["trace_id", "span_id"];

/// Formats fields as `"name":value`, separated by commas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields;

/// Formats an event as an object and a newline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut object = Object { out: writer, is_first: true, result: Ok(()), seen: [false; 2] };
        fields.record(&mut object);
        object.result
    }

    fn add_fields(
        &self,
        current: &'w mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        let is_first = current.fields.is_empty();
        let mut object = Object { out: current.as_writer(), is_first, result: Ok(()), seen: [false; 2] };
        fields.record(&mut object);
        object.result
    }
}

impl<S> FormatEvent<S, Fields> for Event
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, Fields>,
        mut out: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let meta = event.metadata();
        out.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut out)?;
        write!(out, "\",\"level\":\"{}\",\"target\":", meta.level())?;
        write_text(&mut out, meta.target())?;
        let mut object = Object { out: out.by_ref(), is_first: false, result: Ok(()), seen: [false; 2] };
        event.record(&mut object);
        let Object { result, seen, .. } = object;
        result?;
        if let Some(scope) = context.event_scope() {
            let spans: Vec<_> = scope.collect();
            for (id, _) in IDS.iter().zip(seen).filter(|(_, seen)| !seen) {
                let found = spans.iter().find_map(|span| find(span.extensions().get()?, id));
                if let Some(value) = found {
                    write!(out, ",\"{id}\":{value}")?;
                }
            }
            out.write_str(",\"spans\":[")?;
            for (i, span) in spans.iter().rev().enumerate() {
                out.write_str(if i == 0 { "{\"name\":" } else { ",{\"name\":" })?;
                write_text(&mut out, span.name())?;
                if let Some(fields) = span.extensions().get::<FormattedFields<Fields>>()
                    && !fields.is_empty()
                {
                    write!(out, ",{fields}")?;
                }
                out.write_str("}")?;
            }
            out.write_str("]")?;
        }
        out.write_str("}\n")
    }
}

/// The text of an id among formatted fields. Ids are hex: no escape can stand in them.
fn find(fields: &FormattedFields<Fields>, id: &str) -> Option<String> {
    let name = format!("\"{id}\":\"");
    let rest = fields.fields.split_once(&name)?.1;
    let value = rest.split_once('"')?.0;
    (!value.is_empty()).then(|| format!("\"{value}\""))
}

struct Object<'w> {
    out: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
    /// Which of [`IDS`] were there.
    seen: [bool; 2],
}

impl Object<'_> {
    fn put(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        if self.result.is_err() {
            return;
        }
        for (seen, id) in self.seen.iter_mut().zip(IDS) {
            *seen |= field.name() == id;
        }
        self.result = (|| {
            if !self.is_first {
                self.out.write_char(',')?;
            }
            self.is_first = false;
            // A field named `r#type` in code is `type`.
            write_text(&mut self.out, field.name().trim_start_matches("r#"))?;
            self.out.write_char(':')?;
            value(&mut self.out)
        })();
    }
}

impl Visit for Object<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.put(field, |out| write!(out, "{value}"));
        } else {
            self.put(field, |out| write!(out, "\"{value}\""));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, |out| write!(out, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, |out| write!(out, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, |out| write!(out, "{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, |out| write_text(out, value));
    }

    /// The whole chain, as it is to be logged where an error ends.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            let _ = write!(text, ": {error}");
            source = error.source();
        }
        self.put(field, |out| write_text(out, &text));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, |out| write_text(out, &format!("{value:?}")));
    }
}

fn write_text(out: &mut Writer<'_>, text: &str) -> fmt::Result {
    out.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?)
}
