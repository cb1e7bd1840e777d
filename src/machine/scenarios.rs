//! Runs `tests/scenarios/machine/*.txt`: entries in, outcomes and state out.
//!
//! A file is a comment that says what it shows, then input lines, a line `----`, and the expected
//! output. `REWRITE=1` accepts what comes out. The words of the input are those of [`Story::line`].

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use bytes::Bytes;
use prost::Message;

use crate::machine::{
    apply::{Applying, HASH_EVERY, Machine, Outcome, settings_to_proto},
    command::{CARRIER_BYTES, Command, Kind},
    memory::Memory,
};
use crate::types::{
    block::{Block, BlockRef},
    error::{Certainty, ProposeError},
    position::LogPos,
    proto,
    settings::{ClusterSettings, Continuity, SettingsInForce, Timestamps},
};

/// Fewer would say that files were lost.
const FILES_MIN: usize = 20;

#[test]
fn every_scenario_comes_out_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/machine");
    let mut files: Vec<_> =
        fs::read_dir(&dir).expect("the folder is there").map(|e| e.expect("readable").path()).collect();
    files.sort();
    assert!(FILES_MIN <= files.len(), "only {} scenarios in {}", files.len(), dir.display());
    let mut wrong = String::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        assert!(text.starts_with("# "), "{}: the first line does not say what it shows", file.display());
        let (input, expected) = text.split_once("----\n").unwrap_or((text.as_str(), ""));
        let got = Story::default().run(input);
        if got == expected {
            continue;
        }
        if std::env::var_os("REWRITE").is_some() {
            fs::write(&file, format!("{input}----\n{got}")).expect("writable");
        } else {
            let _ = writeln!(wrong, "{}\nexpected:\n{expected}\ngot:\n{got}", file.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A machine, its rows, and where its log has come to.
#[derive(Default)]
struct Story {
    machine: Machine,
    rows: Memory,
    pos: LogPos,
    settings: ClusterSettings,
}

/// The words of a line that are `key=value`.
type Options<'a> = BTreeMap<&'a str, &'a str>;

impl Story {
    fn run(mut self, input: &str) -> String {
        let mut out = String::new();
        for line in input.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let said = self.line(line);
            let _ = writeln!(out, "{line} -> {said}");
        }
        out
    }

    /// `term N` · `blank` · `membership` · `lead NODE cause= op=` · `configure SETTING=… against=` ·
    /// `block HEIGHT HASH ts= parent= fence= header= data= da= trace=` · `blocks FROM TO` ·
    /// `raw KIND HEX` · `leads N` · `skip N` · `reload` · `lose HEIGHT` · `show WHAT`.
    fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let options: Options<'_> = words.iter().filter_map(|w| w.split_once('=')).collect();
        let plain: Vec<&str> = words.iter().filter(|w| !w.contains('=')).copied().collect();
        match plain[..] {
            ["term", n] => {
                self.pos.term = number(n);
                "ok".into()
            }
            ["skip", n] => {
                self.pos.index += number(n);
                format!("the last entry is {}", self.pos.index)
            }
            ["blank"] => self.apply(&Applying::Blank),
            ["membership"] => self.apply(&Applying::Membership { crc: 7, length: 9 }),
            ["lead", node] => self.apply(&Applying::Command(&lead(number(node), &options))),
            ["configure"] => {
                let command = self.configure(&options);
                self.apply(&Applying::Command(&command))
            }
            ["block", height, hash] => {
                let command = self.block(number(height), hash, &options);
                self.apply(&Applying::Command(&command))
            }
            ["blocks", from, to] => self.blocks(number(from), number(to), &options),
            ["raw", kind, hex] => {
                let kind = match kind {
                    "block" => Kind::Block,
                    "leadership" => Kind::Leadership,
                    "configure" => Kind::Configure,
                    _ => panic!("no kind {kind}"),
                };
                self.apply(&Applying::Command(&Command::new(kind, unhex(hex))))
            }
            ["leads", n] => {
                for _ in 0..number(n) {
                    self.pos.term += 1;
                    self.apply(&Applying::Command(&lead(1, &options)));
                }
                format!("term {}", self.pos.term)
            }
            ["reload"] => self.reload(),
            ["lose", height] => {
                self.rows.lose_block(number(height));
                "ok".into()
            }
            ["show", what] => self.show(what),
            _ => panic!("not understood: {line}"),
        }
    }

    fn apply(&mut self, entry: &Applying<'_>) -> String {
        // What founds the cluster has index 0; these stories begin behind it.
        self.pos.index += 1;
        let entry = match entry {
            Applying::Blank => Applying::Blank,
            Applying::Membership { crc, length } => Applying::Membership { crc: *crc, length: *length },
            Applying::Command(c) => Applying::Command(c),
        };
        let outcome = self.machine.apply(&mut self.rows, self.pos, entry);
        format!("{}/{} {}", self.pos.term, self.pos.index, say(&outcome))
    }

    /// Without `ts=` a block is 10 ns after the height before it, without `fence=` it has the right one.
    fn block(&self, height: u64, hash: &str, options: &Options<'_>) -> Command {
        let of = |key: &str| options.get(key).map(|v| bytes(v));
        let da = options.get("da").map_or(0, |v| number(v));
        let block = Block {
            height,
            hash: bytes(hash),
            timestamp: options.get("ts").map_or(height.wrapping_mul(10), |v| number(v)),
            header: of("header").unwrap_or_default(),
            data: of("data").unwrap_or_default(),
            parent_hash: of("parent"),
            last_submitted_da_header_height: da,
            last_submitted_da_data_height: da,
        };
        let trace = options.get("trace").map(|v| {
            let mut carrier = [0; CARRIER_BYTES];
            carrier[0] = 1;
            carrier[1..17].fill(number(v) as u8);
            carrier
        });
        let fence = options.get("fence").map_or(self.pos.term, |v| number(v));
        Command::block(block, fence, 1, height % 1000, trace)
    }

    fn blocks(&mut self, from: u64, to: u64, options: &Options<'_>) -> String {
        let mut last = String::new();
        for height in from..=to {
            let command = self.block(height, &format!("h{height}"), options);
            last = self.apply(&Applying::Command(&command));
        }
        format!("last {last}")
    }

    /// Settings are given as they are to be; those not named stay as the file last named them.
    fn configure(&mut self, options: &Options<'_>) -> Command {
        let s = &mut self.settings;
        let mut expected_index = 0;
        let mut continuity = None;
        for (key, value) in options {
            match *key {
                "continuity" if *value == "strict" => s.continuity = Continuity::Strict,
                "continuity" if *value == "monotonic" => s.continuity = Continuity::Monotonic,
                "continuity" => continuity = Some(number(value) as i32),
                "timestamps" if *value == "strict" => s.timestamps = Timestamps::Strict,
                "timestamps" if *value == "nondecreasing" => s.timestamps = Timestamps::Nondecreasing,
                "history_blocks" => s.history_blocks = number(value),
                "history_bytes" => s.history_bytes = number(value),
                "first_height" => s.first_height = Some(number(value)),
                "against" => expected_index = number(value),
                _ => panic!("no setting {key}={value}"),
            }
        }
        let mut settings = settings_to_proto(s);
        settings.continuity = continuity.unwrap_or(settings.continuity);
        Command::configure(&proto::ConfigureCommand { settings: Some(settings), expected_index })
    }

    /// The machine as a restart finds it: of the record and the rows alone.
    fn reload(&mut self) -> String {
        let record = self.machine.record();
        let machine = match self.rows.load(Some(&record)) {
            Ok(machine) => machine,
            Err(e) => return format!("error: {e}"),
        };
        assert_eq!(machine.view(), self.machine.view(), "a reload changes what is seen");
        assert_eq!(machine.record(), record, "a reload changes the record");
        self.machine = machine;
        "the same".into()
    }

    fn show(&self, what: &str) -> String {
        let v = self.machine.view();
        match what {
            "applied" => format!("{}/{}", v.applied.term, v.applied.index),
            "head" => format!("{} at {}/{}", head(v.head.as_ref()), v.head_pos.term, v.head_pos.index),
            "history" => format!(
                "{} blocks, {} bytes, oldest {:?}, pruned {}: {}",
                v.history_blocks,
                v.history_bytes,
                v.oldest_height,
                v.has_pruned,
                runs(&self.rows.heights())
            ),
            "settings" => settings(&v.settings),
            "leadership" => v.leadership.as_ref().map_or("none".into(), |l| {
                format!(
                    "node {} at {}/{}, {:?} {}",
                    l.node_id, l.pos.term, l.pos.index, l.cause, l.operation_id
                )
            }),
            "leaderships" => {
                let terms = self.rows.leadership_terms();
                format!("{} kept: {}", terms.len(), runs(&terms))
            }
            "hash" => hex(&v.state_hash[..8]),
            "mark" => v.hash_mark.map_or(format!("none, one each {HASH_EVERY}"), |(index, hash)| {
                format!("{index} {}", hex(&hash[..8]))
            }),
            _ => panic!("nothing called {what} to show"),
        }
    }
}

