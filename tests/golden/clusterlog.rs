//! `golden/status/clusterlog`: what was logged, what is shown.

use crate::harness::{Node, blank, golden_text, text};

fn log(node: &mut Node, priority: u8, ident: &str, tag: &str, message: &[u8]) -> i32 {
    let lens = [ident.len() as u8 + 1, tag.len() as u8 + 1];
    let payload = [
        &[priority, lens[0], lens[1]],
        ident.as_bytes(),
        b"\0",
        tag.as_bytes(),
        b"\0",
        message,
        b"\0",
    ];
    node.ask(7, &payload.concat()).0
}

fn query(node: &mut Node, max: u32, user: &str) -> String {
    let payload = [&max.to_le_bytes()[..], &[0; 12], user.as_bytes(), b"\0"].concat();
    let (error, answer) = node.ask(8, &payload);
    assert_eq!(error, 0);
    serde_json::from_slice::<serde_json::Value>(&answer).unwrap();
    text(&answer)
}

fn check(answer: &str, file: &str) {
    let varying = |text: &str| blank(&blank(text, "\"time\": "), "\"pid\": ");
    let recorded = golden_text(&format!("status/clusterlog/{file}.json"));
    // What no parser accepted is escaped now.
    let fixed = recorded
        .replace(r"back\slash", r"back\\slash")
        .replace(r#""bob"x@pve""#, r#""bob\"x@pve""#)
        .replace(r#""ta"g""#, r#""ta\"g""#);
    assert_eq!(varying(answer), varying(&fixed), "{file}");
}

#[test]
fn as_recorded() {
    let mut node = Node::new("node1");
    let (root, alice, daemon) = ("root@pam", "alice@pve", "pvedaemon");
    let control = b"ctrl \t tab \n newline \r cr \x01 one \x1f us \x7f del";
    let invalid = b"invalid utf8 \xff\xfe \x01 \n \"q\" \x7f del \xc3\xa4 end";
    let long_name = |c: &str| c.repeat(254);
    let entries: Vec<(u8, String, String, Vec<u8>)> = [
        (6, root, daemon, &b"plain ascii message"[..]),
        (
            5,
            root,
            "pveproxy",
            b"with \"double quotes\" and back\\slash",
        ),
        (
            3,
            alice,
            daemon,
            "umlaut \u{e4}\u{f6}\u{fc} euro \u{20ac} end".as_bytes(),
        ),
        (3, alice, daemon, "emoji \u{1f600} dropped".as_bytes()),
        (3, alice, daemon, control),
        (3, alice, daemon, invalid),
        (
            4,
            "bob\"x@pve",
            "ta\"g",
            b"quotes in ident and tag not escaped",
        ),
        (4, "zo\u{eb}@pve", "t\u{e1}g", b"utf8 in ident and tag"),
        (0, root, "t", b"priority 0"),
        (7, root, "t", b"priority 7"),
        (8, root, "t", b"priority 8"),
        (6, "", "t", b"empty ident"),
        (6, root, "", b"empty tag"),
        (6, root, "t", b""),
        (6, &long_name("i"), "t", b"ident 254 chars (len 255)"),
        (6, root, &long_name("T"), b"tag 254"),
        (6, root, "t", &[b'x'; 5000]),
        (6, root, "t", &[b'"'; 3000]),
    ]
    .map(|(p, i, t, m)| (p, i.to_owned(), t.to_owned(), m.to_vec()))
    .into();
    for (priority, ident, tag, message) in &entries {
        assert_eq!(log(&mut node, *priority, ident, tag, message), 0);
    }
    // No message, ident or tag without its NUL, too short; a message without its NUL is taken.
    for payload in [
        &b"\x06\x05\x02abcd\0t\0"[..],
        b"\x06\x04\x02abcd\0t\0m\0",
        b"\x06\x05\x02abcd\0txm\0",
        b"\x06",
    ] {
        assert_eq!(node.ask(7, payload).0, -libc::EINVAL);
    }
    assert_eq!(node.ask(7, b"\x06\x05\x02abcd\0t\0m").0, 0);
    assert_eq!(node.ask(7, b"\x06\x05\x02abcd\0t\0msgnotterm").0, 0);

    for (file, max, user) in [
        ("all-default", 0, ""),
        ("max3", 3, ""),
        ("user-root", 0, root),
        ("user-alice-max2", 2, alice),
        ("user-unknown", 0, "nobody"),
        ("max1000", 1000, ""),
    ] {
        check(&query(&mut node, max, user), file);
    }
    for len in [16, 4] {
        assert_eq!(node.ask(8, &vec![0; len]).0, -libc::EINVAL);
    }

    for i in 0..70 {
        assert_eq!(
            log(&mut node, 6, root, "fill", format!("entry {i}").as_bytes()),
            0
        );
    }
    check(&query(&mut node, 0, ""), "after70-default");
    check(&query(&mut node, 100, ""), "after70-max100");
    check(
        &text(&node.status.clusterlog_text(b"", 0)),
        "dot-clusterlog",
    );
}
