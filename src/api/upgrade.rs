//! Which requests become a WebSocket: what is wrong with one is a 400 or a 426, never a 200.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header},
};

use crate::api::http::text;

/// Why a request cannot become a WebSocket; `None`: it can.
pub(crate) fn check_upgrade(version: Version, headers: &HeaderMap) -> Option<Response<Body>> {
    let is = |name: header::HeaderName, value: &str| {
        headers.get(name).and_then(|v| v.to_str().ok()).is_some_and(|v| v.trim().eq_ignore_ascii_case(value))
    };
    if !headers.contains_key(header::UPGRADE) {
        return Some(required("there is no Upgrade header: a proxy between must pass it and Connection on"));
    }
    if !is(header::UPGRADE, "websocket") {
        return Some(bad_upgrade("the only upgrade is to websocket"));
    }
    if version != Version::HTTP_11 {
        return Some(bad_upgrade("a WebSocket needs HTTP/1.1"));
    }
    if !is(header::SEC_WEBSOCKET_VERSION, "13") {
        return Some(required("WebSocket version 13 alone"));
    }
    // 16 bytes in base64.
    match headers.get(header::SEC_WEBSOCKET_KEY) {
        Some(key) if key.len() == 24 => None,
        _ => Some(bad_upgrade("Sec-WebSocket-Key is not 16 bytes in base64")),
    }
}

/// 426, with what would do.
fn required(why: &str) -> Response<Body> {
    let mut refused = text(StatusCode::UPGRADE_REQUIRED, format!("{why}\n"));
    let headers = refused.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    refused
}

pub(crate) fn bad_upgrade(why: &str) -> Response<Body> {
    text(StatusCode::BAD_REQUEST, format!("{why}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_that_cannot_be_is_400_or_426() {
        let upgrade = |pairs: &[(&'static str, &'static str)], version| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            check_upgrade(version, &headers).map(|r| r.status().as_u16())
        };
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let (ws, v13) = (("upgrade", "websocket"), ("sec-websocket-version", "13"));
        assert_eq!(upgrade(&[ws, v13, key], Version::HTTP_11), None);
        assert_eq!(upgrade(&[ws, key], Version::HTTP_11), Some(426));
        assert_eq!(upgrade(&[v13, key], Version::HTTP_10), Some(426), "a proxy took the Upgrade away");
        assert_eq!(upgrade(&[ws, ("sec-websocket-version", "8"), key], Version::HTTP_11), Some(426));
        assert_eq!(upgrade(&[ws, v13], Version::HTTP_11), Some(400));
        assert_eq!(upgrade(&[ws, v13, ("sec-websocket-key", "short")], Version::HTTP_11), Some(400));
        assert_eq!(upgrade(&[ws, v13, key], Version::HTTP_10), Some(400));
        assert_eq!(upgrade(&[("upgrade", "h2c"), v13, key], Version::HTTP_11), Some(400));
    }
}
