//! What the command line says of itself: completions and manual pages.

use std::{fs, io::Write, path::Path};

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Failure, args::Cli};

pub(super) fn completions(shell: Shell, out: &mut dyn Write) -> Result<(), Failure> {
    // The generator panics where it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lvs-xdp", &mut script);
    Ok(out.write_all(&script)?)
}

/// The page of lvs-xdp itself, or into a directory that one and a page for each command.
pub(super) fn man(dir: Option<&Path>, out: &mut dyn Write) -> Result<(), Failure> {
    let Some(dir) = dir else {
        return Ok(Man::new(Cli::command()).render(out)?);
    };
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), dir))
        .map_err(|error| Failure::Refused(format!("cannot write manual pages to {}: {error}", dir.display())))
}
