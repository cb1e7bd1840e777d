//! Answers by WebSocket: given to the connection here.
//!
//! The library is done with a call before the connection takes its answer, and then waits for that in a task
//! for each: a client that asks and reads nothing would pile answers up without bound. Here a call is under
//! way until its answer was taken, and a connection has only so many of those.

use std::sync::Arc;

use futures::future::BoxFuture;
use jsonrpsee::{
    Extensions, MethodResponse, RpcModule,
    core::middleware::RpcServiceT,
    server::{MethodCallback, MethodSink, SubscriptionState},
    types::{ErrorObject, Id, Params, Request, error::ErrorCode},
};
use tokio::sync::OwnedSemaphorePermit;

use crate::api::Api;
use crate::api::rpc::Caller;
use crate::api::socket::CallUnderWay;

/// No method of the contract, and unknown to clients: the library lets go of a connection's sink to
/// subscriptions alone.
const ATTACH: &str = "rpc.attach";

/// Registers what gives a session its sink.
pub(crate) fn register(module: &mut RpcModule<Arc<Api>>) {
    let callback = |id: Id<'_>,
                    _: Params<'_>,
                    sink: MethodSink,
                    _: SubscriptionState<'_>,
                    extensions: Extensions|
     -> BoxFuture<'static, MethodResponse> {
        if let Some(session) = extensions.get::<Caller>().and_then(|c| c.session.as_ref()) {
            session.attach(sink);
        }
        let answer = no_method(id);
        Box::pin(async move { answer })
    };
    module
        .verify_and_insert(ATTACH, MethodCallback::Subscription(Arc::new(callback)))
        .expect("no row has this name");
}

/// Whether a client asks for what is not for it.
pub(crate) fn is_hidden(method: &str) -> bool {
    method == ATTACH
}

pub(crate) fn no_method(id: Id<'_>) -> MethodResponse {
    MethodResponse::error(id, ErrorObject::from(ErrorCode::MethodNotFound))
}

/// A call or a batch by WebSocket whose answer is not with the connection yet.
pub(crate) struct Waiting {
    under_way: CallUnderWay,
    sink: Option<MethodSink>,
    /// Of a read whose answer may be large: the next one is not made before this one was taken.
    _large: Option<OwnedSemaphorePermit>,
}

/// Whether an answer may have many MiB.
pub(crate) fn may_be_large(method: &str) -> bool {
    matches!(method, "block_get" | "block_range")
}

impl Waiting {
    /// `bytes`: of the parameters; `is_large`: see [`may_be_large`]. `None`: not by WebSocket.
    pub(crate) async fn begin<S>(
        service: &S,
        extensions: &Extensions,
        bytes: usize,
        is_large: bool,
    ) -> Option<Self>
    where
        S: RpcServiceT<MethodResponse = MethodResponse> + Sync,
    {
        let caller = extensions.get::<Caller>()?;
        let session = caller.session.as_ref()?;
        let under_way = caller.connection.begin_call(bytes);
        if session.sink().is_none() {
            let mut attach = Request::borrowed(ATTACH, None, Id::Null);
            attach.extensions.insert(caller.clone());
            service.call(attach).await;
        }
        let large = match is_large {
            // Never closed.
            true => Arc::clone(&session.large_answers).acquire_owned().await.ok(),
            false => None,
        };
        // None where too many subscriptions begin at once: then the library gives this answer.
        Some(Self { under_way, sink: session.sink().cloned(), _large: large })
    }

    /// Until the connection takes it. What is returned tells the library that nothing is left to be sent.
    pub(crate) async fn give(mut self, answer: MethodResponse) -> MethodResponse {
        let is_sent_by_library = answer.is_method_call() || answer.is_batch();
        let Some(sink) = self.sink.filter(|_| is_sent_by_library) else { return answer };
        self.under_way.grow(answer.as_ref().len());
        // Nobody is there: nobody is told.
        let _ = sink.send(answer.into_json()).await;
        MethodResponse::notification()
    }
}
