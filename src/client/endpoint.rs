//! Where a node's API is reached.

use std::{fmt, str::FromStr};

/// The port of `api.listen` by default.
const DEFAULT_PORT: u16 = 7400;

/// `host:port` of one node's API. Invariant: a host that is not empty, IPv6 in brackets, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    authority: String,
}

/// What is wrong with an endpoint somebody wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error("an endpoint is empty")]
    Empty,
    #[error("`{0}`: https is not available in this version")]
    Https(String),
    #[error("`{0}` has no port between 1 and 65535")]
    Port(String),
    #[error("`{0}` is not host:port")]
    Form(String),
}

impl Endpoint {
    pub(crate) fn as_str(&self) -> &str {
        &self.authority
    }

    /// `path` begins with a slash.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.authority)
    }

    pub(crate) fn ws_url(&self) -> String {
        format!("ws://{}/", self.authority)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority)
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// Takes `host:port`, `http://host:port/`, and a host alone (then port 7400).
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        if text.starts_with("https://") {
            return Err(EndpointError::Https(text.into()));
        }
        let bare = text.strip_prefix("http://").unwrap_or(text);
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        let form = || EndpointError::Form(text.into());
        let (host, port) = match bare.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(form)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| form())?;
                match after.strip_prefix(':') {
                    Some(port) => (format!("[{host}]"), Some(port)),
                    None if after.is_empty() => (format!("[{host}]"), None),
                    None => return Err(form()),
                }
            }
            None => match bare.split_once(':') {
                Some((host, port)) => (host.to_string(), Some(port)),
                None => (bare.to_string(), None),
            },
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.starts_with('[') && !host.chars().all(is_host) {
            return Err(form());
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => match port.parse::<u16>() {
                Ok(port) if 0 < port => port,
                Ok(_) | Err(_) => return Err(EndpointError::Port(text.into())),
            },
        };
        Ok(Self { authority: format!("{host}:{port}") })
    }
}

/// Endpoints between commas, each once, in the order written.
pub(crate) fn parse_list(text: &str) -> Result<Vec<Endpoint>, EndpointError> {
    let mut list = Vec::new();
    for one in text.split(',') {
        let endpoint = one.parse()?;
        if !list.contains(&endpoint) {
            list.push(endpoint);
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_that_people_write() {
        for (text, want) in [
            ("127.0.0.1:7401", "127.0.0.1:7401"),
            (" n1:7400 ", "n1:7400"),
            ("http://n1:7400/", "n1:7400"),
            ("n1", "n1:7400"),
            ("[::1]:7401", "[::1]:7401"),
            ("[::1]", "[::1]:7400"),
        ] {
            assert_eq!(text.parse::<Endpoint>().map(|e| e.to_string()), Ok(want.into()), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        use EndpointError::{Empty, Form, Https, Port};
        for (text, want) in [
            ("", Empty),
            ("https://n1:1", Https("https://n1:1".into())),
            ("n1:0", Port("n1:0".into())),
            ("n1:70000", Port("n1:70000".into())),
            ("n1:", Port("n1:".into())),
            (":7400", Form(":7400".into())),
            ("::1:7400", Form("::1:7400".into())),
            ("n1:7400/path", Port("n1:7400/path".into())),
            ("user@n1:7400", Form("user@n1:7400".into())),
            ("[zz]:1", Form("[zz]:1".into())),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(want), "{text}");
        }
    }

    #[test]
    fn a_list_names_each_once() {
        let list = parse_list("a:1, b:2,a:1").expect("well-formed");
        assert_eq!(list.iter().map(Endpoint::as_str).collect::<Vec<_>>(), ["a:1", "b:2"]);
        assert_eq!(parse_list("a:1,,b:2"), Err(EndpointError::Empty));
    }
}
