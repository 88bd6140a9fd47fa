//! The b-trees of a database: every page and every row of them, and what is wrong with them.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::ops::Range;

use super::pages::Pages;
use super::{be16, be32, record, varint};

const INTERIOR: u8 = 5;
const LEAF: u8 = 13;
/// Deeper than any tree that fits into a file.
const MAX_DEPTH: usize = 20;
/// More need not be told.
const MAX_DAMAGE: usize = 50;

/// A row in a leaf.
#[derive(Debug, Clone)]
pub(in crate::store) struct Cell {
    pub rowid: i64,
    /// Bytes of the record.
    size: usize,
    /// Those of them in the leaf.
    local: Range<usize>,
    /// The page with the next ones; 0: none.
    overflow: u32,
}

/// Goes through the pages and marks those it has seen.
#[derive(Debug)]
pub(in crate::store) struct Walk<'p> {
    pages: &'p Pages,
    /// The last page that counts.
    last: u32,
    used: Vec<bool>,
    /// The database is not good, and everything in the file counts.
    all_pages: bool,
    /// What is wrong, in words.
    pub damage: Vec<String>,
}

/// What is known of a tree while going through it.
struct Course<'v> {
    last: Option<i64>,
    depth: Option<usize>,
    visit: &'v mut dyn FnMut(&mut Walk<'_>, &[u8], &Cell),
}

impl<'p> Walk<'p> {
    /// Goes through the pages that the database says it has.
    pub fn new(pages: &'p Pages) -> Self {
        let last = pages.count.min(pages.present);
        let mut walk = Walk {
            pages,
            last,
            used: vec![false; last as usize + 1],
            all_pages: false,
            damage: Vec::new(),
        };
        if last < pages.count {
            let (count, there) = (pages.count, pages.present);
            walk.damaged(format!("the database has {count} pages, its file {there}"));
        }
        walk
    }

    /// Believes the size of the file, too, if it is more than the database says.
    pub fn of_all_pages(pages: &'p Pages) -> Self {
        let mut walk = Walk::new(pages);
        walk.all_pages = true;
        walk.last = pages.present;
        walk.used = vec![false; walk.last as usize + 1];
        walk
    }

    fn damaged(&mut self, what: String) {
        if self.damage.len() < MAX_DAMAGE {
            self.damage.push(what);
        }
    }

    /// False: there is no such page, or it was seen before.
    fn take(&mut self, number: u32, from: &dyn Display) -> bool {
        if number == 0 || number > self.last || number == self.pages.lock_page() {
            self.damaged(format!(
                "{from} refers to page {number}, which there is not"
            ));
            return false;
        }
        let seen = std::mem::replace(&mut self.used[number as usize], true);
        if seen {
            self.damaged(format!(
                "{from} refers to page {number}, which is used already"
            ));
        }
        !seen
    }

    /// Was this page part of anything?
    pub fn is_used(&self, number: u32) -> bool {
        self.used.get(number as usize).copied().unwrap_or(true)
    }

    fn read(&mut self, number: u32) -> Option<Vec<u8>> {
        let mut page = vec![0; self.pages.page_size];
        match self.pages.read(number, &mut page) {
            Ok(true) => Some(page),
            Ok(false) => {
                self.damaged(format!("the file ends before page {number} does"));
                // What there is of it may hold rows.
                self.all_pages.then_some(page)
            }
            Err(error) => {
                self.damaged(format!("page {number} cannot be read: {error}"));
                None
            }
        }
    }

    /// The root page of the table `tree`, and whether there is anything else in the database.
    pub fn schema(&mut self) -> (Option<u32>, bool) {
        let mut root = None;
        let mut others = false;
        self.table(1, &mut |walk, page, cell| {
            let payload = walk.payload(page, cell).0;
            let Some((values, _)) = record(&payload) else {
                return walk.damaged("the list of tables cannot be read".to_owned());
            };
            let text = |i: usize| values.get(i).and_then(|value| value.as_bytes().ok());
            let page = values.get(3).and_then(|value| value.as_i64().ok());
            match (text(0), text(1), page) {
                (Some(b"table"), Some(b"tree"), Some(page)) => root = u32::try_from(page).ok(),
                _ => others = true,
            }
        });
        (root, others)
    }

