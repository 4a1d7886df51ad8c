//! From another load balancer's configuration to this one's: a saved IPVS table, or keepalived.conf.
//!
//! What is read is taken over, or named with its line: nothing is left out in silence. All of it is pure; files that
//! others include come from a function.

mod keepalived;
mod saved;

use std::{fmt, io, path::PathBuf, rc::Rc};

use crate::{
    api::types::{ApiError, Change, Configuration},
    ipvsadm::Names,
    line::one_line,
    model::Model,
};

/// What a text is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The rules of `ipvsadm-save`, with addresses and ports by number or by name.
    Ipvsadm,
    /// keepalived.conf.
    Keepalived,
}

impl Format {
    /// What a text looks like: rules begin with an option, or with ipvsadm's name.
    pub fn of(text: &str) -> Self {
        let lines = text.lines().map(str::trim_start);
        let first = lines
            .filter(|line| !line.is_empty() && !line.starts_with(['#', '!']))
            .find_map(|line| line.split_whitespace().next());
        match first {
            Some(word) if word.starts_with('-') || word == "ipvsadm" => Self::Ipvsadm,
            Some(_) | None => Self::Keepalived,
        }
    }
}

/// Where something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was named.
    pub file: Rc<str>,
    /// The line, from 1 on.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: line {}", self.file, self.line)
    }
}

/// Something that was not taken over, or not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Where.
    pub place: Place,
    /// What, and why.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, message } = self;
        write!(f, "{place}: {message}")
    }
}

/// What became of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// What was taken over; it makes sense.
    pub configuration: Configuration,
    /// What was not, in the text's order.
    pub notes: Vec<Note>,
}

/// Why nothing was taken over; one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// A file that another one includes: its name and its text.
pub type File = (PathBuf, String);

/// Reads the files that a pattern names, in their order.
pub type Include<'a> = &'a dyn Fn(&str) -> io::Result<Vec<File>>;

/// What an import knows beside its text.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// How messages name the text.
    pub name: &'a str,
    /// Where names of hosts and ports come from.
    pub names: &'a Names,
    /// Where included files come from. Its pattern is as it was written, after the directory of the file that it is
    /// in, where it begins with no slash.
    pub include: Include<'a>,
    /// keepalived's configuration id: lines that begin with `@` and another one are not for this director.
    pub config_id: &'a str,
}

/// Reads a configuration.
///
/// # Errors
///
/// The text cannot be read at all, or there is nothing in it that could be taken over.
pub fn import(text: &str, format: Format, context: Context<'_>) -> Result<Imported, Fault> {
    let imported = match format {
        Format::Ipvsadm => saved::import(text, context),
        Format::Keepalived => {
            keepalived::import(text, context).map_err(|Fault(message)| Fault(one_line(message)))?
        }
    };
    let is_empty = imported.configuration == Configuration::default();
    if let (true, Some(first)) = (is_empty, imported.notes.first()) {
        return Err(Fault(format!(
            "nothing of it can be taken over, from the first on: {first}"
        )));
    }
    Ok(imported)
}

/// The table that grows, and what was left out of it.
struct Table {
    model: Model,
    notes: Vec<Note>,
}

impl Table {
    fn new() -> Self {
        Self {
            model: Model::default(),
            notes: Vec::new(),
        }
    }

    fn note(&mut self, place: &Place, message: impl Into<String>) {
        self.notes.push(Note {
            place: place.clone(),
            message: one_line(message),
        });
    }

    fn make(&mut self, change: Change) -> Result<(), ApiError> {
        self.model.apply(&[change])
    }

    fn imported(mut self) -> Imported {
        // File by file, in the order in which they are first spoken of.
        let mut files: Vec<Rc<str>> = Vec::new();
        for note in &self.notes {
            if !files.contains(&note.place.file) {
                files.push(Rc::clone(&note.place.file));
            }
        }
        let of = |note: &Note| files.iter().position(|file| *file == note.place.file);
        self.notes.sort_by_cached_key(|note| (of(note), note.place.line));
        Imported {
            configuration: Configuration::of(&self.model),
            notes: self.notes,
        }
    }
}

#[cfg(test)]
mod tests;
