//! `differences.md`: every intended difference from the golden data, and the comparison.
//!
//! A case that differs without a row fails; a row whose case does not occur any more fails too, so
//! the table stays true.
use crate::Subject;
use std::collections::BTreeMap;

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub area: String,
    pub case: String,
    pub reference: String,
    pub ours: String,
    pub reason: String,
}

/// Reads the table rows out of the text of `differences.md`; panics on a malformed one.
pub fn parse(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|l| l.starts_with('|')) {
        let cells = cells(line);
        if cells[0] == "area" || cells[0].starts_with("--") {
            continue;
        }
        assert!(cells.len() == 5, "differences.md: not five cells: {line}");
        assert!(!cells[4].is_empty(), "differences.md: no reason: {line}");
        assert!(
            cells[2] != cells[3],
            "differences.md: no difference: {line}"
        );
        rows.push(Row {
            area: cells[0].clone(),
            case: cells[1].clone(),
            reference: cells[2].clone(),
            ours: cells[3].clone(),
            reason: cells[4].clone(),
        });
    }
    rows
}

/// Splits at `|` that are not escaped; takes one pair of backticks off each cell.
fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().trim_start_matches('|');
    let inner = inner.strip_suffix('|').unwrap_or(inner);
    let mut out = vec![String::new()];
    let mut chars = inner.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek() == Some(&'|') => {
                chars.next();
                out.last_mut().expect("never empty").push('|');
            }
            '|' => out.push(String::new()),
            c => out.last_mut().expect("never empty").push(c),
        }
    }
    out.iter()
        .map(|c| {
            let c = c.trim();
            c.strip_prefix('`')
                .and_then(|c| c.strip_suffix('`'))
                .unwrap_or(c)
                .to_string()
        })
        .collect()
}

/// A value as it stands in the table: one line, and a digest instead of an endless text.
pub fn printable(value: &str) -> String {
    let mut out = String::new();
    for c in value.trim().chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '`' => out.push('\''),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    if out.chars().count() > 2000 {
        let sum = out
            .bytes()
            .fold(0_u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
        let head: String = out.chars().take(120).collect();
        out = format!("{head}… ({} bytes, hash {sum:08x})", value.len());
    }
    out
}

/// Collects the cases of one area and compares them at the end.
#[derive(Debug)]
pub struct Checker {
    area: String,
    ours: bool,
    rows: BTreeMap<String, Row>,
    seen: BTreeMap<String, bool>,
    failures: Vec<String>,
}

impl Checker {
    /// Reads the rows of `area`.
    pub fn new(subject: &Subject, area: &str) -> Self {
        let text = std::fs::read_to_string(crate::here().join("differences.md"))
            .expect("compat-tests/differences.md");
        let mut rows = BTreeMap::new();
        for row in parse(&text).into_iter().filter(|r| r.area == area) {
            let old = rows.insert(row.case.clone(), row);
            assert!(old.is_none(), "differences.md: two rows for {old:?}");
        }
        Self {
            area: area.to_string(),
            ours: subject.is_ours(),
            rows,
            seen: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    fn fail(&mut self, case: &str, want: &str, actual: &str, hint: &str) {
        let escape = |s: &str| s.replace('|', "\\|");
        let row = format!(
            "| {} | `{}` | `{}` | `{}` | REASON |",
            self.area,
            escape(case),
            escape(want),
            escape(actual)
        );
        self.failures.push(format!(
            "{case}: {hint}\n    expected: {want}\n    actual:   {actual}\n    {row}"
        ));
    }

    /// A case with recorded behaviour of the reference: both binaries show it, unless a row says
    /// what ours does instead.
    pub fn golden(&mut self, case: &str, golden: &str, actual: &str) {
        self.compare(case, golden, actual, true);
    }

    /// A case whose wanted result the test itself knows: both binaries show it, unless a row says
    /// what each of them does.
    pub fn must(&mut self, case: &str, want: &str, actual: &str) {
        self.compare(case, want, actual, false);
    }

    fn compare(&mut self, case: &str, want: &str, actual: &str, recorded: bool) {
        let (want, actual) = (printable(want), printable(actual));
        let first = self.seen.insert(case.to_string(), true).is_none();
        assert!(first, "{}: case {case} occurs twice", self.area);
        match self.rows.get(case).cloned() {
            None if want != actual => self.fail(case, &want, &actual, "differs and is not listed"),
            None => {}
            Some(row) => {
                if recorded && row.reference != want {
                    self.fail(
                        case,
                        &want,
                        &row.reference,
                        "the table misquotes the golden data",
                    );
                }
                let expected = if self.ours { &row.ours } else { &row.reference };
                if *expected != actual {
                    let hint = if actual == want {
                        "the listed difference does not occur"
                    } else {
                        "differs from the listed value"
                    };
                    self.fail(case, &expected.clone(), &actual, hint);
                }
            }
        }
    }

    /// Something that must hold for both binaries and needs no table.
    pub fn check(&mut self, case: &str, holds: bool, why: impl FnOnce() -> String) {
        if !holds {
            self.failures.push(format!("{case}: {}", why()));
        }
    }

    /// Is this the binary under test?
    pub fn is_ours(&self) -> bool {
        self.ours
    }

    /// How many cases were compared.
    pub fn count(&self) -> usize {
        self.seen.len()
    }

    /// Panics with every failure; also when a listed case did not occur.
    pub fn finish(mut self) {
        for case in self.rows.keys().filter(|c| !self.seen.contains_key(*c)) {
            self.failures.push(format!(
                "{case}: listed in differences.md, but never occurs"
            ));
        }
        let listed = self.rows.len();
        crate::report(&format!(
            "{} [{}]: {} cases compared, {} listed differences, {} failures",
            self.area,
            if self.ours { "ours" } else { "reference" },
            self.seen.len(),
            listed,
            self.failures.len()
        ));
        assert!(
            self.failures.is_empty(),
            "area {}:\n{}",
            self.area,
            self.failures.join("\n")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_keep_escaped_bars() {
        assert_eq!(cells(r"| a | `b \| c` | d |"), ["a", "b | c", "d"]);
    }

    #[test]
    fn the_table_is_well_formed() {
        let text = std::fs::read_to_string(crate::here().join("differences.md")).unwrap();
        let rows = parse(&text);
        let mut keys: Vec<_> = rows.iter().map(|r| (&r.area, &r.case)).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(
            keys.len(),
            rows.len(),
            "a case stands twice in differences.md"
        );
    }
}
