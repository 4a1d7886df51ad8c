//! What has to hold of any table, wherever it comes from.

use std::fmt::Debug;

use lvs_xdp::{
    api::types::Configuration,
    config,
    import::{Imported, Place},
    model::{Model, ServiceEntry},
};
use serde::{Serialize, de::DeserializeOwned};

/// Writes a table in each of its forms, and reads it again: as the API's document, as a configuration file, and as the
/// changes that the journal begins with.
///
/// # Panics
///
/// What is read is another table.
pub fn survives(model: &Model) {
    let configuration = Configuration::of(model);
    as_json(&configuration);
    let same = configuration.model().expect("what a table says makes sense");
    assert_eq!(same, *model);

    let changes = model.changes();
    as_json(&changes);
    let mut replayed = Model::default();
    replayed.apply(&changes).expect("a table can be made anew");
    assert_eq!(replayed, *model);

    as_file(&configuration, model);
}

/// Writes a table as a configuration file, and reads it again.
///
/// # Panics
///
/// What is read is another table; or it cannot be written although it has no number that TOML has not.
pub fn as_file(configuration: &Configuration, model: &Model) {
    match config::write(configuration) {
        Ok(text) => {
            let (again, read) = config::read(&text).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
            assert_eq!(again, *configuration, "{text}");
            assert_eq!(read, *model, "{text}");
        }
        Err(why) => assert!(has_high_number(model), "{why}"),
    }
}

/// Goes from one table to another as an application does, and back.
///
/// # Panics
///
/// The way leads elsewhere.
pub fn leads(from: &Model, to: &Model) {
    for (from, to) in [(from, to), (to, from)] {
        let mut model = from.clone();
        let changes = config::diff(from, to);
        model.apply(&changes).expect("the way to a table can be gone");
        assert_eq!(model, *to, "{changes:?}");
        let steps = config::steps(from, to, |_, _| 1);
        assert_eq!(steps.is_empty(), from == to, "{steps:?}");
        is_one_line(&config::summary(&steps));
    }
}

/// Writes a value as JSON, and reads it again.
///
/// # Panics
///
/// What is read is another value.
pub fn as_json<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let text = serde_json::to_string(value).expect("it can be written");
    let again: T = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(again, *value, "{text}");
}

/// What was imported makes sense, and what was not is named with its line.
///
/// # Panics
///
/// It does not, or the line is none of `text`, where it is not of a file that this one includes.
pub fn imported(imported: &Imported, text: &str) {
    let Imported { configuration, notes } = imported;
    let model = configuration.model().expect("what is taken over makes sense");
    survives(&model);
    let lines = text.lines().count();
    for note in notes {
        let Place { file, line } = &note.place;
        assert!(
            *line > 0 && (*line <= lines || file.starts_with("file")),
            "{note}"
        );
        is_one_line(&note.to_string());
    }
}

/// What is said of a fault is one line for people, and moves no terminal's cursor.
///
/// # Panics
///
/// It is not.
pub fn is_one_line(message: &str) {
    assert!(
        !message.is_empty() && !message.contains(char::is_control),
        "{message:?}"
    );
}

/// Whether there is a number above TOML's highest, 2^63 - 1: the only one that can be is a deadline.
fn has_high_number(model: &Model) -> bool {
    let is_high = |entry: &ServiceEntry| {
        let mut deadlines = (entry.servers.iter()).filter_map(|server| server.drain?.deadline);
        deadlines.any(|deadline| i64::try_from(deadline).is_err())
    };
    model.services().values().any(|entry| is_high(entry))
}
