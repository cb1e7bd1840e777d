//! Answers for pages of other origins: those of `api.allowed_origins` alone (design 10).
//!
//! A browser hands an answer to a page of another origin only when the answer names that origin, and asks
//! beforehand whether it may send what a plain form could not. Whether a request is answered at all is
//! decided by [`Hosts`].

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header},
};

use crate::api::hosts::Hosts;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST");
/// Headers of the contract that a page must ask for.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, blockraft-fence, blockraft-timeout, content-type, last-event-id, traceparent",
);
/// Headers of answers that a page would else not see.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "blockraft-hint, blockraft-index, blockraft-leader, blockraft-term, retry-after",
);
/// Seconds for which a browser does not ask again. By eye.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The origin that an answer is for, as its request spelled it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shared(HeaderValue);

impl Hosts {
    /// Whom the answer may be read by beside pages of the node itself.
    pub(crate) fn shared_with(&self, headers: &HeaderMap) -> Option<Shared> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (Some(origin), None) = (origins.next(), origins.next()) else { return None };
        self.is_origin_listed(origin.to_str().ok()?).then(|| Shared(origin.clone()))
    }
}

/// Says in an answer who may read it.
pub(crate) fn share(answer: &mut Response<Body>, with: Option<Shared>) {
    let Some(Shared(origin)) = with else { return };
    let headers = answer.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    // The next one to ask a cache may be a page of another origin.
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}

/// The answer to a browser that asks whether a page may send a request; `None`: it asks nothing.
pub(crate) fn preflight<B>(hosts: &Hosts, request: &Request<B>) -> Option<Response<Body>> {
    let is_asked = *request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if !is_asked || hosts.shared_with(request.headers()).is_none() {
        return None;
    }
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let says: [(HeaderName, HeaderValue); 3] = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
    ];
    answer.headers_mut().extend(says);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Config;

    const BOARD: &str = "https://Board.example";

    fn hosts() -> Hosts {
        Hosts::new(&Config {
            listen: "127.0.0.1:7400".parse().unwrap(),
            advertise: "127.0.0.1:7400".into(),
            max_body: 32 << 20,
            max_batch: 100,
            max_connections: 10,
            max_connections_per_address: 0,
            rate_limit: 0,
            allowed_hosts: Vec::new(),
            allowed_origins: vec![BOARD.into()],
        })
    }

    fn request(method: Method, pairs: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri("/v1/applied");
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn an_answer_names_a_listed_origin_and_no_other() {
        for (pairs, want) in [
            (&[("origin", BOARD)][..], Some(BOARD)),
            (&[("origin", "https://board.example")], Some("https://board.example")),
            (&[("origin", "https://evil.example")], None),
            (&[("origin", "null")], None),
            (&[("origin", BOARD), ("origin", BOARD)], None),
            (&[], None),
        ] {
            let mut answer = Response::new(Body::empty());
            share(&mut answer, hosts().shared_with(request(Method::GET, pairs).headers()));
            let named = answer.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
            assert_eq!(named.map(|v| v.to_str().unwrap()), want, "{pairs:?}");
            assert_eq!(answer.headers().contains_key(header::VARY), want.is_some(), "{pairs:?}");
        }
    }

    #[test]
    fn a_browser_that_asks_beforehand_is_answered_for_a_listed_origin() {
        let asks = ("access-control-request-method", "POST");
        let answer = |method, pairs: &[(&str, &str)]| preflight(&hosts(), &request(method, pairs));
        let allowed = answer(Method::OPTIONS, &[("origin", BOARD), asks]).unwrap();
        assert_eq!(allowed.status(), StatusCode::NO_CONTENT);
        assert_eq!(allowed.headers()[header::ACCESS_CONTROL_ALLOW_METHODS], METHODS);
        assert!(answer(Method::OPTIONS, &[("origin", "https://evil.example"), asks]).is_none());
        assert!(answer(Method::OPTIONS, &[("origin", BOARD)]).is_none());
        assert!(answer(Method::POST, &[("origin", BOARD), asks]).is_none());
    }
}
