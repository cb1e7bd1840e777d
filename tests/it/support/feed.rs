//! Readers of the feed: a WebSocket and server-sent events, by hand, so that they can be slow or break off.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::http::Connection;

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
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        if let Some(bytes) = receive_bytes {
            socket.set_recv_buffer_size(bytes).expect("a smaller buffer");
        }
        let target: SocketAddr = addr.parse().expect("an address");
        socket.connect(&target.into()).expect("the node answers");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(TIMEOUT)).expect("a time limit");
        let mut this = Self { stream, buf: Vec::new(), next_id: 1, waiting: VecDeque::new() };
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {addr}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        this.stream.write_all(head.as_bytes()).expect("it reads");
        let end = loop {
            match this.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => assert!(this.fill(), "no upgrade"),
            }
        };
        let head = String::from_utf8_lossy(&this.buf[..end]).into_owned();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        this.buf.drain(..end);
        this
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
        let mut whole = Vec::new();
        loop {
            let Some(head) = self.take(2) else { return Message::Gone };
            let length = match head[1] & 0x7f {
                126 => self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]) as usize),
                127 => self.take(8).map(|b| u64::from_be_bytes(b.try_into().expect("eight")) as usize),
                n => Some(n as usize),
            };
            let Some(payload) = length.and_then(|n| self.take(n)) else { return Message::Gone };
            match head[0] & 0x0f {
                8 => {
                    return Message::Closed(payload.get(..2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]])));
                }
                9 => self.send(10, &payload),
                10 => {}
                _ => whole.extend(payload),
            }
            if head[0] & 0x88 == 0x80 {
                return Message::Json(serde_json::from_slice(&whole).expect("JSON"));
            }
        }
    }

    /// The whole answer; what is notified meanwhile waits.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.raw_call(&request, |answer| answer["id"] == id)
    }

    #[track_caller]
    pub(crate) fn raw_call(&mut self, request: &Value, is_answer: impl Fn(&Value) -> bool) -> Value {
        self.send(1, request.to_string().as_bytes());
        loop {
            match self.message() {
                Message::Json(value) if is_answer(&value) => return value,
                Message::Json(value) => self.waiting.push_back(value),
                other => panic!("{other:?} instead of an answer"),
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
        let notification = match self.waiting.pop_front() {
            Some(waiting) => waiting,
            None => match self.message() {
                Message::Json(value) => value,
                other => panic!("{other:?} instead of an item"),
            },
        };
        notification["params"]["result"].clone()
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
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
        let mut conn = Connection::open_within(addr, TIMEOUT).expect("the node answers");
        let last_id = last_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        conn.send(format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n{last_id}\r\n").as_bytes())
            .expect("it reads");
        let status = conn.head().expect("it answers").status;
        Self { conn, status, body: Vec::new() }
    }

    /// `None` when the stream is over.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let end = loop {
            match self.body.windows(2).position(|w| w == b"\n\n") {
                Some(at) => break at + 2,
                None if !self.conn.read_body(&mut self.body).unwrap_or(false) => return None,
                None => {}
            }
        };
        let text: Vec<u8> = self.body.drain(..end).collect();
        let text = String::from_utf8(text).expect("UTF-8");
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned);
        Some(Event {
            name: field("event: ").expect("every event has a name"),
            id: field("id: "),
            data: serde_json::from_str(&field("data: ").expect("every event has data")).expect("JSON"),
        })
    }
}
