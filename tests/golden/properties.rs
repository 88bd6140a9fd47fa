//! `golden/status/props/results.txt`: guest properties and tokens.

use crate::harness::{Node, by_vmid, golden_text, python_literal, text};

/// `vmid=… props=['a', 'b']` or `props='a'` as a request payload.
fn payload(query: &str) -> (i32, Vec<u8>) {
    let (vmid, rest) = query.split_once(" props=").unwrap();
    let vmid: u32 = vmid.parse().unwrap();
    let mut payload = vmid.to_le_bytes().to_vec();
    let Some(mut list) = rest.strip_prefix('[') else {
        payload.extend(python_literal(rest).0);
        payload.push(0);
        return (11, payload);
    };
    payload.push(0);
    while !list.starts_with(']') {
        let (name, rest) = python_literal(list);
        payload.extend(name);
        payload.push(0);
        payload[4] += 1;
        list = rest.strip_prefix(", ").unwrap_or(rest);
    }
    (13, payload)
}

/// Control bytes and broken UTF-8 made the answer of the C daemon undecodable.
fn fixed(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    text.replace('\t', "\\u0009").replace('\u{1}', "\\u0001")
}

#[test]
fn as_recorded() {
    let mut node = Node::new("node1");
    // Left over from the recordings made before in the same daemon.
    node.create("nodes/node1/qemu-server/99.conf", b"name: z\n");
    node.create("nodes/node2/qemu-server/100.conf", b"name: b\n");
    node.create("nodes/node1/qemu-server/4294967295.conf", b"name: z\n");
    let golden = golden_text("status/props/results.txt");
    let (properties, tokens) = golden.split_once("## tokens\n").unwrap();
    let mut lines = properties.lines();
    let mut queries = 0;
    while let Some(line) = lines.next() {
        if let Some(file) = line.strip_prefix("FILE ") {
            let (path, content) = file.split_once(" = ").unwrap();
            node.create(path, &python_literal(content).0);
        } else if let Some(query) = line.strip_prefix("QUERY(op") {
            let query = query.split_once("vmid=").unwrap().1;
            let (query, error) = query.rsplit_once(" -> error ").unwrap();
            let (id, payload) = payload(query);
            let recorded = python_literal(lines.next().unwrap().trim()).0;
            let (our_error, ours) = node.ask(id, &payload);
            assert_eq!(our_error, error.parse::<i32>().unwrap(), "{line}");
            assert_eq!(text(&ours), by_vmid(&fixed(&recorded)), "{line}");
            queries += 1;
        }
    }
    assert_eq!(queries, 35);
    malformed(&mut node);
    check_tokens(&mut node, tokens);
}

fn malformed(node: &mut Node) {
    for names in [
        &b"\0a\0"[..],
        b"\x01a",
        b"\x01a\0b\0",
        b"\x02a\0",
        b"\x01\0",
        b"\x02a\0\0",
        b"\x01",
    ] {
        let payload = [&200u32.to_le_bytes()[..], names].concat();
        assert_eq!(node.ask(13, &payload).0, -libc::EINVAL, "{names:?}");
    }
    assert_eq!(node.ask(11, &200u32.to_le_bytes()).0, -libc::EINVAL);
    assert_eq!(node.ask(13, &200u32.to_le_bytes()).0, -libc::EINVAL);
}

fn check_tokens(node: &mut Node, tokens: &str) {
    let mut checks = 0;
    for line in tokens.lines() {
        if let Some(content) = line.strip_prefix("token.cfg=") {
            // The second file without a token was an empty one.
            node.write("priv/token.cfg", &python_literal(content).0);
            continue;
        }
        let Some(token) = line.strip_prefix("VERIFY ") else {
            continue;
        };
        let (token, error) = token.rsplit_once(" -> error ").unwrap();
        // A string is sent with a NUL, bytes are sent as they are.
        let mut payload = python_literal(token).0;
        payload.extend((!token.starts_with('b')).then_some(0));
        let (our_error, ours) = node.ask(12, &payload);
        assert_eq!(our_error, error.parse::<i32>().unwrap(), "{line}");
        assert!(ours.is_empty());
        checks += 1;
        if checks == 1 {
            node.create("priv/token.cfg", b"");
        }
    }
    assert_eq!(checks, 14);
}
