//! Readers of the feed: a WebSocket and server-sent events, by hand, so that they can be slow or break off.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::{
    http::Connection,
    wait::{SOON, wait_for},
};

/// Longer than any pause that a test makes.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How a WebSocket went on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    Json(Value),
    Closed(u16),
    /// Without a word.
    Gone,
}

pub(crate) struct WebSocket {
    stream: TcpStream,
    buf: Vec<u8>,
    next_id: u64,
    /// Notifications that came while an answer was waited for.
    waiting: VecDeque<Value>,
}

impl WebSocket {
    /// `receive_bytes` makes the kernel's own buffer small, so that standing still is noticed.
    #[track_caller]
    pub(crate) fn open(addr: &str, receive_bytes: Option<usize>) -> Self {
        Self::try_open(addr, receive_bytes).expect("the node answers")
    }

    pub(crate) fn try_open(addr: &str, receive_bytes: Option<usize>) -> anyhow::Result<Self> {
        let stream = connect(addr, receive_bytes)?;
        let mut this = Self { stream, buf: Vec::new(), next_id: 1, waiting: VecDeque::new() };
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {addr}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        this.stream.write_all(head.as_bytes())?;
        let end = loop {
            match this.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => anyhow::ensure!(this.fill(), "no upgrade"),
            }
        };
        let head = String::from_utf8_lossy(&this.buf[..end]).into_owned();
        anyhow::ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
        this.buf.drain(..end);
        Ok(this)
    }

    fn fill(&mut self) -> bool {
        let mut chunk = [0; 1 << 16];
        match self.stream.read(&mut chunk) {
            Ok(n) => {
                self.buf.extend_from_slice(&chunk[..n]);
                n != 0
            }
            Err(_) => false,
        }
    }

    fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.buf.len() < n {
            if !self.fill() {
                return None;
            }
        }
        Some(self.buf.drain(..n).collect())
    }

    fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match u16::try_from(payload.len()).expect("short requests") {
            n @ 0..126 => frame.push(0x80 | n as u8),
            n => {
                frame.push(0x80 | 126);
                frame.extend(n.to_be_bytes());
            }
        }
        // A mask of zeros is one.
        frame.extend([0; 4]);
        frame.extend_from_slice(payload);
        // A node that is gone is seen by the next read.
        let _ = self.stream.write_all(&frame);
    }

    pub(crate) fn message(&mut self) -> Message {
        match self.text() {
            Ok(text) => Message::Json(serde_json::from_slice(&text).expect("JSON")),
            Err(other) => other,
        }
    }

    /// The next message as it came; pings are answered on the way.
    pub(crate) fn text(&mut self) -> Result<Vec<u8>, Message> {
        let mut whole = Vec::new();
        loop {
            let Some(head) = self.take(2) else { return Err(Message::Gone) };
            let length = match head[1] & 0x7f {
                126 => self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]) as usize),
                127 => self.take(8).map(|b| u64::from_be_bytes(b.try_into().expect("eight")) as usize),
                n => Some(n as usize),
            };
            let Some(payload) = length.and_then(|n| self.take(n)) else { return Err(Message::Gone) };
            match head[0] & 0x0f {
                8 => {
                    let code = payload.get(..2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
                    return Err(Message::Closed(code));
                }
                9 => self.send(10, &payload),
                10 => {}
                _ => whole.extend(payload),
            }
            if head[0] & 0x88 == 0x80 {
                return Ok(whole);
            }
        }
    }

    /// The whole answer; what is notified meanwhile waits.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        self.try_call(method, params).unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    #[track_caller]
    pub(crate) fn raw_call(&mut self, request: &Value, is_answer: impl Fn(&Value) -> bool) -> Value {
        self.try_raw_call(request, is_answer).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Reads no answer.
    pub(crate) fn ask(&mut self, method: &str, params: &Value) {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send(1, request.to_string().as_bytes());
    }

    /// The item of a notification that came while an answer was waited for.
    pub(crate) fn waiting_item(&mut self) -> Option<Value> {
        self.waiting.pop_front().map(|mut notification| notification["params"]["result"].take())
    }

    /// As [`WebSocket::call`], where the connection may end.
    pub(crate) fn try_call(&mut self, method: &str, params: &Value) -> anyhow::Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.try_raw_call(&request, |answer| answer["id"] == id)
    }

    fn try_raw_call(&mut self, request: &Value, is_answer: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        self.send(1, request.to_string().as_bytes());
        loop {
            match self.message() {
                Message::Json(value) if is_answer(&value) => return Ok(value),
                Message::Json(value) => self.waiting.push_back(value),
                other => anyhow::bail!("{other:?} instead of an answer"),
            }
        }
    }

    #[track_caller]
    pub(crate) fn subscribe(&mut self, method: &str, params: &Value) -> String {
        let answer = self.call(method, params);
        answer["result"].as_str().unwrap_or_else(|| panic!("{method}: {answer}")).to_owned()
    }

    /// The next item of the only subscription.
    #[track_caller]
    pub(crate) fn item(&mut self) -> Value {
        self.next_item().unwrap_or_else(|other| panic!("{other:?} instead of an item"))
    }

    /// As [`WebSocket::item`], where the connection may end.
    pub(crate) fn next_item(&mut self) -> Result<Value, Message> {
        let mut notification = match self.waiting.pop_front() {
            Some(waiting) => waiting,
            None => match self.message() {
                Message::Json(value) => value,
                other => return Err(other),
            },
        };
        Ok(notification["params"]["result"].take())
    }
}

