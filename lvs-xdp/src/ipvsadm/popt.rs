//! Command lines as popt takes them, which is how ipvsadm takes them: clusters (`-Ln`, `-at`), values
//! attached or as the next word (`-w1`, `-w=1`, `--weight=1`, `--weight 1`), no abbreviation of long
//! names, and words that are no option collected aside wherever they stand.

/// Whether an option takes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// It takes none.
    No,
    /// It takes one, whatever the next word looks like (so that `-w -1` is a weight).
    Required,
    /// It takes one unless the next word starts with a dash.
    Optional,
}

/// One option of the table: its short name, its long name, its value, and what it stands for.
#[derive(Debug)]
pub(super) struct Spec<T> {
    pub(super) short: Option<char>,
    pub(super) long: &'static str,
    pub(super) value: Value,
    pub(super) id: T,
}

/// What is wrong with a word, in popt's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("unknown option")]
    Unknown,
    #[error("missing argument")]
    MissingValue,
    #[error("option does not take an argument")]
    UnwantedValue,
}

/// Walks over the words of one command line.
#[derive(Debug)]
pub(super) struct Scanner<'a, T: 'static> {
    table: &'static [Spec<T>],
    words: &'a [String],
    /// Index of the next word.
    next: usize,
    /// What is left of a cluster of short options.
    cluster: &'a str,
    /// After `--` every word is a leftover.
    only_leftovers: bool,
    leftovers: Vec<&'a str>,
}

impl<'a, T: Copy> Scanner<'a, T> {
    pub(super) fn new(table: &'static [Spec<T>], words: &'a [String]) -> Self {
        Self {
            table,
            words,
            next: 0,
            cluster: "",
            only_leftovers: false,
            leftovers: Vec::new(),
        }
    }

    /// The word that was taken last, as it was typed: popt's messages name options by it.
    pub(super) fn last_word(&self) -> &'a str {
        self.next.checked_sub(1).map_or("", |last| &self.words[last])
    }

    /// The words that are no option, once [`Self::next_option`] has returned `None`.
    pub(super) fn leftovers(&self) -> &[&'a str] {
        &self.leftovers
    }

    /// The next option with its value; `None` at the end.
    pub(super) fn next_option(&mut self) -> Option<Result<(T, Option<&'a str>), Error>> {
        if self.cluster.is_empty() {
            let word = self.next_option_word()?;
            if let Some(long) = word.strip_prefix("--") {
                return Some(self.long(long));
            }
            self.cluster = &word[1..];
        }
        Some(self.short())
    }

    fn next_option_word(&mut self) -> Option<&'a str> {
        while let Some(word) = self.take_word() {
            if word == "--" && !self.only_leftovers {
                self.only_leftovers = true;
            } else if word.len() > 1 && word.starts_with('-') && !self.only_leftovers {
                return Some(word);
            } else {
                self.leftovers.push(word);
            }
        }
        None
    }

    fn take_word(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.next)?;
        self.next += 1;
        Some(word)
    }

    fn long(&mut self, text: &'a str) -> Result<(T, Option<&'a str>), Error> {
        let (name, attached) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let spec = self
            .table
            .iter()
            .find(|spec| spec.long == name)
            .ok_or(Error::Unknown)?;
        self.value(spec, attached)
    }

    fn short(&mut self) -> Result<(T, Option<&'a str>), Error> {
        let mut rest = self.cluster.chars();
        let name = rest.next().ok_or(Error::Unknown)?;
        self.cluster = rest.as_str();
        let Some(spec) = self.table.iter().find(|spec| spec.short == Some(name)) else {
            self.cluster = "";
            return Err(Error::Unknown);
        };
        let attached = match spec.value {
            // popt takes no `=` for another short option.
            Value::No if self.cluster.starts_with('=') => Some(std::mem::take(&mut self.cluster)),
            Value::No => None,
            Value::Required | Value::Optional => {
                let rest = std::mem::take(&mut self.cluster);
                (!rest.is_empty()).then(|| rest.strip_prefix('=').unwrap_or(rest))
            }
        };
        self.value(spec, attached)
    }

    fn value(&mut self, spec: &Spec<T>, attached: Option<&'a str>) -> Result<(T, Option<&'a str>), Error> {
        let value = match (spec.value, attached) {
            (Value::No, Some(_)) => return Err(Error::UnwantedValue),
            (Value::No, None) => None,
            (Value::Required | Value::Optional, Some(value)) => Some(value),
            (Value::Required, None) => Some(self.take_word().ok_or(Error::MissingValue)?),
            (Value::Optional, None) => match self.words.get(self.next) {
                Some(word) if !word.starts_with('-') => self.take_word(),
                _ => None,
            },
        };
        Ok((spec.id, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Spec<char>] = &[
        Spec {
            short: Some('L'),
            long: "list",
            value: Value::No,
            id: 'L',
        },
        Spec {
            short: Some('n'),
            long: "numeric",
            value: Value::No,
            id: 'n',
        },
        Spec {
            short: Some('w'),
            long: "weight",
            value: Value::Required,
            id: 'w',
        },
        Spec {
            short: Some('p'),
            long: "persistent",
            value: Value::Optional,
            id: 'p',
        },
    ];

    /// What a line gives: options as `w(1)`, an error as `!word: text`, leftovers after `|`.
    fn scan(line: &str) -> String {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let mut scanner = Scanner::new(TABLE, &words);
        let mut seen = Vec::new();
        while let Some(option) = scanner.next_option() {
            seen.push(match option {
                Ok((id, Some(value))) => format!("{id}({value})"),
                Ok((id, None)) => id.to_string(),
                Err(error) => format!("!{}: {error}", scanner.last_word()),
            });
        }
        if !scanner.leftovers().is_empty() {
            seen.push(format!("| {}", scanner.leftovers().join(" ")));
        }
        seen.join(" ")
    }

    #[test]
    fn words_become_options() {
        for (line, expected) in [
            ("", ""),
            ("-L -n", "L n"),
            ("-Ln", "L n"),
            ("--list --numeric", "L n"),
            ("-w 1", "w(1)"),
            ("-w1", "w(1)"),
            ("-w=1", "w(1)"),
            ("-n=1 -L", "!-n=1: option does not take an argument L"),
            ("-Ln=1", "L !-Ln=1: option does not take an argument"),
            ("-Lw1", "L w(1)"),
            ("-Lw 1 -n", "L w(1) n"),
            ("--weight 1", "w(1)"),
            ("--weight=1", "w(1)"),
            ("--weight=", "w()"),
            ("-w -1", "w(-1)"),
            ("-w -- -n", "w(--) n"),
            ("-p", "p"),
            ("-p 60", "p(60)"),
            ("-p -n", "p n"),
            ("-p60", "p(60)"),
            ("-L extra -n", "L n | extra"),
            ("-L -- -n --", "L | -n --"),
            ("-L -", "L | -"),
            ("-w", "!-w: missing argument"),
            ("-Lw", "L !-Lw: missing argument"),
            ("-1", "!-1: unknown option"),
            ("-Lzn -n", "L !-Lzn: unknown option n"),
            ("--weigh 1", "!--weigh: unknown option | 1"),
            ("--bogus=3", "!--bogus=3: unknown option"),
            ("--list=3", "!--list=3: option does not take an argument"),
        ] {
            assert_eq!(scan(line), expected, "{line:?}");
        }
    }
}
