//! Messages of one line, whatever they quote.

/// The same without control characters: each is written as Rust would, `\n` or `\u{1b}`. What is quoted comes from
/// whoever is wrong, and is to end no line of a log and to move no terminal's cursor.
pub(crate) fn one_line(text: impl Into<String>) -> String {
    let text = text.into();
    if !text.contains(char::is_control) {
        return text;
    }
    let mut line = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(
            one_line("`ä\n` is \t\u{1b}[2J\u{85}"),
            r"`ä\n` is \t\u{1b}[2J\u{85}"
        );
        assert_eq!(one_line("as it is"), "as it is");
    }
}
