//! One HTTP/1.1 connection, blocking, that can also send what no client would.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Longer than any time limit of a call.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection: it certainly did not happen.
    NotSent(String),
    /// It may have been read.
    Unknown(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(why) => write!(f, "not sent: {why}"),
            Self::Unknown(why) => write!(f, "no answer: {why}"),
        }
    }
}

impl std::error::Error for Failure {}

/// A whole answer. Names of headers are lower case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.body).ok()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What is left of an answer's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Bytes(usize),
    Chunks,
    UntilClosed,
    Nothing,
}

/// A connection that is kept between requests.
pub(crate) struct Connection {
    addr: String,
    stream: TcpStream,
    /// Received and not yet taken.
    buf: Vec<u8>,
    left: Left,
}

impl Connection {
    pub(crate) fn open(addr: &str) -> Result<Self, Failure> {
        Self::open_within(addr, TIMEOUT)
    }

    /// `timeout` bounds every later read and write.
    pub(crate) fn open_within(addr: &str, timeout: Duration) -> Result<Self, Failure> {
        let open = || -> io::Result<TcpStream> {
            let target: SocketAddr = addr.parse().map_err(io::Error::other)?;
            let stream = TcpStream::connect_timeout(&target, timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        };
        let stream = open().map_err(|e| Failure::NotSent(format!("{addr}: {e}")))?;
        Ok(Self::over(addr, stream))
    }

    /// Over a connection that somebody made.
    pub(crate) fn over(addr: &str, stream: TcpStream) -> Self {
        Self { addr: addr.to_owned(), stream, buf: Vec::new(), left: Left::Nothing }
    }

    /// One request and its whole answer.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, Failure> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.addr);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "POST" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        // A node that refuses a body may close before it has read all of it: its answer counts.
        let sent = self.send(&bytes);
        match self.response(method == "HEAD") {
            Ok(response) => Ok(response),
            Err(e) => Err(sent.err().unwrap_or(e)),
        }
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(bytes).map_err(|e| self.unknown(&e))
    }

    /// Waits for a whole answer.
    pub(crate) fn response(&mut self, is_head: bool) -> Result<Response, Failure> {
        let mut response = self.head()?;
        if is_head {
            self.left = Left::Nothing;
        }
        while self.read_body(&mut response.body)? {}
        Ok(response)
    }

    /// Waits for status and headers; the body stays to be read by [`Connection::read_body`].
    pub(crate) fn head(&mut self) -> Result<Response, Failure> {
        loop {
            let head = self.take_until(b"\r\n\r\n")?;
            let head = String::from_utf8_lossy(&head).into_owned();
            let mut lines = head.split("\r\n");
            let status = lines
                .next()
                .and_then(|line| line.split(' ').nth(1))
                .and_then(|word| word.parse::<u16>().ok())
                .ok_or_else(|| Failure::Unknown(format!("{}: no status in {head:?}", self.addr)))?;
            if status < 200 && status != 101 {
                continue;
            }
            let headers: BTreeMap<String, String> = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let is_chunked = headers.get("transfer-encoding").is_some_and(|v| v.contains("chunked"));
            self.left = match headers.get("content-length").and_then(|n| n.parse().ok()) {
                _ if is_chunked => Left::Chunks,
                _ if status == 204 || status == 304 || status == 101 => Left::Nothing,
                Some(n) => Left::Bytes(n),
                None => Left::UntilClosed,
            };
            return Ok(Response { status, headers, body: Vec::new() });
        }
    }

    /// Appends more of the body; false at its end.
    pub(crate) fn read_body(&mut self, body: &mut Vec<u8>) -> Result<bool, Failure> {
        match self.left {
            Left::Nothing => Ok(false),
            Left::Bytes(0) => {
                self.left = Left::Nothing;
                Ok(false)
            }
            Left::Bytes(n) => {
                if self.buf.is_empty() && !self.fill()? {
                    return Err(self.closed());
                }
                let taken = n.min(self.buf.len());
                body.extend(self.buf.drain(..taken));
                self.left = Left::Bytes(n - taken);
                Ok(true)
            }
            Left::UntilClosed => {
                if self.buf.is_empty() && !self.fill()? {
                    self.left = Left::Nothing;
                    return Ok(false);
                }
                body.append(&mut self.buf);
                Ok(true)
            }
            Left::Chunks => {
                let line = self.take_until(b"\r\n")?;
                let line = String::from_utf8_lossy(&line).into_owned();
                let size = line.split(';').next().unwrap_or_default().trim();
                let n = usize::from_str_radix(size, 16)
                    .map_err(|e| Failure::Unknown(format!("{}: chunk of {line:?} bytes: {e}", self.addr)))?;
                while self.buf.len() < n + 2 {
                    if !self.fill()? {
                        return Err(self.closed());
                    }
                }
                body.extend(self.buf.drain(..n));
                self.buf.drain(..2);
                if n == 0 {
                    self.left = Left::Nothing;
                }
                Ok(n != 0)
            }
        }
    }

    /// Whatever comes until the other side closes or stays silent; for what is no HTTP.
    pub(crate) fn drain(&mut self, silence: Duration) -> (Vec<u8>, bool) {
        // A socket that is gone cannot be set, and its next read says so.
        let _ = self.stream.set_read_timeout(Some(silence));
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return (std::mem::take(&mut self.buf), true),
                Err(_) => {
                    let is_closed = self.stream.take_error().ok().flatten().is_some();
                    return (std::mem::take(&mut self.buf), is_closed);
                }
            }
        }
    }

    fn take_until(&mut self, mark: &[u8]) -> Result<Vec<u8>, Failure> {
        loop {
            if let Some(at) = self.buf.windows(mark.len()).position(|w| w == mark) {
                let taken = self.buf.drain(..at).collect();
                self.buf.drain(..mark.len());
                return Ok(taken);
            }
            if !self.fill()? {
                return Err(self.closed());
            }
        }
    }

    fn fill(&mut self) -> Result<bool, Failure> {
        let mut chunk = [0; 1 << 16];
        let n = self.stream.read(&mut chunk).map_err(|e| self.unknown(&e))?;
        self.buf.extend_from_slice(&chunk[..n]);
        Ok(n != 0)
    }

    fn closed(&self) -> Failure {
        Failure::Unknown(format!("{}: closed by the node", self.addr))
    }

    fn unknown(&self, e: &io::Error) -> Failure {
        Failure::Unknown(format!("{}: {e}", self.addr))
    }
}

/// One request on a connection of its own.
pub(crate) fn request(
    addr: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response, Failure> {
    Connection::open(addr)?.request(method, path, headers, body)
}
