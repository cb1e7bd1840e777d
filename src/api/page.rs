//! `GET /` for a browser: the status page, one file without a build step.
//!
//! The page asks this node alone and loads nothing from elsewhere; its policy lets a browser refuse whatever
//! would. A nonce of each answer marks its own script and style.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, Response, header},
};
use hyper::body::Incoming;

pub(crate) const PATH: &str = "/";
/// `{nonce}` stands where the nonce belongs.
const PAGE: &str = include_str!("page.html");
const MEDIA: &str = "text/html";

/// Whether a request for `/` is a browser's and not a JSON-RPC client's or a WebSocket's (design 6).
pub(crate) fn is_asked(request: &Request<Incoming>) -> bool {
    let is_read = *request.method() == Method::GET || *request.method() == Method::HEAD;
    is_read
        && request.uri().path() == PATH
        && !request.headers().contains_key(header::UPGRADE)
        && accepts_html(request.headers())
}

/// `text/html` by name: `*/*`, which curl and many a client send, asks for no page.
fn accepts_html(headers: &HeaderMap) -> bool {
    let ranges = headers.get_all(header::ACCEPT).into_iter().filter_map(|v| v.to_str().ok());
    ranges.flat_map(|v| v.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_html = parts.next().is_some_and(|media| media.eq_ignore_ascii_case(MEDIA));
        let quality = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
        is_html && quality.is_none_or(|q| q.parse::<f32>().is_ok_and(|q| 0.0 < q))
    })
}

pub(crate) fn answer() -> Response<Body> {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let mut answer = Response::new(Body::from(PAGE.replace("{nonce}", &nonce)));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::try_from(policy).expect("the policy is plain text"),
    );
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // A nonce is good for one answer.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ACCEPT, HeaderValue::from_str(value).expect("plain text"));
        }
        accepts_html(&headers)
    }

    #[test]
    fn only_who_names_html_gets_the_page() {
        assert!(accepts(&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"]));
        assert!(accepts(&["application/json", "TEXT/HTML ; q=0.1"]));
        assert!(!accepts(&[]));
        assert!(!accepts(&["*/*"]));
        assert!(!accepts(&["application/json, text/*"]));
        assert!(!accepts(&["text/html;q=0"]));
        assert!(!accepts(&["text/html;q=x"]));
        assert!(!accepts(&["text/htmlx"]));
    }

    #[test]
    fn the_page_is_whole() {
        assert_eq!(PAGE.matches("{nonce}").count(), 2, "one style, one script");
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
        // Nothing of another origin, no markup out of data, no code out of text, no style attribute.
        assert_eq!(PAGE.matches("http://").count(), 1, "the name of SVG's elements");
        for banned in ["https://", "innerHTML", "outerHTML", "eval(", " style=", " onclick="] {
            assert!(!PAGE.contains(banned), "{banned}");
        }
    }

    #[test]
    fn every_answer_has_its_own_nonce() {
        let policy = |a: Response<Body>| a.headers()[header::CONTENT_SECURITY_POLICY].clone();
        assert_ne!(policy(answer()), policy(answer()));
    }
}
