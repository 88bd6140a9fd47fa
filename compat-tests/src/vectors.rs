//! The recorded requests (`golden/ipc`) and their answers in a form that can be compared.
use crate::client::{name256, unhex};
use crate::golden;
use crate::text::{sort_between, without_number};
use serde_json::Value;

/// A file as a whole, and its vectors.
pub fn vectors(file: &str) -> (Value, Vec<Value>) {
    let text = std::fs::read_to_string(golden(&format!("ipc/{file}.json"))).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let vectors = value["vectors"].as_array().unwrap().clone();
    (value, vectors)
}

/// A field that is a text; empty if it is missing.
pub fn text<'a>(vector: &'a Value, key: &str) -> &'a str {
    vector[key].as_str().unwrap_or_default()
}

/// The request of a vector with its header. Long requests are recorded without their payload and
/// made here as their description says.
pub fn request_bytes(vector: &Value) -> Vec<u8> {
    let mut bytes = unhex(text(vector, "request_hex"));
    if let Some(length) = vector["request_len"].as_u64() {
        let length = usize::try_from(length).unwrap();
        bytes.extend(name256("kv/max"));
        bytes.resize(length, b'm');
    }
    bytes
}

/// The request of a vector: id, payload, and the size field where that is a lie.
pub fn request(vector: &Value) -> (i32, Vec<u8>, Option<i32>) {
    let mut bytes = request_bytes(vector);
    let int = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (id, size) = (int(0), int(8));
    let lie = (i64::from(size) != i64::try_from(bytes.len()).unwrap()).then_some(size);
    (id, bytes.split_off(16), lie)
}

fn sorted(list: &str, separator: &str) -> String {
    let mut parts: Vec<&str> = list.split(separator).collect();
    parts.sort_unstable();
    parts.join(separator)
}

/// Takes out what the vectors call varying: times, process ids and the order of hash tables.
pub fn canonical(op: i32, payload: &[u8]) -> String {
    let text: String = payload.iter().map(|b| char::from(*b)).collect();
    match op {
        1 => {
            let text = without_number(&text, "\"starttime\": ");
            sort_between(&text, "\"node1\": {\n", "}\n", ",\n")
        }
        3 => sort_between(&text, "\"ids\": {\n", "}\n\n}\n", ",\n"),
        8 => without_number(&without_number(&text, "\"time\": "), "\"pid\": "),
        10 => {
            let nul = if text.ends_with('\0') { "\\0" } else { "" };
            sorted(text.trim_end_matches('\0').trim_end_matches('\n'), "\n") + nul
        }
        11 | 13 => sort_between(&text, "{\n", "\n}\n", ",\n"),
        _ => text,
    }
}

/// One line for the comparison: error, size field, payload.
pub fn shown(op: i32, header: &[u8], payload: &[u8]) -> String {
    let int = |at: usize| i32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let id = if int(0) == op {
        String::new()
    } else {
        format!("id {} ", int(0))
    };
    let size = i64::from(int(8));
    let size = if size == 24 + i64::try_from(payload.len()).unwrap() {
        String::new()
    } else {
        format!(" size {size} for {} bytes", payload.len())
    };
    format!("{id}error {}{size} {}", int(16), canonical(op, payload))
}

/// The recorded answer in the form of [`shown`].
pub fn expected(vector: &Value, op: i32) -> String {
    if let Some(error) = vector["transport_error"].as_str() {
        return format!("broken: {error}");
    }
    let mut bytes = unhex(text(vector, "response_hex"));
    if let Some(length) = vector["response_len"].as_u64() {
        bytes.resize(usize::try_from(length).unwrap(), b'm');
    }
    let payload = bytes.split_off(24);
    shown(op, &bytes, &payload)
}
