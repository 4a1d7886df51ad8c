//! What a test has seen that people want to know of.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

/// Says it also where the test passes; libtest keeps what `println!` writes to itself then.
pub fn tell(what: impl Display) {
    // A test does not fail for want of a terminal.
    let _: io::Result<()> = writeln!(io::stderr(), "    {what}");
}
