//! `lvs-xdp install-ipvsadm`: the links by which this program is ipvsadm, ipvsadm-save and ipvsadm-restore.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::Failure;
use crate::ipvsadm::Face;

/// Makes the links in PREFIX/sbin, and says which. What stands in their place is looked at first: a link to this
/// program stays, and with anything else there nothing is done.
pub(super) fn run(prefix: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let program = env::current_exe()
        .map_err(|error| Failure::Refused(format!("cannot find this program's own file: {error}")))?;
    let directory = prefix.join("sbin");
    let cannot = |what: &str, path: &Path, error: &io::Error| {
        Failure::Refused(format!("cannot {what} {}: {error}", path.display()))
    };
    let mut missing: Vec<PathBuf> = Vec::new();
    let links = Face::ALL.map(|(_, name)| directory.join(name));
    for link in &links {
        match fs::symlink_metadata(link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(link.clone()),
            Err(error) => return Err(cannot("look at", link, &error)),
            // The file behind it may be gone.
            Ok(_) if fs::canonicalize(link).is_ok_and(|file| file == program) => {}
            Ok(_) => {
                return Err(Failure::Refused(format!(
                    "{} is there and is not this program's: remove it, or name another --prefix",
                    link.display()
                )));
            }
        }
    }
    fs::create_dir_all(&directory).map_err(|error| cannot("make", &directory, &error))?;
    for link in &missing {
        symlink(&program, link).map_err(|error| cannot("make", link, &error))?;
    }
    for link in &links {
        writeln!(out, "{} is {}", link.display(), program.display())?;
    }
    Ok(())
}
