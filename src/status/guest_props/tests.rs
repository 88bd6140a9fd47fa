#![forbid(unsafe_code)]

use parking_lot::RwLock;
use proptest::prelude::*;

use super::*;
use crate::memdb::{Op, Stamp};
use crate::status::Status;

fn ask(config: &[u8], names: &[&str]) -> String {
    let names = PropertyNames::new(names.iter().map(|name| name.as_bytes()));
    let text = String::from_utf8(names.answer_one(7, config)).unwrap();
    text.strip_prefix("{\n")
        .unwrap()
        .strip_suffix("\n}\n")
        .unwrap()
        .to_owned()
}

#[test]
fn which_line_counts() {
    assert_eq!(
        ask(b"lock: a\nlock: b\nlock: c\n", &["lock"]),
        r#""7":{"lock": "b"}"#
    );
    assert_eq!(
        ask(b"lock: a\nlock: b\nlock: c\n", &["lock", "x"]),
        r#""7":{"lock": "c"}"#
    );
    assert_eq!(ask(b"a: 1\n\n[snap]\na: 2\n", &["a"]), r#""7":{"a": "1"}"#);
    assert_eq!(ask(b"[PENDING]\na: 2\n", &["a"]), "");
    assert_eq!(
        ask(b"a:b\nab: c", &["a", "ab"]),
        r#""7":{"a": "b","ab": "c"}"#
    );
    assert_eq!(
        ask(b"b: 1\na: 2\n", &["a", "b"]),
        r#""7":{"a": "2","b": "1"}"#
    );
}

#[test]
fn what_the_value_is() {
    assert_eq!(ask(b"m: \t 512 \t \r\n", &["m"]), r#""7":{"m": "512"}"#);
    assert_eq!(ask(b"m:\n", &["m"]), "");
    assert_eq!(ask(b"m:  \n", &["m"]), r#""7":{"m": " "}"#);
    assert_eq!(ask(b"m:x", &["m"]), r#""7":{"m": "x"}"#);
    assert_eq!(ask(b"m :x\n m: y\n", &["m"]), "");
    assert_eq!(ask(b"m: x\0y\n", &["m"]), r#""7":{"m": "x"}"#);
    assert_eq!(ask(b":x\n", &[""]), "");
    assert_eq!(
        ask(b"m: a\"b\\c\td\xff\n", &["m"]),
        "\"7\":{\"m\": \"a\\\"b\\\\c\\u0009d\u{fffd}\"}"
    );
}

/// The rules of the specification, told again in another way.
fn slow(config: &[u8], names: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
    let mut values: Vec<Option<Vec<u8>>> = vec![None; names.len()];
    let firsts: Vec<u8> = names
        .iter()
        .map(|n| n.first().copied().unwrap_or(0))
        .collect();
    let (lo, hi) = (*firsts.iter().min().unwrap(), *firsts.iter().max().unwrap());
    let mut replaced = 0;
    for line in config.split(|b| *b == b'\n') {
        if line.is_empty() || line[0] == 0 || (line[0] != b'[' && (line[0] < lo || line[0] > hi)) {
            continue;
        }
        if line[0] == b'[' {
            break;
        }
        for (i, name) in names.iter().enumerate() {
            let n = name.len();
            if line.len() > n + 1 && line[n] == b':' && line[..n] == **name {
                let (mut start, mut end) = (n + 1, line.len() - 1);
                while start < line.len() - 1 && is_space(line[start]) {
                    start += 1;
                }
                while end > start && is_space(line[end]) {
                    end -= 1;
                }
                let value = &line[start..=end];
                let nul = value.iter().position(|b| *b == 0).unwrap_or(value.len());
                replaced += usize::from(values[i].is_some());
                values[i] = Some(value[..nul].to_vec());
            }
        }
        if replaced == names.len() {
            break;
        }
    }
    values
}

proptest! {
    #[test]
    fn same_as_the_rules(config in "([ab\\[]{0,2}[: \\t\\x00a]{0,4}\\n){0,12}[ab]{0,2}:? ?a?",
                         names in prop::collection::vec("[ab:]{0,2}", 1..4)) {
        let names: Vec<&[u8]> = names.iter().map(|n| n.as_bytes()).collect();
        let expected = slow(config.as_bytes(), &names);
        let mut values = Vec::new();
        PropertyNames::new(names.iter().copied()).scan(config.as_bytes(), &mut values);
        let values: Vec<_> = values.into_iter().map(|v| v.map(<[u8]>::to_vec)).collect();
        prop_assert_eq!(values, expected);
    }

    #[test]
    fn always_valid_json(config: Vec<u8>, name in "[a-z\"\\\\\\x01]{1,3}", value: Vec<u8>) {
        let names = PropertyNames::new([name.as_bytes(), b"a"]);
        let config = [name.as_bytes(), b":", &value, b"\n", &config].concat();
        serde_json::from_slice::<serde_json::Value>(&names.answer_one(1, &config)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever happened to the tree, an answer made with the help of an old one is the same as one
    /// made from nothing.
    #[test]
    fn cached_is_the_same_as_new(steps in prop::collection::vec(step(), 1..60)) {
        let tree: SharedTree = Arc::new(RwLock::new(Tree::new()));
        let status = Status::new("a", 1, 1);
        let apply = |op: Op| {
            // Many steps are refused: also fine.
            let change = tree.write().apply(&op, Stamp { writer: 0, mtime: 1 }, 1);
            if let Ok(change) = change {
                status.announce(&change.effects);
            }
        };
        for dir in ["nodes", "nodes/a", "nodes/a/lxc", "nodes/b", "nodes/b/lxc"] {
            apply(Op::Mkdir { path: path(dir) });
        }
        let names = [PropertyNames::new([&b"a"[..]]), PropertyNames::new([&b"b"[..], b"a"])];
        let mut cache = PropertyCache::default();
        for (op, which) in steps {
            op.map(&apply);
            let (list, version) = status.guests();
            let ours = cache.all(&names[which], &tree, &list, version);
            let new = PropertyCache::default().all(&names[which], &tree, &list, version);
            prop_assert_eq!(&ours, &new);
            prop_assert!(Arc::ptr_eq(&ours, &cache.all(&names[which], &tree, &list, version)));
        }
    }
}

fn path(path: &str) -> TreePath {
    TreePath::new(path.as_bytes())
}

fn step() -> impl Strategy<Value = (Option<Op>, usize)> {
    let config = "nodes/[ab]/lxc/1?[1-4]\\.conf";
    let dir = "nodes/[abc]|nodes/[abc]/lxc";
    let op = prop_oneof![
        3 => config.prop_map(|p| Op::Create { path: path(&p) }),
        4 => (config, "[abc]: [a-c]\n|x").prop_map(|(p, data)| {
            Op::Write { path: path(&p), offset: 0, data: data.into_bytes(), truncate: true }
        }),
        1 => config.prop_map(|p| Op::Delete { path: path(&p) }),
        2 => (config, config).prop_map(|(p, q)| Op::Rename { from: path(&p), to: path(&q) }),
        1 => (dir, dir).prop_map(|(p, q)| Op::Rename { from: path(&p), to: path(&q) }),
        1 => dir.prop_map(|p| Op::Mkdir { path: path(&p) }),
    ];
    (prop::option::weighted(0.9, op), 0..2usize)
}
