//! What a configuration is, and what changes, in words. Names and values are those of the configuration file.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::api::types::{Action, MarkRule, ServerKey, ServiceKey, Step};

/// What names a service, and so is no setting of it.
pub(crate) const SERVICE_NAMES: &[&str] = &["protocol", "address", "port", "mark", "ipv6"];
/// What names a real server.
pub(crate) const SERVER_NAMES: &[&str] = &["address", "port"];

/// The longest text of a version; what is longer is told in numbers.
const LONGEST: usize = 160;

pub(crate) fn service(key: &ServiceKey) -> String {
    format!("service {key}")
}

pub(crate) fn server(service: &ServiceKey, key: &ServerKey) -> String {
    format!("real server {key} of {service}")
}

pub(crate) fn rule(rule: &MarkRule) -> String {
    let settings = settings(rule, &["mark"]);
    format!("rule of mark {} ({settings})", rule.mark)
}

/// The settings that are not by default, without those that are `names`.
pub(crate) fn settings(spec: &impl Serialize, names: &[&str]) -> String {
    let fields = fields(spec);
    let told = fields.iter().filter(|(name, _)| !names.contains(&name.as_str()));
    let told: Vec<_> = told
        .map(|(name, value)| format!("{name} {}", text(value)))
        .collect();
    told.join(", ")
}

/// What differs, such as `weight 1 -> 2, upper_threshold none -> 100`.
pub(crate) fn change<T: Serialize + PartialEq>(old: &T, new: &T) -> String {
    if old == new {
        return String::new();
    }
    let (old, new) = (fields(old), fields(new));
    let mut names: Vec<_> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let differences = names.into_iter().filter_map(|name| {
        let (old, new) = (old.get(name), new.get(name));
        let told = |value: Option<&Value>| value.map_or_else(|| "none".to_owned(), text);
        (old != new).then(|| format!("{name} {} -> {}", told(old), told(new)))
    });
    differences.collect::<Vec<_>>().join(", ")
}

/// All of a plan in a line: each step, or how many there are of each kind.
pub fn summary(steps: &[Step]) -> String {
    let done = |action| match action {
        Action::Add => "added",
        Action::Change => "changed",
        Action::Move => "moved",
        Action::Delete => "deleted",
    };
    let each = || {
        let told = steps.iter().map(|step| {
            let Step {
                action,
                object,
                detail,
                ..
            } = step;
            match detail.as_str() {
                "" => format!("{} {object}", done(*action)),
                detail => format!("{} {object}: {detail}", done(*action)),
            }
        });
        told.collect::<Vec<_>>().join("; ")
    };
    match steps {
        [] => return "nothing changed".to_owned(),
        [_, _, _, _, ..] => {}
        _ => {
            let text = each();
            if text.len() <= LONGEST {
                return text;
            }
        }
    }
    let mut parts = Vec::new();
    for action in [Action::Add, Action::Change, Action::Move, Action::Delete] {
        for (prefix, one, many) in [
            ("service ", "service", "services"),
            ("real server ", "real server", "real servers"),
            ("rule ", "rule of marks", "rules of marks"),
            ("settings", "settings", "settings"),
            ("time-outs", "time-outs", "time-outs"),
        ] {
            let count = steps
                .iter()
                .filter(|step| step.action == action && step.object.starts_with(prefix))
                .count();
            match count {
                0 => {}
                _ if one == many => parts.push(format!("{one} {}", done(action))),
                1 => parts.push(format!("1 {one} {}", done(action))),
                _ => parts.push(format!("{count} {many} {}", done(action))),
            }
        }
    }
    parts.join(", ")
}

fn fields(spec: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) | Err(_) => Map::new(),
    }
}

/// A value as short as can be read.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("{name} {}", text(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        value => value.to_string(),
    }
}
