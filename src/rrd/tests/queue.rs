use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::rrd::key::Kind;
use crate::rrd::queue::{Queue, Update};

fn update(file: &str, line: &str) -> Update {
    Update {
        file: Path::new(file).into(),
        kind: Kind::Guest,
        line: line.as_bytes().into(),
        arrival: 1,
    }
}

fn texts(updates: Vec<Update>) -> Vec<String> {
    let text = |u: &Update| format!("{}={}", u.file.display(), String::from_utf8_lossy(&u.line));
    updates.iter().map(text).collect()
}

#[test]
fn nothing_is_lost_while_there_is_room() {
    let mut queue = Queue::new(4, 10_000);
    for (file, line) in [("a", "1"), ("b", "1"), ("a", "2"), ("a", "3")] {
        queue.push(update(file, line));
    }
    assert_eq!(texts(queue.take(3)), ["a=1", "b=1", "a=2"]);
    assert_eq!(texts(queue.take(9)), ["a=3"]);
    assert!(queue.is_empty() && queue.take(9).is_empty());
    assert_eq!(queue.report(Instant::now()), None);
}

#[test]
fn the_newest_value_wins_when_it_is_full() {
    let mut queue = Queue::new(3, 10_000);
    for (file, line) in [("a", "1"), ("b", "1"), ("a", "2"), ("a", "3"), ("b", "2")] {
        queue.push(update(file, line));
    }
    assert_eq!(queue.report(Instant::now()), Some(2));
    // A new file: the oldest value of all makes room.
    queue.push(update("c", "1"));
    assert_eq!(texts(queue.take(9)), ["b=2", "a=3", "c=1"]);
}

#[test]
fn memory_is_bounded() {
    let mut queue = Queue::new(1000, 1000);
    for i in 0..100 {
        queue.push(update(&format!("f{i}"), &"x".repeat(100)));
    }
    assert_eq!(queue.take(100).len(), 3);
    queue.push(update("a", "1"));
    queue.push(update("a", &"x".repeat(2000)));
    assert_eq!(texts(queue.take(9)), ["a=1"]);
    // A larger value in the place of a small one pushes others out.
    for file in ["a", "b", "c", "d", "e"] {
        queue.push(update(file, "1"));
    }
    queue.push(update("e", &"x".repeat(400)));
    let left = queue.take(9);
    assert_eq!(left.len(), 3);
    assert_eq!(left[2].line.len(), 400);
}

#[test]
fn drops_are_reported_once_a_minute() {
    let mut queue = Queue::new(1, 1000);
    let start = Instant::now();
    for _ in 0..3 {
        queue.push(update("a", "1"));
    }
    assert_eq!(queue.report(start), Some(2));
    queue.push(update("a", "1"));
    assert_eq!(queue.report(start + Duration::from_secs(59)), None);
    queue.push(update("a", "1"));
    assert_eq!(queue.report(start + Duration::from_secs(60)), Some(2));
    assert_eq!(queue.report(start + Duration::from_secs(999)), None);
}

proptest! {
    /// Against the plain meaning: of a file the order stays, its newest value is there unless the
    /// queue is too small for all files, and what is not there was counted.
    #[test]
    fn as_a_simple_model(steps in prop::collection::vec((0u8..8, 0u8..6), 0..200)) {
        let mut queue = Queue::new(6, 1 << 20);
        let mut pushed = 0;
        let mut taken: Vec<Update> = Vec::new();
        let mut last = std::collections::BTreeMap::new();
        for (i, (action, file)) in steps.iter().enumerate() {
            if *action == 0 {
                taken.extend(queue.take(2));
            } else {
                let line = format!("{i:04}");
                queue.push(update(&file.to_string(), &line));
                last.insert(file.to_string(), line);
                pushed += 1;
            }
        }
        taken.extend(queue.take(100));
        let dropped = queue.report(Instant::now()).unwrap_or(0);
        prop_assert_eq!(taken.len() as u64 + dropped, pushed);
        for (file, line) in last {
            let of_file: Vec<_> = taken.iter().filter(|u| *u.file == *Path::new(&file)).collect();
            prop_assert!(of_file.windows(2).all(|pair| pair[0].line < pair[1].line));
            if let Some(newest) = of_file.last() {
                prop_assert_eq!(&*newest.line, line.as_bytes());
            }
        }
    }
}
