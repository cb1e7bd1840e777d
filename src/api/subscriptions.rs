//! Subscriptions over WebSocket: how they begin, are forwarded and end.
//!
//! A topic is subscribed to by a method of its own, or by `raft_subscribe` with the topic first. One task
//! per subscription takes the items and gives each to the connection before it takes the next. Items that are
//! large come in turns: the next turn of a connection begins when the last one was written, so what waits in it is
//! bounded. The answer to the call goes out before the first item.

use std::sync::Arc;

use futures::future::BoxFuture;
use jsonrpsee::{
    Extensions, MethodResponse, ResponsePayload, RpcModule,
    server::{MethodCallback, MethodSink, SubscriptionPermit, SubscriptionState},
    types::{ErrorObjectOwned, Id, Params, SubscriptionId},
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::args::{Args, Decode, Param};
use crate::api::error::{Code, Fault};
use crate::api::handlers::{Answer, Call};
use crate::api::rpc::Caller;
use crate::api::sessions::{Held, Session};
use crate::api::socket::Connection;
use crate::api::{Api, feed, handlers, leaderships};
use crate::feed::room::Charge;

/// What can be subscribed to.
pub(crate) struct Topic {
    /// As `raft_subscribe` calls it.
    pub(crate) name: &'static str,
    pub(crate) subscribe: &'static str,
    pub(crate) unsubscribe: &'static str,
    /// Method of its notifications.
    pub(crate) item: &'static str,
    pub(crate) params: &'static [Param],
    pub(crate) open:
        for<'a> fn(&'a Api, Args<'a>, &'a Session) -> BoxFuture<'a, Result<Box<dyn Items>, Fault>>,
}

pub(crate) const TOPICS: &[Topic] = &[
    Topic {
        name: "applied",
        subscribe: "block_subscribeApplied",
        unsubscribe: "block_unsubscribeApplied",
        item: "block_applied",
        params: feed::PARAMS,
        open: feed::open,
    },
    Topic {
        name: "leadership",
        subscribe: "raft_subscribeLeadership",
        unsubscribe: "raft_unsubscribeLeadership",
        item: "raft_leadership",
        params: leaderships::PARAMS,
        open: leaderships::open,
    },
];

/// geth's way: the topic first, and one name for the items of all.
pub(crate) const SUBSCRIBE: &str = "raft_subscribe";
pub(crate) const UNSUBSCRIBE: &str = "raft_unsubscribe";
const ITEM: &str = "raft_subscription";

pub(crate) const SUBSCRIBE_PARAMS: &[Param] = &[
    Param::required::<TopicName>("topic", "What to subscribe to."),
    Param::optional::<Box<RawValue>>("options", "The parameters of the topic's own method, by name."),
];
pub(crate) const UNSUBSCRIBE_PARAMS: &[Param] =
    &[Param::required::<String>("subscription", "The id of any subscription of this connection.")];

/// What is sent to a subscriber.
pub(crate) trait Items: Send {
    /// The next notification; `None` behind the last. Safe to drop.
    fn next<'a>(&'a mut self, address: &'a Address) -> BoxFuture<'a, Option<Box<RawValue>>>;

    /// One that belongs to the same turn.
    fn more(&mut self, _: &Address) -> Option<Box<RawValue>> {
        None
    }

    /// Whether what came before takes room until it was written.
    fn is_in_turn(&self) -> bool {
        false
    }

    /// That room, given back when dropped.
    fn end_turn(&mut self) -> Option<Arc<Charge>> {
        None
    }
}

/// Which subscription a notification belongs to.
pub(crate) struct Address {
    method: &'static str,
    subscription: String,
}

#[derive(Serialize)]
struct Notification<'a, T> {
    jsonrpc: &'static str,
    method: &'a str,
    params: NotificationParams<'a, T>,
}

#[derive(Serialize)]
struct NotificationParams<'a, T> {
    subscription: &'a str,
    result: &'a T,
}

impl Address {
    pub(crate) fn notification(&self, result: &impl Serialize) -> Box<RawValue> {
        let params = NotificationParams { subscription: &self.subscription, result };
        handlers::to_raw(&Notification { jsonrpc: "2.0", method: self.method, params })
    }
}

/// Whether a method needs a WebSocket of its caller's, and a call of its own.
pub(crate) fn needs_socket(method: &str) -> bool {
    subscribed_by(method).is_some()
        || method == UNSUBSCRIBE
        || TOPICS.iter().any(|topic| topic.unsubscribe == method)
}

pub(crate) fn no_socket() -> Fault {
    Fault::new(Code::InvalidRequest, "subscriptions are for WebSocket alone, and not for batches")
}

/// Every subscribing method gets here where the library would not know what to do with it.
pub(crate) fn refuse<'a>(_: &'a Call, _: Args<'a>) -> Answer<'a> {
    Box::pin(async { Err(no_socket()) })
}

pub(crate) fn unsubscribe<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let id: String = args.need("subscription")?;
        let session = call.session.as_ref().ok_or_else(no_socket)?;
        Ok(handlers::to_raw(&session.end(&id).await))
    })
}

