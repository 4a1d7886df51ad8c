//! The text of keepalived.conf as a tree of directives: comments, quotes, conditions, parameters, included files.
//!
//! By keepalived.conf(5). What keepalived computes of (`~SEQ` and the like) is not read, and named.

use std::{cell::Cell, collections::HashMap, path::Path, rc::Rc};

use super::super::{Context, Fault, Note, Place};
use crate::line::one_line;

/// Files inside of files, and parameters inside of parameters.
const DEEPEST: usize = 16;
/// Blocks inside of blocks; keepalived has four.
const DEEPEST_BLOCK: usize = 32;
/// The longest that a line may become by its parameters.
const LONGEST_LINE: usize = 64 << 10;
/// So many bytes of lines in all, those of included files with each time that they are.
const LONGEST: usize = 64 << 20;

/// A line with the block that it opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directive {
    pub(super) place: Place,
    /// Its words without their quotes; at least one.
    pub(super) words: Vec<String>,
    pub(super) block: Option<Vec<Self>>,
}

impl Directive {
    pub(super) fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// A word behind the name; the first one is 1.
    pub(super) fn word(&self, position: usize) -> Option<&str> {
        self.words.get(position).map(String::as_str)
    }

    /// What is in its block.
    pub(super) fn inside(&self) -> &[Self] {
        self.block.as_deref().unwrap_or_default()
    }
}

/// Reads a text. Notes are of what is not read.
pub(super) fn parse(
    text: &str,
    context: Context<'_>,
    notes: &mut Vec<Note>,
) -> Result<Vec<Directive>, Fault> {
    let mut lines = Lines {
        context,
        parameters: HashMap::new(),
        lines: Vec::new(),
        left: Cell::new(LONGEST),
        notes,
    };
    let directory = Path::new(context.name).parent().map(Path::to_owned);
    lines.file(text, context.name, &directory.unwrap_or_default(), 0)?;
    tree(lines.lines)
}

/// A line's words.
struct Line {
    place: Place,
    words: Vec<String>,
}

struct Lines<'a> {
    context: Context<'a>,
    parameters: HashMap<String, String>,
    lines: Vec<Line>,
    /// Bytes that may still come.
    left: Cell<usize>,
    notes: &'a mut Vec<Note>,
}

impl Lines<'_> {
    fn note(&mut self, place: &Place, message: impl Into<String>) {
        self.notes.push(Note {
            place: place.clone(),
            message: one_line(message),
        });
    }

    fn file(&mut self, text: &str, name: &str, directory: &Path, depth: usize) -> Result<(), Fault> {
        let file: Rc<str> = name.into();
        let mut lines = (1..).zip(text.lines());
        while let Some((line, text)) = lines.next() {
            let place = Place {
                file: Rc::clone(&file),
                line,
            };
            let Some(text) = self.condition(text, &place) else {
                continue;
            };
            if let Some((name, value)) = definition(text) {
                // What goes on in the next line is a value of many lines.
                let mut whole = value.trim_end().to_owned();
                while let Some(start) = whole.strip_suffix('\\') {
                    whole = start.trim_end().to_owned();
                    let Some((_, next)) = lines.next() else { break };
                    whole = format!("{whole}\n{}", next.trim_end());
                }
                self.parameters.insert(name.to_owned(), whole);
                continue;
            }
            let Some(text) = self.substituted(text) else {
                self.note(&place, "not taken over: its parameters make it too long");
                continue;
            };
            for text in text.lines() {
                let Some(text) = self.condition(text, &place) else {
                    continue;
                };
                self.line(text, &place, directory, depth)?;
            }
        }
        Ok(())
    }

    /// The line without its condition, where that holds.
    fn condition<'t>(&mut self, text: &'t str, place: &Place) -> Option<&'t str> {
        let Some(rest) = text.strip_prefix('@') else {
            return Some(text);
        };
        let (id, text) = rest.split_once(|c: char| c.is_whitespace()).unwrap_or((rest, ""));
        let (id, wanted) = id.strip_prefix('^').map_or((id, true), |id| (id, false));
        let holds = (id == self.context.config_id) == wanted;
        if !holds && !text.trim().is_empty() {
            let config_id = self.context.config_id;
            self.note(
                place,
                format!(
                    "{}: not taken over: it is not for the configuration id `{config_id}`",
                    text.trim()
                ),
            );
        }
        holds.then_some(text)
    }

    /// The line with the values of its parameters, and of theirs.
    fn substituted(&self, text: &str) -> Option<String> {
        let mut text = text.to_owned();
        for _ in 0..DEEPEST {
            let next = self.once(&text)?;
            if next == text {
                break;
            }
            text = next;
        }
        let left = self.left.get().checked_sub(text.len() + 1)?;
        self.left.set(left);
        Some(text)
    }

    fn once(&self, text: &str) -> Option<String> {
        let mut done = String::new();
        let mut rest = text;
        while let Some(start) = rest.find('$') {
            done += &rest[..start];
            let after = &rest[start + 1..];
            let (name, end) = match after.strip_prefix('{') {
                Some(braced) => match braced.split_once('}') {
                    Some((name, end)) => (name, end),
                    None => ("", after),
                },
                None => {
                    let end = after.find(|c| !is_of_a_name(c)).unwrap_or(after.len());
                    let (name, end) = after.split_at(end);
                    let is_whole = end.chars().next().is_none_or(char::is_whitespace);
                    (if is_whole { name } else { "" }, end)
                }
            };
            match self.parameters.get(name) {
                Some(value) => {
                    done += value;
                    rest = end;
                }
                None => {
                    done.push('$');
                    rest = after;
                }
            }
            if done.len() > LONGEST_LINE {
                return None;
            }
        }
        done += rest;
        Some(done)
    }

    fn line(&mut self, text: &str, place: &Place, directory: &Path, depth: usize) -> Result<(), Fault> {
        let words = words(text);
        let Some(first) = words.first() else { return Ok(()) };
        if first.starts_with('~') {
            self.note(
                place,
                format!("{first}: not taken over: write out what it stands for"),
            );
            return Ok(());
        }
        // `include` and its variants, which differ in what they warn of.
        let is_include = matches!(
            first.strip_prefix("include"),
            Some("" | "r" | "m" | "w" | "b" | "a")
        );
        let (true, Some(pattern)) = (is_include, words.get(1)) else {
            self.lines.push(Line {
                place: place.clone(),
                words,
            });
            return Ok(());
        };
        if depth == DEEPEST {
            return Err(Fault(format!(
                "{place}: files include one another {DEEPEST} times deep: take one of them out"
            )));
        }
        let path = directory.join(pattern);
        match (self.context.include)(&path.to_string_lossy()) {
            Ok(files) if files.is_empty() => {
                self.note(place, format!("include {pattern}: there is no such file"));
            }
            Ok(files) => {
                for (path, text) in files {
                    let directory = path.parent().unwrap_or(Path::new(""));
                    self.file(&text, &path.to_string_lossy(), directory, depth + 1)?;
                }
            }
            Err(error) => self.note(place, format!("include {pattern}: not taken over: {error}")),
        }
        Ok(())
    }
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The name and value of `$NAME=value`.
fn definition(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.trim_start().strip_prefix('$')?.split_once('=')?;
    let is_name = name.starts_with(|c: char| !c.is_ascii_digit()) && name.chars().all(is_of_a_name);
    is_name.then_some((name, value.trim_start()))
}

