//! A configuration file from the disk, or from standard input.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{Faults, read};
use crate::{api::types::Configuration, model::Model};

/// The largest file that is read: room for some hundred thousand real servers.
const LARGEST: u64 = 256 << 20;

/// Why a file is not taken; a line for each thing, each with the file's name.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read at all.
    #[error("cannot read {}: {cause}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// What it says is wrong.
    #[error("{}", Named(file, faults))]
    Wrong {
        /// The file.
        file: PathBuf,
        /// Where, and in what way.
        faults: Faults,
    },
}

/// Each fault on a line of its own, after the file's name.
struct Named<'a>(&'a Path, &'a Faults);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(file, Faults(faults)) = self;
        for (position, fault) in faults.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}: {fault}", file.display())?;
        }
        Ok(())
    }
}

/// Reads a configuration file; `-` is standard input. The model is what it means.
///
/// # Errors
///
/// It cannot be read, or all that is wrong with it.
pub fn load(file: &Path) -> Result<(Configuration, Model), LoadError> {
    let text = load_text(file).map_err(|cause| LoadError::Unreadable {
        file: file.to_owned(),
        cause,
    })?;
    read(&text).map_err(|faults| LoadError::Wrong {
        file: file.to_owned(),
        faults,
    })
}

/// How a file is named: `-` is standard input.
pub(crate) fn source(file: &Path) -> String {
    match file.to_string_lossy() {
        name if name == "-" => "standard input".to_owned(),
        name => name.into_owned(),
    }
}

/// The text of a file, or of standard input.
pub(crate) fn load_text(file: &Path) -> io::Result<String> {
    let mut source: Box<dyn io::Read> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(fs::File::open(file)?)
    };
    let mut text = String::new();
    source.by_ref().take(LARGEST).read_to_string(&mut text)?;
    if source.read(&mut [0])? > 0 {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {} MiB", LARGEST >> 20),
        ));
    }
    Ok(text)
}
