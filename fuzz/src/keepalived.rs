//! keepalived.conf, with what it includes.
//!
//! An input is some files with form feeds between them: the first one is imported, the others are included, one after
//! the other, whatever the names are that are asked for.

use std::{cell::RefCell, io, path::PathBuf};

use lvs_xdp::{
    import::{Context, Format, import},
    ipvsadm::Names,
};

use crate::table;

/// So many files say all that more would.
const MOST_FILES: usize = 8;

/// Imports an input.
///
/// # Panics
///
/// What is not taken over is said to be elsewhere than in the file, or what is makes no sense.
pub fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let mut files = text.split('\u{c}').take(MOST_FILES);
    let text = files.next().unwrap_or_default();
    let included = RefCell::new(files.enumerate());
    let include = |_: &str| match included.borrow_mut().next() {
        Some((number, text)) => Ok(vec![(PathBuf::from(format!("file{number}")), text.to_owned())]),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    let names = Names::new(String::new, |_| None, |_| None);
    let context = Context {
        name: "keepalived.conf",
        names: &names,
        include: &include,
        config_id: "a",
    };
    match import(text, Format::Keepalived, context) {
        Ok(imported) => table::imported(&imported, text),
        Err(fault) => table::is_one_line(&fault.to_string()),
    }
}