fn connect(addr: &str, receive_bytes: Option<usize>) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(bytes) = receive_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    let target: SocketAddr = addr.parse()?;
    socket.connect(&target.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// The item of a notification.
pub(crate) fn socket_item(text: &[u8]) -> Value {
    let mut notification: Value = serde_json::from_slice(text).expect("JSON");
    notification["params"]["result"].take()
}

/// The item of an event.
pub(crate) fn event_item(text: &[u8]) -> Value {
    Event::parse(text).data
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

impl Event {
    fn parse(text: &[u8]) -> Self {
        let text = std::str::from_utf8(text).expect("UTF-8");
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned);
        Self {
            name: field("event: ").expect("every event has a name"),
            id: field("id: "),
            data: serde_json::from_str(&field("data: ").expect("every event has data")).expect("JSON"),
        }
    }
}

/// One stream of server-sent events; dropped, it breaks off.
pub(crate) struct Events {
    conn: Connection,
    pub(crate) status: u16,
    body: Vec<u8>,
}

impl Events {
    #[track_caller]
    pub(crate) fn open(addr: &str, path: &str, last_id: Option<&str>) -> Self {
        Self::open_with(addr, path, last_id, None)
    }

    /// `receive_bytes` as for [`WebSocket::open`].
    #[track_caller]
    pub(crate) fn open_with(
        addr: &str,
        path: &str,
        last_id: Option<&str>,
        receive_bytes: Option<usize>,
    ) -> Self {
        let stream = connect(addr, receive_bytes).expect("the node answers");
        let mut conn = Connection::over(addr, stream);
        let last_id = last_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        conn.send(format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n{last_id}\r\n").as_bytes())
            .expect("it reads");
        let status = conn.head().expect("it answers").status;
        Self { conn, status, body: Vec::new() }
    }

    /// As [`Events::open`] where something is there to be read: a node that has not caught up says goodbye
    /// instead, and a reader comes back.
    #[track_caller]
    pub(crate) fn subscribe(addr: &str, path: &str) -> Self {
        wait_for("the node lets a reader in", SOON, || {
            let mut events = Self::open(addr, path, None);
            let first = events.text();
            let is_let_in = first.as_ref().is_some_and(|text| Event::parse(text).name != "end");
            events.body.splice(..0, first.into_iter().flatten());
            anyhow::ensure!(is_let_in, "status {}: {}", events.status, events.body.escape_ascii());
            Ok(events)
        })
    }

    /// `None` when the stream is over.
    pub(crate) fn next(&mut self) -> Option<Event> {
        Some(Event::parse(&self.text()?))
    }

    /// The next event as it came, comments before it included.
    pub(crate) fn text(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.body.windows(2).position(|w| w == b"\n\n") {
                Some(at) => return Some(self.body.drain(..at + 2).collect()),
                None if !self.conn.read_body(&mut self.body).unwrap_or(false) => return None,
                None => {}
            }
        }
    }
}
