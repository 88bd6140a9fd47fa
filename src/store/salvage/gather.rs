//! Every row that can still be read.
#![forbid(unsafe_code)]

use rusqlite::types::ValueRef;

use crate::memdb::LoadRow;
use crate::store::format::{Cell, Pages, Walk, record};
use crate::store::rows::row_of;

/// A row, and how it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub row: LoadRow,
    /// Its content is there to the end.
    pub complete: bool,
    /// On a page that nothing leads to any more.
    pub stray: bool,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub found: Vec<Found>,
    /// What is wrong with the pages.
    pub damage: Vec<String>,
}

/// Reads the table from its root; and, if anything on the way was damaged, all leaves to which
/// nothing leads and that are not free.
pub(super) fn gather(pages: &Pages) -> Gathered {
    let mut gathered = Gathered::default();
    let mut walk = Walk::of_all_pages(pages);
    if !pages.has_magic() {
        walk.damage
            .push("page 1 is not that of a database".to_owned());
    }
    let (root, _) = walk.schema();
    match root {
        Some(root) => {
            let found = &mut gathered.found;
            walk.table(root, &mut |walk, page, cell| {
                let (payload, complete) = walk.payload(page, cell);
                match read_row(&payload, cell, complete) {
                    Some(row) => found.push(row),
                    None => walk.damage.push(format!("row {} is no row", cell.rowid)),
                }
            });
        }
        None => walk
            .damage
            .push("the table 'tree' is not in the list of tables".to_owned()),
    }
    if pages.has_magic() {
        walk.free_pages();
    }
    if !walk.damage.is_empty() {
        stray_rows(pages, &mut walk, &mut gathered.found);
    }
    gathered.damage = walk.damage;
    gathered
}

fn stray_rows(pages: &Pages, walk: &mut Walk<'_>, found: &mut Vec<Found>) {
    for number in 2..=pages.present {
        if walk.is_used(number) {
            continue;
        }
        let Some((page, cells)) = walk.stray_leaf(number) else {
            continue;
        };
        for cell in cells {
            let (payload, complete) = walk.payload(&page, &cell);
            if let Some(row) =
                read_row(&payload, &cell, complete).filter(|row| is_ours(row, &payload))
            {
                found.push(Found { stray: true, ..row });
            }
        }
    }
}

fn read_row(payload: &[u8], cell: &Cell, complete: bool) -> Option<Found> {
    let (mut values, all_there) = record(payload)?;
    // The column is another name of the row's number, which stands before the row.
    if let Some(inode @ ValueRef::Null) = values.first_mut() {
        *inode = ValueRef::Integer(cell.rowid);
    }
    Some(Found {
        row: row_of(|column| values.get(column).copied().unwrap_or(ValueRef::Null)),
        complete: complete && all_there,
        stray: false,
    })
}

/// Rows of other tables have other columns.
fn is_ours(found: &Found, payload: &[u8]) -> bool {
    let Some((values, _)) = record(payload) else {
        return false;
    };
    let numbers = values.get(1..6).unwrap_or_default();
    let number = |value: &ValueRef<'_>| matches!(value, ValueRef::Integer(_));
    numbers.len() == 5
        && numbers.iter().all(number)
        && matches!(values.get(6), Some(ValueRef::Text(name)) if !name.is_empty())
        && matches!(found.row.type_code, 4 | 8)
}