fn lead(node_id: u64, options: &Options<'_>) -> Command {
    let cause = match options.get("cause").copied() {
        None | Some("election") => proto::LeadershipCause::Election,
        Some("transfer") => proto::LeadershipCause::Transfer,
        Some("resign") => proto::LeadershipCause::Resign,
        Some(other) => panic!("no cause {other}"),
    };
    let operation_id = options.get("op").copied().unwrap_or_default().into();
    Command::leadership(&proto::LeadershipCommand {
        node_id,
        cause: cause.into(),
        operation_id,
        started_at_ms: 5,
    })
}

fn say(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Nothing => "nothing".into(),
        Outcome::Accepted(a) => {
            let what = if a.duplicate { "duplicate of" } else { "accepted at" };
            let trace = a.trace_id.map_or(String::new(), |t| format!(", trace {}", hex(&t[..2])));
            format!("{what} {}/{}{trace}", a.term, a.index)
        }
        Outcome::Fenced { fence, term, head: h } => {
            format!("fenced: fence {fence} in term {term}, head {}", head(h.as_ref()))
        }
        Outcome::Refused { refusal, head: h, oldest_height } => {
            let error =
                ProposeError::Refused { refusal: *refusal, head: h.clone(), oldest_height: *oldest_height };
            let kind = match error.certainty() {
                Certainty::Refused => "refused".to_owned(),
                Certainty::Unknown => format!("unknown, oldest {oldest_height:?}"),
            };
            format!("{refusal:?}, {kind}, head {}", head(h.as_ref()))
        }
        Outcome::Led => "led".into(),
        Outcome::Configured(s) => format!("configured: {}", settings(s)),
        Outcome::SettingsMoved(s) => format!("settings moved: {}", settings(s)),
        Outcome::Undecodable => "undecodable".into(),
    }
}

