//! The values of directives, and what is said of those that cannot be taken over.

use std::time::Duration;

use super::{super::Table, text::Directive};
use crate::api::types::Span;

/// Names a directive that is not taken over.
pub(super) fn leave(directive: &Directive, why: &str, table: &mut Table) {
    let rest = match &directive.block {
        Some(inside) if !inside.is_empty() => ", with all that is in it",
        _ => "",
    };
    let whole = directive.words.join(" ");
    table.note(&directive.place, format!("{whole}: not taken over{rest}: {why}"));
}

/// The words behind the name, where there is no block; what has one is named.
pub(super) fn words<'a>(directive: &'a Directive, table: &mut Table) -> Option<&'a [String]> {
    if directive.block.is_some() {
        leave(directive, "it has no block", table);
        return None;
    }
    directive.words.get(1..)
}

/// The one value of a directive; what is none is named.
pub(super) fn one<T>(
    directive: &Directive,
    what: &str,
    read: impl FnOnce(&str) -> Option<T>,
    table: &mut Table,
) -> Option<T> {
    let value = match words(directive, table)? {
        [word] => read(word),
        _ => None,
    };
    if value.is_none() {
        leave(directive, &format!("it takes {what}"), table);
    }
    value
}

/// A number of type `T`.
pub(super) fn number<T: std::str::FromStr>(directive: &Directive, table: &mut Table) -> Option<T> {
    one(directive, "one number", |word| word.parse().ok(), table)
}

/// A word.
pub(super) fn text(directive: &Directive, table: &mut Table) -> Option<String> {
    one(directive, "one word", |word| Some(word.to_owned()), table)
}

/// Yes or no; nothing is yes.
pub(super) fn flag(directive: &Directive, table: &mut Table) -> Option<bool> {
    let value = match words(directive, table)? {
        [] => Some(true),
        [word] => match word.as_str() {
            "on" | "true" | "yes" => Some(true),
            "off" | "false" | "no" => Some(false),
            _ => None,
        },
        _ => None,
    };
    if value.is_none() {
        leave(directive, "it takes on or off", table);
    }
    value
}

/// A time in seconds, with or without a fraction.
pub(super) fn span(directive: &Directive, table: &mut Table) -> Option<Span> {
    let seconds = |word: &str| {
        let seconds: f64 = word.parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()
    };
    let time = one(directive, "a time in seconds", seconds, table)?;
    let wanted = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let span = Span::from_millis(wanted);
    if span.duration() != time {
        let whole = directive.words.join(" ");
        table.note(&directive.place, format!("{whole}: taken over as {span}"));
    }
    Some(span)
}
