//! Rules for `ipvsadm -R` and `ipvsadm-restore`.

use std::{io, net::Ipv4Addr};

use lvs_xdp::{
    import::{Context, Format, import},
    ipvsadm::{self, Desired, Face, Names},
    model::Model,
};

use crate::table;

/// The table that rules are added to. Its service and its real server have what ipvsadm has no words for.
const BEFORE: &str = r#"{"service": [{"protocol": "tcp", "address": "10.0.0.1", "port": 80, "scheduler": "rr",
    "check": {"probe": {"type": "tcp"}}, "quorum": 2, "fallback": {"address": "10.0.0.9"},
    "server": [{"address": "10.0.0.2", "port": 80, "weight": 1, "check": {"fall": 1}}]}]}"#;

/// Reads an input as rules: for a table that there is, for one that takes its place, and for an import.
///
/// # Panics
///
/// A table that refuses is not what it was before, or rules that are taken cannot be saved and restored.
pub fn run(input: &[u8]) {
    let before: lvs_xdp::api::types::Configuration =
        serde_json::from_str(BEFORE).expect("it is a configuration");
    let before = before.model().expect("it makes sense");
    // As standard input is read.
    let text = String::from_utf8_lossy(input);
    for (face, words) in [(Face::Ipvsadm, &["-R"][..]), (Face::Restore, &[])] {
        let mut director = Desired(before.clone());
        let Outcome { status, errors, .. } = perform(face, words, input, &mut director);
        if status == 0 {
            assert_eq!(errors, "");
            table::survives(&director.0);
        } else {
            assert_eq!(director.0, before, "{errors}");
            for line in errors.lines() {
                table::is_one_line(line);
            }
        }
    }
    let restored = restored(input);
    if let Some(restored) = &restored {
        saved(restored);
    }
    imported(&text, restored);
}

/// What came of a command.
struct Outcome {
    status: u8,
    text: Vec<u8>,
    errors: String,
}

fn perform(face: Face, words: &[&str], input: &[u8], director: &mut Desired) -> Outcome {
    let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
    let (mut text, mut errors) = (Vec::new(), Vec::new());
    let mut input = input;
    let status = ipvsadm::run(
        face,
        &words,
        &mut input,
        director,
        &names(),
        &mut text,
        &mut errors,
    );
    let errors = String::from_utf8(errors).expect("messages are text");
    assert_eq!(status == 0, errors.is_empty(), "{status}: {errors}");
    Outcome { status, text, errors }
}

/// The names of a host that asks nobody.
fn names() -> Names {
    Names::new(
        || "domain 53/tcp\ndomain 53/udp\nhttp 80/tcp www\n".to_owned(),
        |host| (host == "rs1").then_some(Ipv4Addr::new(10, 0, 0, 2)),
        |_| None,
    )
}

/// The table that rules alone make.
fn restored(rules: &[u8]) -> Option<Model> {
    let mut director = Desired::default();
    let outcome = perform(Face::Restore, &[], rules, &mut director);
    (outcome.status == 0).then_some(director.0)
}

/// What is saved is what is restored.
fn saved(model: &Model) {
    for words in [&["--full"][..], &["-n", "--full"]] {
        let rules = perform(Face::Save, words, &[], &mut Desired(model.clone())).text;
        let again = restored(&rules).unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&rules)));
        assert_eq!(again.services(), model.services());
    }
}

/// An import names its faults by lines that there are, and takes over what can be restored.
fn imported(text: &str, restored: Option<Model>) {
    let names = names();
    let context = Context {
        name: "rules",
        names: &names,
        include: &|_| Err(io::ErrorKind::NotFound.into()),
        config_id: "",
    };
    match import(text, Format::Ipvsadm, context) {
        Ok(imported) => {
            table::imported(&imported, text);
            let model = imported.configuration.model().expect("it makes sense");
            assert!(restored.is_none_or(|restored| restored == model));
        }
        Err(fault) => table::is_one_line(&fault.to_string()),
    }
}
