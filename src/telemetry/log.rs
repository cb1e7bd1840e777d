//! The log: lines on stdout for people or machines, a filter that can be changed while running.
//!
//! A line never waits: it goes through the bounded queue of [`lines`] to a thread of its own.
//! [`layer`] makes the part of a subscriber that writes; who builds the subscriber installs it.

use std::{io::IsTerminal, sync::Arc};

use prometheus::Registry;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::telemetry::log::{
    filter::WrongFilter,
    lines::{Lines, Sender},
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
    /// The text of the filter in force. Held only to read or replace it: a task for one text would be more.
    text: Arc<std::sync::Mutex<String>>,
}

impl Handle {
    /// The filter in force, as it was given.
    pub(crate) fn filter(&self) -> String {
        self.text.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Replaces the filter; the previous one comes back. Refused when wrong: the old one stays.
    pub(crate) fn set_filter(&self, text: &str) -> Result<String, WrongFilter> {
        let filter = filter::parse(text)?;
        let mut current = self.text.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // The only error is that the subscriber is gone, and with it all lines.
        let _ = self.reload.reload(filter);
        Ok(std::mem::replace(&mut *current, text.to_owned()))
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
    let text = Arc::new(std::sync::Mutex::new(config.filter.clone()));
    Ok((written, Handle { reload, text }, lines))
}

fn json_layer(sender: Sender) -> impl Layer<tracing_subscriber::Registry> + Send + Sync {
    tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .fmt_fields(json::Fields)
        .event_format(json::Event)
        .with_writer(sender)
}

/// Installs the log for the whole process.
pub(crate) fn start(config: &Config, registry: &Registry) -> Result<(Handle, Lines), StartError> {
    start_with(config, registry, Vec::new())
}

/// The same, with other layers beside it, such as those of traces.
pub(crate) fn start_with(
    config: &Config,
    registry: &Registry,
    mut others: Vec<BoxedLayer>,
) -> Result<(Handle, Lines), StartError> {
    let (layer, handle, lines) = layer(config, registry)?;
    others.push(layer);
    tracing_subscriber::registry().with(others).try_init()?;
    Ok((handle, lines))
}

#[cfg(test)]
mod tests;
