//! Addresses in settings: where to listen, and what others are told.

use std::net::{Ipv4Addr, SocketAddr};

use crate::types::address::number;

/// `IP:port`, IPv6 in brackets; `localhost` is 127.0.0.1.
pub(crate) fn listen(text: &str) -> Option<SocketAddr> {
    if let Some(port) = text.strip_prefix("localhost:") {
        return Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), number(port)?));
    }
    text.parse().ok()
}

pub(crate) fn is_listen(text: &str) -> bool {
    listen(text).is_some()
}

/// `scheme://host`, with a port or without, nothing behind it.
pub(crate) fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let is_scheme =
        !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    is_scheme && !rest.is_empty() && !rest.contains(['/', '?', '#', '@', ' '])
}

/// Whether both cannot be listened on at once.
pub(crate) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_takes_addresses_and_localhost() {
        for text in ["127.0.0.1:7400", "0.0.0.0:7400", "[::1]:7400", "[::]:0", "localhost:7400"] {
            assert!(is_listen(text), "{text}");
        }
        for text in [
            "",
            "7400",
            ":7400",
            "n1:7400",
            "127.0.0.1",
            "127.0.0.1:70000",
            "http://127.0.0.1:7400",
            "::1:7400",
        ] {
            assert!(!is_listen(text), "{text}");
        }
    }

    #[test]
    fn origins_have_a_scheme_and_no_path() {
        assert!(is_origin("https://console.example.org") && is_origin("http://localhost:3000"));
        for text in ["", "console.example.org", "https://", "https://a/", "https://a/b", "://a"] {
            assert!(!is_origin(text), "{text}");
        }
    }

    #[test]
    fn listeners_collide() {
        let at = |text: &str| listen(text).expect("the tests give good ones");
        assert!(collide(at("127.0.0.1:1"), at("127.0.0.1:1")) && collide(at("0.0.0.0:1"), at("127.0.0.1:1")));
        assert!(
            !collide(at("127.0.0.1:1"), at("127.0.0.1:2")) && !collide(at("127.0.0.1:1"), at("127.0.0.2:1"))
        );
        assert!(!collide(at("127.0.0.1:0"), at("127.0.0.1:0")));
    }
}
