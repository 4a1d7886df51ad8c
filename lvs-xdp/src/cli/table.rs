//! Tables for people: plain text in columns, numbers to the right.

use std::io::{self, Write};

/// Rows of cells under a line of titles. A title that starts with a blank is that of a column of
/// numbers, which are set to the right.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    numbers: Vec<bool>,
}

impl Table {
    pub(super) fn new<const N: usize>(titles: [&str; N]) -> Self {
        let numbers = titles.iter().map(|title| title.starts_with(' ')).collect();
        Self {
            rows: vec![titles.map(|title| title.trim_start().to_owned()).to_vec()],
            numbers,
        }
    }

    /// Whether there is nothing under the titles.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// Adds a row; an empty cell is shown as a dash.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(
            cells
                .map(|cell| if cell.is_empty() { "-".to_owned() } else { cell })
                .to_vec(),
        );
    }

    /// Writes the rows, each column as wide as its widest cell, two blanks between columns and none at
    /// a line's end.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_after("", out)
    }

    /// The same as a part of something longer: two blanks before each row.
    pub(super) fn write_indented(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_after("  ", out)
    }

    fn write_after(&self, indent: &str, out: &mut dyn Write) -> io::Result<()> {
        let width = |column| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(String::len)
                .max()
        };
        let widths: Vec<usize> = (0..self.numbers.len())
            .map(|column| width(column).unwrap_or(0))
            .collect();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for ((cell, width), &number) in row.iter().zip(&widths).zip(&self.numbers) {
                let cell = if number {
                    format!("{cell:>width$}  ")
                } else {
                    format!("{cell:<width$}  ")
                };
                line.push_str(&cell);
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(["NAME", " COUNT", "NOTE"]);
        table.row(["a".into(), "7".into(), String::new()]);
        table.row(["long name".into(), "1234567".into(), "x".into()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME         COUNT  NOTE\n\
             a                7  -\n\
             long name  1234567  x\n"
        );
    }
}
