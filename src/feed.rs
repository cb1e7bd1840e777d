//! Applied blocks for subscribers, on every node.
//!
//! The [`hub::Hub`] is told of every batch by the store and puts it into each subscriber's buffer; it never
//! waits. A [`subscription::Subscription`] belongs to one reader: what its buffer could not take, and what
//! lies before its beginning, it reads from the store. What goes out to connections is taken in
//! [`turns`], within [`room`] that bounds them all. Knows nothing of HTTP and JSON.

pub(crate) mod backlog;
pub(crate) mod hub;
pub(crate) mod live;
pub(crate) mod metrics;
pub(crate) mod room;
pub(crate) mod source;
pub(crate) mod subscription;
pub(crate) mod turns;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub(crate) type Hub = hub::Hub;
pub(crate) type Subscription = subscription::Subscription;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Blocks, where a subscriber asks for no other number.
    pub(crate) buffer: usize,
    /// Names that get series of their own.
    pub(crate) watched: Vec<String>,
}

/// How a subscriber is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    WebSocket,
    ServerSentEvents,
    /// Inside this process.
    Internal,
}

impl Channel {
    pub(crate) const ALL: [Self; 3] = [Self::WebSocket, Self::ServerSentEvents, Self::Internal];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::WebSocket => "ws",
            Self::ServerSentEvents => "sse",
            Self::Internal => "internal",
        }
    }
}
