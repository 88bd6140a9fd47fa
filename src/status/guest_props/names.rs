//! The names of one query, and the search for them in one config (status.md 7).
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::BufRead as _;
use std::ops::Range;
use std::sync::Arc;

use super::{COMMA, TooLong, put};
use crate::status::json::{push_escaped_within, push_u64};

/// What a search may do before others get their turn, counted in bytes looked at: well below a
/// millisecond.
pub(super) const PIECE: usize = 128 << 10;
/// A line costs this much beside its bytes, and a name that is looked up, too.
const STEP: usize = 32;

/// The names of one query, in the order of the request. A name given twice is searched once and
/// answered twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PropertyNames {
    /// Each name once, with how often it was given.
    names: Vec<(Box<[u8]>, usize)>,
    /// Place in `names`.
    places: HashMap<Box<[u8]>, usize>,
    /// The request: places in `names`.
    order: Vec<usize>,
    /// Lengths of the names, each once, the shortest first.
    lengths: Vec<usize>,
    /// Smallest and largest first byte.
    first: (u8, u8),
}

impl PropertyNames {
    /// Names may be anything without a NUL, even empty (nothing is found then).
    pub fn new<'a>(given: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut names: Vec<(Box<[u8]>, usize)> = Vec::new();
        let mut places = HashMap::new();
        let mut order = Vec::new();
        for name in given {
            let place = *places.entry(Box::from(name)).or_insert_with(|| {
                names.push((Box::from(name), 0));
                names.len() - 1
            });
            names[place].1 += 1;
            order.push(place);
        }
        let firsts = || names.iter().map(|(name, _)| name.first().copied());
        let first = |found: Option<Option<u8>>| found.flatten().unwrap_or(0);
        let first = (first(firsts().min()), first(firsts().max()));
        let mut lengths: Vec<usize> = names.iter().map(|(name, _)| name.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        PropertyNames {
            names,
            places,
            order,
            lengths,
            first,
        }
    }

    /// Places of the names that `line` has a value for, with where that value begins.
    fn of_line(&self, line: &[u8]) -> impl Iterator<Item = (usize, usize)> {
        let lengths = self.lengths.iter().copied();
        // A value has at least one byte.
        lengths
            .take_while(|len| len + 1 < line.len())
            .filter(|len| line[*len] == b':')
            .filter_map(|len| Some((*self.places.get(&line[..len])?, len + 1)))
    }

    /// Appends `"<vmid>":{…}`; nothing if the guest has none of the properties.
    pub(super) fn push_guest(
        &self,
        vmid: u32,
        scan: &Scan,
        first: bool,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), TooLong> {
        if scan.values.iter().all(Option::is_none) {
            return Ok(());
        }
        if !first {
            out.extend_from_slice(COMMA);
        }
        out.push(b'"');
        push_u64(out, vmid.into());
        out.extend_from_slice(b"\":{");
        let mut comma = false;
        for place in &self.order {
            let Some(value) = &scan.values[*place] else {
                continue;
            };
            if comma {
                out.push(b',');
            }
            comma = true;
            out.push(b'"');
            let name = &self.names[*place].0;
            let fits = push_escaped_within(out, name, limit);
            out.extend_from_slice(b"\": \"");
            if !fits || !push_escaped_within(out, &scan.config[value.clone()], limit) {
                return Err(TooLong);
            }
            out.push(b'"');
        }
        put(out, b"}", limit)
    }
}

/// The search in one config, worked off in pieces.
///
/// Of several lines with one name the last one before the first `[` counts, except that the search
/// ends once as many values were replaced as names were given: what the C daemon does.
#[derive(Debug)]
pub(super) struct Scan {
    config: Arc<[u8]>,
    /// Where the search goes on.
    at: usize,
    /// Where the value of each name stands.
    pub(super) values: Vec<Option<Range<usize>>>,
    replaced: usize,
}

impl Scan {
    pub(super) fn new(names: &PropertyNames, config: Arc<[u8]>) -> Self {
        Scan {
            config,
            at: 0,
            values: vec![None; names.names.len()],
            replaced: 0,
        }
    }

    /// Searches on and takes what that costs off `piece`. True: the search is over.
    pub(super) fn go_on(&mut self, names: &PropertyNames, piece: &mut usize) -> bool {
        while self.at < self.config.len() {
            if *piece == 0 {
                return false;
            }
            let start = self.at;
            let mut rest = &self.config[start..];
            // Finds newlines many bytes at a time; reading from memory cannot fail.
            let len = rest.skip_until(b'\n').unwrap_or(self.config.len() - start);
            self.at += len;
            let line = &self.config[start..self.at];
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            *piece = piece.saturating_sub(STEP + len / 8);
            match line.first() {
                None | Some(0) => continue,
                Some(b'[') => break,
                Some(first) if *first < names.first.0 || *first > names.first.1 => continue,
                Some(_) => {}
            }
            for (place, from) in names.of_line(line) {
                *piece = piece.saturating_sub(STEP + from);
                let value = value_in(line, from);
                let new = start + value.start..start + value.end;
                if self.values[place].replace(new).is_some() {
                    self.replaced += names.names[place].1;
                }
            }
            // Not "at least": one line can serve two names and jump past it.
            if self.replaced == names.order.len() {
                break;
            }
        }
        true
    }
}

/// Where the value of a line stands that begins at `from`, before the end of the line: trimmed, cut
/// at a NUL, at least one byte of the line even if that is a blank.
fn value_in(line: &[u8], from: usize) -> Range<usize> {
    let last = line.len() - 1;
    let blanks = line[from..last].iter().take_while(|byte| is_space(**byte));
    let start = from + blanks.count();
    let end = line[start + 1..].iter().rposition(|byte| !is_space(*byte));
    let end = end.map_or(start + 1, |end| start + 1 + end + 1);
    let nul = line[start..end].iter().position(|byte| *byte == 0);
    start..nul.map_or(end, |nul| start + nul)
}

/// White space of the C locale.
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}
