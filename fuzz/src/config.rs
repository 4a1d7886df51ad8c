//! Configuration files.

use lvs_xdp::config::{self, Faults};

use crate::table;

/// Reads an input as a configuration file.
///
/// # Panics
///
/// A fault is elsewhere than in the file, or what the file says cannot be written and read again.
pub fn run(input: &[u8]) {
    // Others are refused when they are read from the disk.
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    match config::read(text) {
        Ok((configuration, model)) => {
            table::as_file(&configuration, &model);
            table::survives(&model);
        }
        Err(Faults(faults)) => {
            assert!(!faults.is_empty() && faults.is_sorted());
            for fault in faults {
                let line = text.split('\n').nth(fault.line - 1).expect("there is this line");
                assert!(
                    (1..=line.chars().count() + 1).contains(&fault.column),
                    "{fault} is not in {line:?}"
                );
                table::is_one_line(&fault.message);
            }
        }
    }
}
