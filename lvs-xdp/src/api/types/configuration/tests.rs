use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{api::types::Change, config, model::Model};

/// A bit of everything that a body may have.
const FILE: &str = r#"
[settings]
sloppy_tcp = 1
[[mark]]
mark = 7
protocol = "tcp"
addresses = ["192.0.2.0/24"]
ports = ["80", "8000-8100"]
[[service]]
protocol = "tcp"
address = "192.0.2.1"
port = 80
scheduler = "mh"
flags = ["port"]
persistence = { timeout = 360, mask = "255.255.255.0" }
removal = "reset"
quorum = 2
fallback = { address = "198.51.100.9", method = { tunnel = { type = "ipip" } } }
check = { interval = "1s", timeout = "500ms", probe = { type = "http", path = "/x", tls = { verify = false } } }
[[service.server]]
address = "198.51.100.1"
upper_threshold = 9
check = { port = 81, probe = { type = "dns", name = "example.org" } }
[[service.server]]
address = "198.51.100.2"
method = { tunnel = { type = "gue", port = 6080, checksum = "on" } }
drain = { deadline = 1700000000 }
[[service]]
mark = 7
ipv6 = true
"#;

/// The bodies of `PUT /v1/configuration` and of `POST /v1/changes` that say it.
fn bodies() -> [Value; 2] {
    let (configuration, _) = config::read(FILE).unwrap();
    [
        serde_json::to_value(&configuration).unwrap(),
        serde_json::to_value(configuration.changes()).unwrap(),
    ]
}

/// How many values there are in one, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum::<usize>(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// Puts another value in the place of the one with this number.
fn replace(value: &mut Value, number: &mut usize, other: &Value) {
    if *number == 0 {
        *value = other.clone();
    }
    *number = number.wrapping_sub(1);
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, number, other)),
        Value::Object(fields) => fields
            .values_mut()
            .for_each(|field| replace(field, number, other)),
        _ => {}
    }
}

fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..70_000_u32).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        prop::sample::select(vec!["::", "0.0.0.0", "0s", "1day", "tcp", "65536", "/"]).prop_map(Value::from),
        Just(Value::Array(Vec::new())),
        Just(Value::Object(serde_json::Map::new())),
    ]
}

/// Takes a body as the server does; the table that it makes goes through a file and comes back.
fn take(body: Value) -> Result<(), TestCaseError> {
    if let Ok(configuration) = serde_json::from_value::<Configuration>(body.clone())
        && let Ok(model) = configuration.model()
        && let Ok(file) = config::write(&Configuration::of(&model))
    {
        prop_assert_eq!(config::read(&file).unwrap().1, model);
    }
    if let Ok(changes) = serde_json::from_value::<Vec<Change>>(body) {
        let mut model = Model::default();
        if model.apply(&changes).is_err() {
            prop_assert_eq!(model, Model::default());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_body_is_too_odd(which in 0..2_usize, odd in prop::collection::vec((any::<prop::sample::Index>(), odd()), 0..4)) {
        let [mut body, other] = bodies();
        if which == 1 {
            body = other;
        }
        for (place, value) in odd {
            let mut number = place.index(count(&body));
            replace(&mut body, &mut number, &value);
        }
        take(body)?;
    }
}