fn settings(s: &SettingsInForce) -> String {
    let (d, v) = (ClusterSettings::default(), &s.settings);
    let mut out = format!("index {}", s.index);
    if v.continuity != d.continuity {
        let _ = write!(out, " {:?}", v.continuity);
    }
    if v.timestamps != d.timestamps {
        let _ = write!(out, " {:?}", v.timestamps);
    }
    if v.history_blocks != d.history_blocks {
        let _ = write!(out, " history_blocks={}", v.history_blocks);
    }
    if v.history_bytes != d.history_bytes {
        let _ = write!(out, " history_bytes={}", v.history_bytes);
    }
    if let Some(first) = v.first_height {
        let _ = write!(out, " first_height={first}");
    }
    out
}

fn head(head: Option<&BlockRef>) -> String {
    head.map_or("none".into(), |h| {
        format!("{} {} ts {}", h.height, String::from_utf8_lossy(&h.hash), h.timestamp)
    })
}

/// Rising numbers as runs: `1-4 7`.
fn runs(numbers: &[u64]) -> String {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for n in numbers {
        match out.last_mut() {
            Some((_, end)) if *end + 1 == *n => *end = *n,
            _ => out.push((*n, *n)),
        }
    }
    let say = |(a, b): &(u64, u64)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    out.iter().map(say).collect::<Vec<_>>().join(" ")
}

/// `ab` is the text's bytes, `a*65` sixty-five of them, `-` none.
fn bytes(word: &str) -> Bytes {
    match word.split_once('*') {
        Some((text, n)) => text.repeat(number(n) as usize).into(),
        None if word == "-" => Bytes::new(),
        None => word.to_owned().into(),
    }
}

fn number(word: &str) -> u64 {
    match word {
        "max" => u64::MAX,
        "max53" => (1 << 53) - 1,
        _ => word.parse().unwrap_or_else(|_| panic!("no number: {word}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Bytes {
    let text = text.trim_start_matches("0x");
    let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(byte).collect::<Vec<_>>().into()
}

#[test]
fn a_command_of_a_newer_version_is_not_known() {
    let mut command = Command::new(Kind::Block, Bytes::new());
    assert!(command.is_known());
    command.version = 2;
    assert!(!command.is_known());
    assert!(!Command::new(Kind::from_u8(19), Bytes::new()).is_known());
    for n in 0..=u8::MAX {
        assert_eq!(Kind::from_u8(n).to_u8(), n, "a kind's number survives");
    }
}

#[test]
fn a_block_command_decodes_to_what_it_was_made_of() {
    let block = Block {
        height: 3,
        hash: bytes("hash"),
        timestamp: 9,
        header: bytes("header"),
        data: bytes("d*300"),
        parent_hash: Some(bytes("parent")),
        last_submitted_da_header_height: 1,
        last_submitted_da_data_height: 2,
    };
    let carrier = [1; CARRIER_BYTES];
    let command = Command::block(block.clone(), 4, 5, 6, Some(carrier));
    assert_eq!(command.crc, crc32fast::hash(&command.payload));
    let decoded = proto::BlockCommand::decode(command.payload).expect("it decodes");
    assert_eq!((decoded.fence, decoded.proposer_id, decoded.proposed_at_ms), (4, 5, 6));
    assert_eq!(decoded.trace.as_ref(), carrier);
    let bytes = proto::RaftBlockState::from(block.clone()).encode_to_vec();
    assert_eq!(decoded.block.as_ref(), bytes, "the block's bytes are those of a RaftBlockState");
    assert_eq!(Block::from(proto::RaftBlockState::decode(decoded.block).expect("it decodes")), block);
}
