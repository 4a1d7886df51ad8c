//! `lvs-xdp import`: another load balancer's configuration as one of this one's.

use std::{
    io::{self, Write},
    path::Path,
};

use nix::sys::utsname::uname;

use super::{Failure, args::ImportFormat};
use crate::{
    config,
    import::{self, Context, File, Format, Imported},
    ipvsadm::Names,
};

/// Prints what is taken over, and to `err` what is not.
pub(super) fn run(
    file: &Path,
    format: Option<ImportFormat>,
    config_id: Option<String>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), Failure> {
    let name = config::source(file);
    let text =
        config::load_text(file).map_err(|error| Failure::Refused(format!("cannot read {name}: {error}")))?;
    let format = match format {
        Some(ImportFormat::Ipvsadm) => Format::Ipvsadm,
        Some(ImportFormat::Keepalived) => Format::Keepalived,
        None => Format::of(&text),
    };
    let context = Context {
        name: &name,
        names: &Names::of_this_host(),
        include: &include,
        config_id: &config_id.unwrap_or_else(host_name),
    };
    let Imported { configuration, notes } =
        import::import(&text, format, context).map_err(|fault| Failure::Refused(fault.to_string()))?;
    let text = config::write(&configuration).map_err(Failure::Refused)?;
    for note in notes {
        // Without standard error nobody wants to know.
        drop(writeln!(err, "lvs-xdp: {note}"));
    }
    Ok(write!(out, "{text}")?)
}

/// The files of a pattern, in the order of their names.
fn include(pattern: &str) -> io::Result<Vec<File>> {
    let paths = glob::glob(pattern).map_err(io::Error::other)?;
    paths
        .map(|path| {
            let path = path.map_err(io::Error::from)?;
            let text = config::load_text(&path)?;
            Ok((path, text))
        })
        .collect()
}

/// The first part of the host's name: keepalived's configuration id, unless it is told another one.
fn host_name() -> String {
    let name = uname().map(|names| names.nodename().to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    name.split('.').next().unwrap_or_default().to_owned()
}
