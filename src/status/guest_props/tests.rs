#![forbid(unsafe_code)]

use parking_lot::{Mutex, RwLock};
use proptest::prelude::*;

use super::names::is_space;
use super::*;
use crate::memdb::{Op, Stamp, Tree};
use crate::replica::SharedTree;
use crate::status::Status;

fn one(config: &[u8], names: PropertyNames, limit: usize) -> Result<Vec<u8>, TooLong> {
    let mut query = OneGuest::new(names, 7, Arc::from(config), limit);
    let mut out = Vec::new();
    loop {
        if let Some(outcome) = query.go_on(&mut out) {
            return outcome.map(|()| out);
        }
        assert!(out.is_empty());
    }
}

fn ask(config: &[u8], names: &[&str]) -> String {
    let names = PropertyNames::new(names.iter().map(|name| name.as_bytes()));
    let text = String::from_utf8(one(config, names, 1 << 20).unwrap()).unwrap();
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
fn names_given_twice() {
    assert_eq!(
        ask(b"b: 1\na: 2\n", &["a", "b", "a"]),
        r#""7":{"a": "2","b": "1","a": "2"}"#
    );
    // Each of the two counts as replaced.
    assert_eq!(
        ask(b"a: 1\na: 2\na: 3\n", &["a", "a"]),
        r#""7":{"a": "2","a": "2"}"#
    );
    assert_eq!(
        ask(b"a: 1\na: 2\na: 3\n", &["a", "a", "b"]),
        r#""7":{"a": "3","a": "3"}"#
    );
}

#[test]
fn an_answer_that_is_too_long_ends_early() {
    let config = [b"a: ".to_vec(), vec![b'x'; 900_000]].concat();
    let names = |times: usize| PropertyNames::new(std::iter::repeat_n(&b"a"[..], times));
    let whole = one(&config, names(1), 1 << 20).unwrap();
    assert!(one(&config, names(1), whole.len()).is_ok());
    assert_eq!(one(&config, names(1), whole.len() - 1), Err(TooLong));
    assert_eq!(one(&config, names(255), 1 << 20), Err(TooLong));

    let mut query = OneGuest::new(names(255), 7, Arc::from(config), 1 << 20);
    let mut out = Vec::new();
    while query.go_on(&mut out).is_none() {}
    assert!(out.len() < (1 << 20) + 64 * 1024, "{}", out.len());
}

#[test]
fn a_long_config_is_searched_in_pieces() {
    let config = b"ab:1\n".repeat(200_000);
    let names = PropertyNames::new([&b"a"[..], b"b", b"a:1", b"x"]);
    let mut query = OneGuest::new(names, 7, Arc::from(config), 1 << 20);
    let mut out = Vec::new();
    let pieces = std::iter::from_fn(|| query.go_on(&mut out).is_none().then_some(()));
    // A few thousand lines each.
    assert!(pieces.count() > 2);
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
                         names in prop::collection::vec("[ab:]{0,2}", 1..6)) {
        let names: Vec<&[u8]> = names.iter().map(|n| n.as_bytes()).collect();
        let expected = slow(config.as_bytes(), &names);
        let given = PropertyNames::new(names.iter().copied());
        let config: Arc<[u8]> = Arc::from(config.as_bytes());
        let mut scan = Scan::new(&given, config.clone());
        // Pieces of one line.
        while !scan.go_on(&given, &mut 1) {}
        let value = |name: &&[u8]| {
            let place = names.iter().position(|n| n == name);
            // Places are given in the order of first mention.
            let place = names[..place?].iter().enumerate().filter(|(i, n)| !names[..*i].contains(n)).count();
            Some(config[scan.values[place].clone()?].to_vec())
        };
        let values: Vec<_> = names.iter().map(value).collect();
        prop_assert_eq!(values, expected);
    }

    #[test]
    fn always_valid_json(config: Vec<u8>, name in "[a-z\"\\\\\\x01]{1,3}", value: Vec<u8>) {
        let names = PropertyNames::new([name.as_bytes(), b"a"]);
        let config = [name.as_bytes(), b":", &value, b"\n", &config].concat();
        serde_json::from_slice::<serde_json::Value>(&one(&config, names, 1 << 20).unwrap()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever happened to the tree, an answer made with the help of an old one is the same as one
    /// made from nothing.
    #[test]
    fn cached_is_the_same_as_new(steps in prop::collection::vec(step(), 1..60)) {
        let tree: SharedTree = Arc::new(RwLock::new(Tree::new()));
        let status = Arc::new(Status::new("a", 1, 1));
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
        let cache = Arc::new(Mutex::new(PropertyCache::default()));
        for (op, which) in steps {
            op.map(&apply);
            let query = |cache: &Arc<Mutex<PropertyCache>>, limit| {
                AllGuests::new(names[which].clone(), tree.clone(), status.clone(), cache.clone(), limit)
            };
            let new = all(query(&Arc::default(), 1 << 20)).unwrap();
            prop_assert_eq!(all(query(&Arc::default(), new.len())), Ok(new.clone()));
            prop_assert_eq!(all(query(&Arc::default(), new.len() - 1)), Err(TooLong));
            prop_assert_eq!(all(query(&cache, 1 << 20)), Ok(new.clone()));
            let known = query(&cache, 1 << 20).known();
            prop_assert_eq!(known.as_deref(), Some(&new));
            prop_assert_eq!(all(query(&cache, 1 << 20)), Ok(new));
        }
    }
}

fn all(mut query: AllGuests) -> Result<Vec<u8>, TooLong> {
    let mut out = Vec::new();
    loop {
        if let Some(outcome) = query.go_on(&mut out) {
            return outcome.map(|()| out);
        }
    }
}

#[test]
fn many_guests_are_looked_up_in_pieces() {
    let tree: SharedTree = Arc::new(RwLock::new(Tree::new()));
    let status = Arc::new(Status::new("a", 1, 1));
    let config = b"a: 1\n".repeat(10);
    let apply = |op: Op| {
        tree.write()
            .apply(
                &op,
                Stamp {
                    writer: 0,
                    mtime: 1,
                },
                1,
            )
            .unwrap()
    };
    for dir in ["nodes", "nodes/a", "nodes/a/lxc"] {
        apply(Op::Mkdir { path: path(dir) });
    }
    for vmid in 100..2100 {
        let path = path(&format!("nodes/a/lxc/{vmid}.conf"));
        apply(Op::Create { path: path.clone() });
        apply(Op::Write {
            path,
            offset: 0,
            data: config.clone(),
            truncate: true,
        });
    }
    status.reloaded(&tree.read());
    let cache = Arc::new(Mutex::new(PropertyCache::default()));
    let query = |limit| {
        let names = PropertyNames::new([&b"a"[..]]);
        AllGuests::new(names, tree.clone(), status.clone(), cache.clone(), limit)
    };
    // Nothing is kept of an answer that is too long.
    assert_eq!(all(query(30_000)), Err(TooLong));
    assert_eq!(query(1 << 20).known(), None);
    let mut whole = query(1 << 20);
    let mut out = Vec::new();
    let pieces = std::iter::from_fn(|| whole.go_on(&mut out).is_none().then_some(()));
    assert!(pieces.count() > 4);
    assert_eq!(out.iter().filter(|byte| **byte == b'{').count(), 2001);
    let known = query(1 << 20).known();
    assert_eq!(known.as_deref(), Some(&out));
    // The kept answer does not fit those who can take less, either.
    assert_eq!(all(query(30_000)), Err(TooLong));
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
