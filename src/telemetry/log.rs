//! The log: lines on stdout for people or machines, a filter that can be changed while running.
//!
//! A line never waits: it goes through the bounded queue of [`lines`] to a thread of its own.
//! [`layer`] makes the part of a subscriber that writes; who builds the subscriber installs it.

use std::{
    io::IsTerminal,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::Registry;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::telemetry::{
    log::{
        filter::WrongFilter,
        lines::{Lines, Sender},
    },
    trace::counted::Rejected,
};

pub(crate) mod filter;
mod json;
pub(crate) mod lines;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) format: Format,
    /// As `node_setLogFilter` takes it.
    pub(crate) filter: String,
}

impl Config {
    /// `format` is a word of the settings: `human`, `json`, and everything else is automatic.
    pub(crate) fn new(format: &str, filter: &str) -> Self {
        let format = match format {
            "human" => Format::Human,
            "json" => Format::Json,
            _ => Format::Auto,
        };
        Self { format, filter: filter.to_owned() }
    }

    pub(crate) fn is_filter(text: &str) -> bool {
        filter::parse(text).is_ok()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Human on a terminal, else JSON.
    Auto,
    Human,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Filter(#[from] WrongFilter),
    #[error("the log's metric cannot be registered")]
    Metric(#[from] prometheus::Error),
    #[error("the log's thread cannot be started")]
    Thread(#[from] std::io::Error),
    #[error("another subscriber is installed")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

/// Changes the filter while running. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    reload: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
    /// Held only to read or replace it: a task for two texts would be more.
    filters: Arc<Mutex<Filters>>,
}

struct Filters {
    in_force: String,
    /// What a filter with a time gives way to: the last one without.
    lasting: String,
    /// Rises with every change: a timer acts only on the filter that it was set for.
    generation: u64,
}

impl Handle {
    /// The filter in force, as it was given.
    #[cfg(test)]
    pub(crate) fn filter(&self) -> String {
        self.filters().in_force.clone()
    }

    /// Replaces the filter; the previous one comes back. Refused when wrong: the old one stays.
    pub(crate) fn set_filter(&self, text: &str) -> Result<String, WrongFilter> {
        let (previous, _) = self.replace(text, true)?;
        Ok(previous)
    }

    /// The same for a while, on the runtime this is called on.
    pub(crate) fn set_filter_for(&self, text: &str, while_: Duration) -> Result<String, WrongFilter> {
        let (previous, generation) = self.replace(text, false)?;
        let handle = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(while_).await;
            handle.give_way(generation);
        });
        Ok(previous)
    }

    fn give_way(&self, generation: u64) {
        let lasting = {
            let filters = self.filters();
            if filters.generation != generation {
                return;
            }
            filters.lasting.clone()
        };
        // It was in force before, so it parses.
        if self.set_filter(&lasting).is_ok() {
            tracing::info!(filter = lasting, "the time of a log filter is over");
        }
    }

    fn replace(&self, text: &str, is_lasting: bool) -> Result<(String, u64), WrongFilter> {
        let filter = filter::parse(text)?;
        let mut filters = self.filters();
        // The only error is that the subscriber is gone, and with it all lines.
        let _ = self.reload.reload(filter);
        filters.generation += 1;
        if is_lasting {
            filters.lasting = text.to_owned();
        }
        let previous = std::mem::replace(&mut filters.in_force, text.to_owned());
        Ok((previous, filters.generation))
    }

    fn filters(&self) -> MutexGuard<'_, Filters> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) type BoxedLayer = Box<dyn Layer<tracing_subscriber::Registry> + Send + Sync>;

/// The layer that writes lines, the handle of its filter, and the end of its queue.
fn layer(config: &Config, registry: &Registry) -> Result<(BoxedLayer, Handle, Lines), StartError> {
    let (sender, lines) = lines::start(lines::stdout()?, registry)?;
    let is_terminal = std::io::stdout().is_terminal();
    let is_human = match config.format {
        Format::Auto => is_terminal,
        Format::Human => true,
        Format::Json => false,
    };
    let (filter, reload) = reload::Layer::new(filter::parse(&config.filter)?);
    let written: BoxedLayer = if is_human {
        let is_colored = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Box::new(
            tracing_subscriber::fmt::layer().with_ansi(is_colored).with_writer(sender).with_filter(filter),
        )
    } else {
        Box::new(json_layer(sender).with_filter(filter))
    };
    let (in_force, lasting) = (config.filter.clone(), config.filter.clone());
    let filters = Arc::new(Mutex::new(Filters { in_force, lasting, generation: 0 }));
    Ok((written, Handle { reload, filters }, lines))
}

fn json_layer(sender: Sender) -> impl Layer<tracing_subscriber::Registry> + Send + Sync {
    tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .fmt_fields(json::Fields)
        .event_format(json::Event)
        .with_writer(sender)
}

/// The layer, and the one that reads what the exporter of traces says, installed for the whole process.
pub(crate) fn start(
    config: &Config,
    registry: &Registry,
    rejected: &Rejected,
) -> Result<(Handle, Lines), StartError> {
    let (layer, handle, lines) = layer(config, registry)?;
    tracing_subscriber::registry().with(layer).with(rejected.layer()).try_init()?;
    Ok((handle, lines))
}

#[cfg(test)]
mod tests;
