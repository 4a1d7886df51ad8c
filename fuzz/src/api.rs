//! The bodies of the API's changing pages, from the first byte to the table.
//!
//! An input is some requests, a line each: a page's name (`changes`, `configuration`, `rollback`, `zero`, `announce`,
//! `connections`), a blank, and its body; the last one has a query in its place. All are made of one table.

use lvs_xdp::{
    api::{
        filter::ConnectionFilter,
        types::{Announcement, Changes, Configuration, Rollback, Zero},
    },
    model::Model,
};

use crate::table;

/// So many requests say all that more would.
const MOST_REQUESTS: usize = 16;

/// Answers every request of an input.
///
/// # Panics
///
/// A table that refuses is not what it was before, one that takes something cannot be written and read again, or a
/// request panics.
pub fn run(input: &[u8]) {
    // All tables that there were, the newest last.
    let mut tables = vec![Model::default()];
    for request in input.split(|byte| *byte == b'\n').take(MOST_REQUESTS) {
        let end = request.iter().position(|byte| *byte == b' ');
        let (page, body) = request.split_at(end.unwrap_or(request.len()));
        let body = body.get(1..).unwrap_or_default();
        let current = tables.last().expect("there is always one");
        let next = match page {
            b"changes" => changes(current, body),
            b"configuration" => configuration(body),
            b"rollback" => rollback(&tables, body),
            b"zero" => {
                if let Ok(zero) = serde_json::from_slice::<Zero>(body) {
                    table::as_json(&zero);
                }
                None
            }
            b"announce" => {
                if let Ok(announcement) = serde_json::from_slice::<Announcement>(body) {
                    table::as_json(&announcement);
                }
                None
            }
            b"connections" => {
                flush(body);
                None
            }
            _ => None,
        };
        if let Some(next) = next {
            table::survives(&next);
            table::leads(current, &next);
            tables.push(next);
        }
    }
}

/// The table that changes lead to.
fn changes(before: &Model, body: &[u8]) -> Option<Model> {
    let request: Changes = serde_json::from_slice(body).ok()?;
    table::as_json(&request);
    let Changes { changes, check: _ } = request;
    let faults = before.faults(&changes);
    for fault in &faults {
        table::is_one_line(&fault.message);
    }
    let mut after = before.clone();
    match after.apply(&changes) {
        Ok(()) => {
            assert!(faults.is_empty(), "{faults:?}");
            // Whoever goes by what is touched misses nothing.
            let touched = before.touched(&changes);
            let is_as_it_was = |key| before.services().get(key) == after.services().get(key);
            let mut all = before.services().keys().chain(after.services().keys());
            assert!(all.all(|key| touched.contains(key) || is_as_it_was(key)));
            Some(after)
        }
        Err(error) => {
            assert_eq!(after, *before, "{error}");
            table::is_one_line(&error.message);
            if changes.len() > 1 {
                assert_eq!(error.faults, faults);
            }
            let first = faults.first().expect("what is refused has a fault");
            assert_eq!((first.code, &first.message), (error.code, &error.message));
            None
        }
    }
}

/// The table that a whole one is.
fn configuration(body: &[u8]) -> Option<Model> {
    let configuration: Configuration = serde_json::from_slice(body).ok()?;
    table::as_json(&configuration);
    match configuration.model() {
        Ok(model) => {
            table::as_file(&configuration, &model);
            Some(model)
        }
        Err(error) => {
            table::is_one_line(&error.message);
            None
        }
    }
}

/// An earlier table.
fn rollback(tables: &[Model], body: &[u8]) -> Option<Model> {
    let request: Rollback = serde_json::from_slice(body).ok()?;
    table::as_json(&request);
    let back = usize::try_from(request.back).ok().filter(|back| *back > 0)?;
    let position = tables.len().checked_sub(1)?.checked_sub(back)?;
    tables.get(position).cloned()
}

/// A query says the same after it was written.
fn flush(query: &[u8]) {
    let Ok(filter) = serde_urlencoded::from_bytes::<ConnectionFilter>(query) else {
        return;
    };
    let again = serde_urlencoded::to_string(&filter).expect("it can be written");
    assert_eq!(serde_urlencoded::from_str(&again), Ok(filter));
}