/// The words of a line, without its comment. Braces that are words of their own, or end one, stay words.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    // What stands in quotes is a word though it be empty.
    let mut word: Option<String> = None;
    let mut is_inside = false;
    let mut is_quoted = false;
    let end = |word: &mut Option<String>, is_quoted: &mut bool, words: &mut Vec<String>| {
        if let Some(word) = word.take() {
            match word.strip_suffix('{') {
                Some(name) if !*is_quoted && !name.is_empty() && !name.ends_with('$') => {
                    words.extend([name.to_owned(), "{".to_owned()]);
                }
                _ => words.push(word),
            }
        }
        *is_quoted = false;
    };
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (is_inside, c) {
            (true, '"') => is_inside = false,
            (true, '\\') => {
                if let Some(c) = characters.next() {
                    word.get_or_insert_default().push(c);
                }
            }
            (false, '"') => {
                is_inside = true;
                is_quoted = true;
                word.get_or_insert_default();
            }
            (false, '#' | '!') => break,
            (false, c) if c.is_whitespace() => end(&mut word, &mut is_quoted, &mut words),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    end(&mut word, &mut is_quoted, &mut words);
    words
}

/// Puts the lines into their blocks.
fn tree(lines: Vec<Line>) -> Result<Vec<Directive>, Fault> {
    let mut done: Vec<Directive> = Vec::new();
    let mut open: Vec<(Directive, Vec<Directive>)> = Vec::new();
    for Line { place, words } in lines {
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next() {
            match word.as_str() {
                "}" => {
                    let Some((mut directive, siblings)) = open.pop() else {
                        return Err(Fault(format!(
                            "{place}: there is no block that this `}}` could end"
                        )));
                    };
                    directive.block = Some(std::mem::replace(&mut done, siblings));
                    done.push(directive);
                }
                "{" => {
                    let opener = done.pop().filter(|last| last.block.is_none());
                    let Some(opener) = opener else {
                        return Err(Fault(format!(
                            "{place}: there is nothing that this `{{` could belong to"
                        )));
                    };
                    if open.len() == DEEPEST_BLOCK {
                        return Err(Fault(format!(
                            "{place}: there are too many blocks inside of blocks"
                        )));
                    }
                    open.push((opener, std::mem::take(&mut done)));
                }
                _ => {
                    let mut words_of = vec![word];
                    while let Some(word) = words.next_if(|word| word != "{" && word != "}") {
                        words_of.push(word);
                    }
                    done.push(Directive {
                        place: place.clone(),
                        words: words_of,
                        block: None,
                    });
                }
            }
        }
    }
    match open.pop() {
        None => Ok(done),
        Some((directive, _)) => Err(Fault(format!(
            "{}: the block of `{}` has no end: close it with a `}}`",
            directive.place,
            directive.name()
        ))),
    }
}