/// Which topic a subscribing method is for.
#[derive(Clone, Copy)]
enum Subscribed {
    To(&'static Topic),
    /// Its first parameter says.
    ToNamed,
}

fn subscribed_by(method: &str) -> Option<Subscribed> {
    match TOPICS.iter().find(|topic| topic.subscribe == method) {
        Some(topic) => Some(Subscribed::To(topic)),
        None => (method == SUBSCRIBE).then_some(Subscribed::ToNamed),
    }
}

/// Registers a method that subscribes; false: this one does not.
pub(crate) fn register(module: &mut RpcModule<Arc<Api>>, api: &Arc<Api>, method: &'static str) -> bool {
    let Some(subscribed) = subscribed_by(method) else { return false };
    let api = api.clone();
    let callback = move |id: Id<'_>,
                         params: Params<'_>,
                         sink: MethodSink,
                         state: SubscriptionState<'_>,
                         extensions: Extensions| {
        let new = New {
            api: api.clone(),
            subscribed,
            params: params.into_owned(),
            id: state.id_provider.next_id(),
            sink,
            permit: state.subscription_permit,
        };
        let (id, session) = (id.into_owned(), session_of(&extensions));
        let answer: BoxFuture<'static, MethodResponse> = Box::pin(async move {
            let answer = match session {
                Some((session, connection)) => new.begin(id.clone(), &session, connection).await,
                None => Err(no_socket()),
            };
            answer.unwrap_or_else(|fault| MethodResponse::error(id, ErrorObjectOwned::from(fault)))
        });
        answer
    };
    module
        .verify_and_insert(method, MethodCallback::Subscription(Arc::new(callback)))
        .expect("no two rows have the same name");
    true
}

fn session_of(extensions: &Extensions) -> Option<(Arc<Session>, Arc<Connection>)> {
    let caller = extensions.get::<Caller>()?;
    Some((caller.session.clone()?, caller.connection.clone()))
}

/// A subscription that is asked for.
struct New {
    api: Arc<Api>,
    subscribed: Subscribed,
    params: Params<'static>,
    id: SubscriptionId<'static>,
    sink: MethodSink,
    /// One of so many of the connection.
    permit: SubscriptionPermit,
}

impl New {
    /// Answers the call, and forwards items from then on.
    async fn begin(
        self,
        call: Id<'static>,
        session: &Arc<Session>,
        connection: Arc<Connection>,
    ) -> Result<MethodResponse, Fault> {
        if self.api.stop.is_cancelled() {
            return Err(Fault::shutting_down());
        }
        let (items, method) = match self.subscribed {
            Subscribed::To(topic) => {
                let args = Args::new(topic.params, self.params.as_str())?;
                ((topic.open)(&self.api, args, session).await?, topic.item)
            }
            Subscribed::ToNamed => {
                let args = Args::new(SUBSCRIBE_PARAMS, self.params.as_str())?;
                let TopicName(topic) = args.need("topic")?;
                let options: Option<Box<RawValue>> = args.get("options")?;
                let args = Args::new(topic.params, options.as_ref().map(|raw| raw.get()))?;
                ((topic.open)(&self.api, args, session).await?, ITEM)
            }
        };
        let subscription = match &self.id {
            SubscriptionId::Str(text) => text.clone().into_owned(),
            SubscriptionId::Num(number) => number.to_string(),
        };
        let payload = ResponsePayload::success_borrowed(&self.id);
        let answer = MethodResponse::subscription_response(call, payload, usize::MAX);
        let held = session.begin(&subscription);
        let address = Address { method, subscription };
        // The library answers everything but subscriptions by itself. Nobody is there: nothing to forward.
        if self.sink.send(answer.to_json()).await.is_ok() {
            let socket = Socket { sink: self.sink, connection };
            let forwarding = forward(items, address, socket, held, self.permit);
            self.api.forwarders.spawn(forwarding);
        }
        Ok(answer)
    }
}

/// Where notifications go.
struct Socket {
    sink: MethodSink,
    connection: Arc<Connection>,
}

impl Socket {
    /// Until everything that was sent is with the kernel, or never will be.
    async fn written(&self, upto: u64) {
        let is_empty = || self.sink.capacity() == self.sink.max_capacity();
        // One more is being written, and a ping may be flushed beside it.
        let queue = self.sink.max_capacity() as u64 + 2;
        tokio::select! {
            () = self.connection.written(upto, queue, is_empty) => {}
            () = self.sink.closed() => {}
        }
    }
}

async fn forward(
    mut items: Box<dyn Items>,
    address: Address,
    socket: Socket,
    held: Held,
    _permit: SubscriptionPermit,
) {
    // Bytes that the connection has written once it wrote everything of the turn.
    let mut upto = 0;
    let all = async {
        while let Some(first) = items.next(&address).await {
            upto = socket.connection.n_written();
            let mut next = Some(first);
            while let Some(notification) = next {
                let n_bytes = notification.get().len() as u64;
                if socket.sink.send(notification).await.is_err() {
                    return;
                }
                upto += n_bytes;
                next = items.more(&address);
            }
            if items.is_in_turn() {
                socket.written(upto).await;
                items.end_turn();
            }
        }
    };
    tokio::select! {
        biased;
        () = held.unsubscribed() => {}
        () = socket.sink.closed() => {}
        () = all => {}
    }
    let charge = items.end_turn();
    drop((items, held));
    if charge.is_some() {
        socket.written(upto).await;
    }
}

/// The name of a topic.
pub(crate) struct TopicName(&'static Topic);

impl Decode for TopicName {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        let asked = String::decode(raw, name)?;
        let topic = TOPICS.iter().find(|topic| topic.name == asked);
        topic.map(Self).ok_or_else(|| {
            let names: Vec<&str> = TOPICS.iter().map(|topic| topic.name).collect();
            Fault::param(name, format!("{name} is not one of {}", names.join(", ")))
        })
    }

    fn schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let names: Vec<&str> = TOPICS.iter().map(|topic| topic.name).collect();
        schemars::json_schema!({ "type": "string", "enum": names })
    }
}
