//! Where things are in a file.

use serde_path_to_error::Segment;
use toml::{Spanned, de::DeValue};

/// The lines of a text.
pub(super) struct Places<'a> {
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl<'a> Places<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let starts = text.match_indices('\n').map(|(end, _)| end + 1);
        Self {
            text,
            lines: std::iter::once(0).chain(starts).collect(),
        }
    }

    /// The line of an offset in bytes, and the character of that line; both from 1 on.
    pub(super) fn at(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = self.lines[line - 1];
        let before = self.text.get(start..offset).unwrap_or_default();
        (line, before.chars().count() + 1)
    }
}

/// Where the end of a path inside of a value is, as far as it is there, and its name in full.
pub(super) fn inside(name: &str, value: &Spanned<DeValue<'_>>, path: &[Segment]) -> (usize, String) {
    let mut value = value;
    let mut full = name.to_owned();
    for segment in path {
        let next = match segment {
            Segment::Map { key } => value.get_ref().get(key.as_str()),
            Segment::Seq { index } => value.get_ref().get(*index),
            Segment::Enum { .. } | Segment::Unknown => None,
        };
        let Some(next) = next else { continue };
        match segment {
            Segment::Seq { index } => full += &format!("[{index}]"),
            segment => full += &format!(".{segment}"),
        }
        value = next;
    }
    (value.span().start, full)
}