    /// Goes through the rows of a table in order. `visit` gets the leaf and the place of the row in
    /// it, and has to follow it ([`Walk::follow`] or [`Walk::payload`]).
    pub fn table(&mut self, root: u32, visit: &mut dyn FnMut(&mut Walk<'_>, &[u8], &Cell)) {
        let mut course = Course {
            last: None,
            depth: None,
            visit,
        };
        if self.take(root, &"the list of tables") {
            self.page(root, 0, &mut course);
        }
    }

    fn page(&mut self, number: u32, depth: usize, course: &mut Course<'_>) {
        let Some(page) = self.read(number) else {
            return;
        };
        let header = if number == 1 { 100 } else { 0 };
        match page[header] {
            LEAF => self.leaf(number, depth, &page, course),
            INTERIOR if depth < MAX_DEPTH => self.interior(number, depth, &page, course),
            kind => {
                // Its rows may still be found as those of a stray page.
                self.used[number as usize] = false;
                self.damaged(format!("page {number} is no part of a table (type {kind})"));
            }
        }
    }

    fn leaf(&mut self, number: u32, depth: usize, page: &[u8], course: &mut Course<'_>) {
        if *course.depth.get_or_insert(depth) != depth {
            self.damaged(format!("page {number} is at another depth than the others"));
        }
        let cells = self.cells(number, page, 8);
        let mut places = Vec::with_capacity(cells.len());
        for cell in cells {
            let Some((cell, place)) = leaf_cell(page, self.pages.usable, cell) else {
                self.damaged(format!("page {number} has a row that does not fit"));
                continue;
            };
            if course.last.is_some_and(|last| last >= cell.rowid) {
                self.damaged(format!("page {number}: row {} is out of order", cell.rowid));
            }
            course.last = Some(cell.rowid);
            places.push(place);
            (course.visit)(self, page, &cell);
        }
        self.check_space(number, page, 8, places);
    }

    fn interior(&mut self, number: u32, depth: usize, page: &[u8], course: &mut Course<'_>) {
        let from = format!("page {number}");
        let mut places = Vec::new();
        for cell in self.cells(number, page, 12) {
            let Some((key, end)) = varint(&page[..self.pages.usable], cell + 4) else {
                self.damaged(format!("page {number} has an entry that does not fit"));
                continue;
            };
            places.push(cell..end);
            let child = be32(page, cell);
            if self.take(child, &from) {
                self.page(child, depth + 1, course);
            }
            let key = key as i64;
            if course.last.is_some_and(|last| last > key) {
                self.damaged(format!("page {number}: key {key} is out of order"));
            }
            course.last = Some(key);
        }
        self.check_space(number, page, 12, places);
        let header = if number == 1 { 100 } else { 0 };
        let child = be32(page, header + 8);
        if self.take(child, &from) {
            self.page(child, depth + 1, course);
        }
    }

    /// Offsets of the cells.
    fn cells(&mut self, number: u32, page: &[u8], header_length: usize) -> Vec<usize> {
        let header = if number == 1 { 100 } else { 0 };
        let count = be16(page, header + 3);
        let array = header + header_length;
        let first = array + 2 * count;
        if first > self.pages.usable {
            self.damaged(format!("page {number} cannot have {count} rows"));
            return Vec::new();
        }
        let mut cells: Vec<usize> = Vec::with_capacity(count);
        cells.extend((0..count).map(|i| be16(page, array + 2 * i)));
        cells.retain(|cell| *cell >= first && cell + 4 <= self.pages.usable);
        if cells.len() < count {
            let bad = count - cells.len();
            self.damaged(format!("page {number} has {bad} rows outside of it"));
        }
        cells
    }

    /// Every byte behind the list of cells belongs to one cell, one free block, or is counted as a
    /// fragment.
    fn check_space(&mut self, number: u32, page: &[u8], length: usize, mut all: Vec<Range<usize>>) {
        let header = if number == 1 { 100 } else { 0 };
        let usable = self.pages.usable;
        let array_end = header + length + 2 * be16(page, header + 3);
        let start = match be16(page, header + 5) {
            0 => 65536,
            start => start,
        };
        if start > usable || start < array_end {
            return self.damaged(format!("page {number} has its content at {start}"));
        }
        let mut block = be16(page, header + 1);
        while block != 0 {
            let end = block + be16(page, block + 2);
            let next = be16(page, block);
            if block < start || end > usable || end < block + 4 || (next != 0 && next <= end) {
                return self.damaged(format!("page {number} has a bad free block at {block}"));
            }
            all.push(block..end);
            block = next;
        }
        all.sort_unstable_by_key(|range| range.start);
        let (mut at, mut fragments) = (start, 0);
        for range in all {
            if range.start < at {
                let start = range.start;
                return self.damaged(format!("page {number} uses the bytes at {start} twice"));
            }
            fragments += range.start - at;
            at = range.end.max(range.start + 4);
        }
        fragments += usable.saturating_sub(at);
        if fragments != usize::from(page[header + 7]) {
            self.damaged(format!(
                "page {number} has {fragments} bytes that are not accounted for"
            ));
        }
    }

    /// Marks the pages of a row's content without reading it.
    pub fn follow(&mut self, cell: &Cell) {
        let mut left = (cell.size - cell.local.len()).div_ceil(self.pages.usable - 4);
        let mut number = cell.overflow;
        let mut next = [0; 4];
        while left > 0 {
            let from = "the content of a row";
            if !self.take(number, &from) || !matches!(self.pages.read(number, &mut next), Ok(true))
            {
                return self.damaged(format!("row {}: its content ends too early", cell.rowid));
            }
            left -= 1;
            number = be32(&next, 0);
        }
        if number != 0 && cell.overflow != 0 {
            self.damaged(format!("row {}: its content does not end", cell.rowid));
        }
    }

    /// The record of a row, and whether all of it was there.
    pub fn payload(&mut self, page: &[u8], cell: &Cell) -> (Vec<u8>, bool) {
        let mut payload = page[cell.local.clone()].to_vec();
        let complete = self.chain(cell, |next, size| {
            payload.extend_from_slice(&next[4..4 + size]);
        });
        (payload, complete)
    }

    /// Goes along the pages of a row's content; `each` gets the page and how much of it counts.
    fn chain(&mut self, cell: &Cell, mut each: impl FnMut(&[u8], usize)) -> bool {
        let mut left = cell.size - cell.local.len();
        let mut number = cell.overflow;
        let mut page = Vec::new();
        while left > 0 {
            let size = left.min(self.pages.usable - 4);
            page.resize(4 + size, 0);
            let from = "the content of a row";
            if !self.take(number, &from) || !matches!(self.pages.read(number, &mut page), Ok(true))
            {
                self.damaged(format!(
                    "row {}: {left} bytes of it are missing",
                    cell.rowid
                ));
                return false;
            }
            each(&page, size);
            left -= size;
            number = be32(&page, 0);
        }
        if number != 0 && cell.overflow != 0 {
            self.damaged(format!(
                "row {}: its content goes on behind its end",
                cell.rowid
            ));
        }
        true
    }

    /// Goes through the list of free pages.
    pub fn free_pages(&mut self) {
        let mut trunk = self.pages.header32(32);
        let mut count = 0u32;
        while trunk != 0 {
            if !self.take(trunk, &"the list of free pages") {
                return;
            }
            let Some(page) = self.read(trunk) else {
                return;
            };
            let leaves = be32(&page, 4) as usize;
            if leaves > self.pages.usable / 4 - 2 {
                return self.damaged(format!("page {trunk} cannot list {leaves} free pages"));
            }
            for index in 0..leaves {
                self.take(be32(&page, 8 + 4 * index), &"the list of free pages");
            }
            count += 1 + leaves as u32;
            trunk = be32(&page, 0);
        }
        let stated = self.pages.header32(36);
        if count != stated {
            self.damaged(format!("{count} free pages instead of {stated}"));
        }
    }

    /// After all else: is every page part of something?
    pub fn check_all_used(&mut self) {
        for number in 1..=self.last {
            if !self.used[number as usize] && number != self.pages.lock_page() {
                self.damaged(format!("page {number} is not used"));
            }
        }
    }

    /// The rows of a page that no tree leads to, if it is a leaf or was one: the list of rows
    /// behind a header that makes no sense may be good. Content of files, which users make, is
    /// never taken for rows: such a page begins with the number of the next one.
    pub fn stray_leaf(&mut self, number: u32) -> Option<(Vec<u8>, Vec<Cell>)> {
        let mut page = vec![0; self.pages.page_size];
        if !matches!(self.pages.read(number, &mut page), Ok(true)) {
            return None;
        }
        let usable = self.pages.usable;
        let cells: Vec<usize> = if page[0] == LEAF {
            self.cells(number, &page, 8)
        } else if matches!(page[0], INTERIOR | 2 | 10) || be32(&page, 0) <= self.last {
            return None;
        } else {
            let list = (8..usable).step_by(2).map(|at| (at, be16(&page, at)));
            list.take_while(|(at, cell)| cell > at && cell + 4 <= usable)
                .map(|(_, cell)| cell)
                .collect()
        };
        let cells = cells
            .into_iter()
            .filter_map(|at| Some(leaf_cell(&page, usable, at)?.0));
        let cells = cells.collect();
        Some((page, cells))
    }
}

/// The row at `at`, and the bytes it takes in the page.
fn leaf_cell(page: &[u8], usable: usize, at: usize) -> Option<(Cell, Range<usize>)> {
    let page = page.get(..usable)?;
    let (size, next) = varint(page, at)?;
    let (rowid, start) = varint(page, next)?;
    // More than SQLite's own limit is no length.
    let size = usize::try_from(size)
        .ok()
        .filter(|size| *size <= 0x7fff_ff00)?;
    let most = usable - 35;
    let local = if size <= most {
        size
    } else {
        let least = (usable - 12) * 32 / 255 - 23;
        let some = least + (size - least) % (usable - 4);
        if some <= most { some } else { least }
    };
    let overflow = if local < size { 4 } else { 0 };
    let end = start + local;
    if end + overflow > usable {
        return None;
    }
    let cell = Cell {
        rowid: rowid as i64,
        size,
        local: start..end,
        overflow: if overflow > 0 { be32(page, end) } else { 0 },
    };
    Some((cell, at..end + overflow))
}
