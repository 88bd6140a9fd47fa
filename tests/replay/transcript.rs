//! Reading a transcript.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use flate2::read::GzDecoder;
use pmxcfs::dfsm::MemberId;
use pmxcfs::memdb::LoadRow;
use serde_json::Value;

/// The two groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    Dcdb,
    Kv,
}

/// A database as recorded.
#[derive(Debug, Clone)]
pub struct Db {
    pub phase: String,
    pub digest: String,
    pub rows: Vec<LoadRow>,
}

#[derive(Debug)]
pub enum Kind {
    Start {
        pid: u32,
    },
    /// A client sets a status value (it may not be sent: the node may be alone).
    SetStatus {
        key: String,
        value: String,
    },
    Joined {
        group: Group,
    },
    Finalized {
        group: Group,
    },
    Confchg {
        group: Group,
        members: Vec<MemberId>,
        joined: Vec<MemberId>,
    },
    Deliver {
        group: Group,
        from: MemberId,
        bytes: Arc<[u8]>,
    },
    Send {
        group: Group,
        callback: bool,
        bytes: Arc<[u8]>,
        note: String,
    },
    Done {
        group: Group,
    },
    Db(Db),
}

#[derive(Debug)]
pub struct Event {
    pub node: u32,
    /// Clock of the node, where it was recorded.
    pub now: Option<u32>,
    pub kind: Kind,
}

#[derive(Debug)]
pub struct Transcript {
    pub name: String,
    pub t0: u32,
    /// Node id to name and address.
    pub nodes: HashMap<u32, (String, String)>,
    pub events: Vec<Event>,
}

impl Transcript {
    pub fn load(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("compat-tests/golden/cluster")
            .join(format!("{name}.jsonl.gz"));
        let file = std::fs::File::open(&path).unwrap();
        let mut text = String::new();
        GzDecoder::new(file).read_to_string(&mut text).unwrap();
        let mut transcript = Transcript {
            name: name.to_owned(),
            t0: 0,
            nodes: HashMap::new(),
            events: Vec::new(),
        };
        let mut payloads = HashMap::new();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            transcript.take(&line, &mut payloads);
        }
        transcript
    }

    fn take(&mut self, line: &Value, payloads: &mut HashMap<u64, (Arc<[u8]>, String)>) {
        let number = |key: &str| line[key].as_u64().unwrap();
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let group = || match line["g"].as_str() {
            Some("dcdb") => Group::Dcdb,
            Some("kv") => Group::Kv,
            other => panic!("group {other:?} in {line}"),
        };
        let payload = || payloads[&number("id")].clone();
        let kind = match line["ev"].as_str().unwrap() {
            "meta" => {
                self.t0 = number("t0") as u32;
                for node in line["nodes"].as_object().unwrap().values() {
                    let field = |key: &str| node[key].as_str().unwrap().to_owned();
                    let id = node["nodeid"].as_u64().unwrap() as u32;
                    self.nodes.insert(id, (field("name"), field("ip")));
                }
                return;
            }
            "payload" => {
                payloads.insert(number("id"), (unhex(&text("hex")).into(), text("note")));
                return;
            }
            "op" if line["pid"].is_u64() && text("op") == "start pmxcfs" => Kind::Start {
                pid: number("pid") as u32,
            },
            "op" if text("op").starts_with("ipc status ") => {
                let op = text("op");
                let mut words = op.splitn(4, ' ').skip(2);
                let mut word = || words.next().unwrap_or_default().to_owned();
                let (key, mut value) = (word(), word());
                if !value.is_empty() {
                    value.push('\0');
                }
                Kind::SetStatus { key, value }
            }
            "join" if number("rc") == 1 => Kind::Joined { group: group() },
            "finalize" => Kind::Finalized { group: group() },
            "confchg" => Kind::Confchg {
                group: group(),
                members: member_list(&line["members"]),
                joined: member_list(&line["joined"]),
            },
            "deliver" => Kind::Deliver {
                group: group(),
                from: member(&line["from"]),
                bytes: payload().0,
            },
            "send" => {
                let (bytes, note) = payload();
                Kind::Send {
                    group: group(),
                    callback: number("cb") > 0,
                    bytes,
                    note,
                }
            }
            "done" => Kind::Done { group: group() },
            // No file yet.
            "db" if line["rows"].is_null() => return,
            "db" => Kind::Db(Db {
                phase: text("phase"),
                digest: text("digest"),
                rows: line["rows"].as_array().unwrap().iter().map(row).collect(),
            }),
            // The send just recorded failed; "try again" is followed by a new one.
            "sendrc" => {
                assert_eq!(number("rc"), 6);
                let at = self
                    .events
                    .iter()
                    .rposition(|e| matches!(e.kind, Kind::Send { .. }));
                self.events.remove(at.unwrap());
                return;
            }
            // The bytes just delivered were changed by a test hook.
            "corrupt" => {
                let last = self
                    .events
                    .iter_mut()
                    .rev()
                    .find_map(|e| match &mut e.kind {
                        Kind::Deliver { bytes, .. } => Some(bytes),
                        _ => None,
                    });
                let bytes = last.unwrap();
                let mut changed = bytes.to_vec();
                *changed.last_mut().unwrap() ^= 1;
                *bytes = changed.into();
                return;
            }
            _ => return,
        };
        self.events.push(Event {
            node: number("n") as u32,
            now: line["now"].as_u64().map(|now| now as u32),
            kind,
        });
    }
}

fn member(value: &Value) -> MemberId {
    MemberId {
        nodeid: value[0].as_u64().unwrap() as u32,
        pid: value[1].as_u64().unwrap() as u32,
    }
}

fn member_list(value: &Value) -> Vec<MemberId> {
    value.as_array().unwrap().iter().map(member).collect()
}

fn row(value: &Value) -> LoadRow {
    let number = |at: usize| value[at].as_i64().unwrap();
    LoadRow {
        inode: number(0),
        parent: number(1),
        version: number(2),
        writer: number(3),
        mtime: number(4),
        type_code: number(5),
        name: Some(value[6].as_str().unwrap().as_bytes().into()),
        data: value[7].as_str().map(|hex| unhex(hex).into()),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}
