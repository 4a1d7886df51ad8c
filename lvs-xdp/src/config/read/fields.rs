//! What a table of the file may have: names and values of the API's types.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::LazyLock,
};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use serde_path_to_error::{Segment, Track};
use toml::{
    Spanned,
    de::{DeString, DeValue},
};
use utoipa::OpenApi;

use crate::api::types::{MarkRule, Protocol, ServerSpec, ServiceSpec, Settings, Timeouts};

/// The published description of the types that a file is made of.
#[derive(OpenApi)]
#[openapi(components(schemas(MarkRule, ServerSpec, ServiceSpec, Settings, Timeouts)))]
struct Schemas;

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::to_value(Schemas::openapi()).unwrap_or_default());

/// A kind of table.
pub(super) struct Fields {
    /// What it is, for messages.
    pub(super) what: &'static str,
    /// Its type's name in the description of the API.
    schema: &'static str,
    /// The keys that name it: where nothing else is to blame, one of these is.
    pub(super) names: &'static [&'static str],
    /// The name of what is read for itself.
    elsewhere: Option<&'static str>,
    /// Whether all that is left out has the value of `base`.
    is_optional: bool,
    /// A table with which nothing is wrong.
    base: fn() -> Value,
    /// The names and types of its fields.
    known: LazyLock<BTreeMap<String, Vec<&'static Value>>>,
}

macro_rules! fields {
    ($name:ident, $what:literal, $schema:literal, names: $names:expr, elsewhere: $elsewhere:expr,
     is_optional: $optional:literal, base: $base:expr) => {
        pub(super) static $name: Fields = Fields {
            what: $what,
            schema: $schema,
            names: $names,
            elsewhere: $elsewhere,
            is_optional: $optional,
            base: || $base,
            known: LazyLock::new(|| named($schema)),
        };
    };
}

fields!(SETTINGS, "`settings`", "Settings", names: &[], elsewhere: None, is_optional: true,
    base: serde_json::to_value(Settings::default()).unwrap_or_default());
fields!(TIMEOUTS, "`timeouts`", "Timeouts", names: &[], elsewhere: None, is_optional: true,
    base: serde_json::to_value(Timeouts::default()).unwrap_or_default());
fields!(MARK, "a mark", "MarkRule", names: &["addresses", "mark"], elsewhere: None, is_optional: false,
    base: json!({ "mark": 1, "addresses": ["192.0.2.1/32"] }));
fields!(SERVICE, "a service", "ServiceSpec", names: &["address", "mark"], elsewhere: Some("server"),
    is_optional: false, base: json!({ "protocol": "tcp", "address": "192.0.2.1", "port": 80 }));
fields!(SERVER, "a server", "ServerSpec", names: &["address"], elsewhere: None, is_optional: false,
    base: json!({ "address": "192.0.2.1", "port": 80, "weight": 1 }));

impl Fields {
    /// Whether a field is read for itself.
    pub(super) fn is_elsewhere(&self, name: &str) -> bool {
        self.elsewhere == Some(name)
    }

    /// A table with which nothing is wrong.
    pub(super) fn base(&self) -> Value {
        (self.base)()
    }

    /// What a table has before anything is read.
    pub(super) fn base_or(&self, defaults: Map<String, Value>) -> Map<String, Value> {
        match (self.base)() {
            Value::Object(base) if self.is_optional => base,
            _ => defaults,
        }
    }

    /// What is unknown of a field: its name, or names inside of it; each with its place.
    pub(super) fn unknown(
        &self,
        key: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        look(self.what, &self.known, self.elsewhere, key, value, &mut found);
        found
    }

    /// Tries one value, with nothing wrong around it.
    ///
    /// # Errors
    ///
    /// Where in the value what is wrong.
    pub(super) fn try_value<T: DeserializeOwned>(
        &self,
        name: &str,
        value: &Value,
    ) -> Result<(), (Vec<Segment>, String)> {
        // These are inside of other types, which know nothing of places.
        let is_named = self.names.contains(&"address");
        match name {
            "protocol" if is_named => return try_as::<Protocol>(value),
            "address" if is_named => {
                return try_as::<IpAddr>(value).map_err(|(path, _)| {
                    let message =
                        "it is no IP address: write one such as \"192.168.2.100\" or \"2001:db8::100\"";
                    (path, message.to_owned())
                });
            }
            "port" if is_named => return try_as::<u16>(value),
            "mark" if is_named => return try_as::<u32>(value),
            "ipv6" if is_named => return try_as::<bool>(value),
            _ => {}
        }
        let mut whole = (self.base)();
        whole[name] = value.clone();
        // The first of the path is the field itself.
        try_as::<T>(&whole).map_err(|(path, message)| (path.into_iter().skip(1).collect(), message))
    }

    /// What names a service has to be there, and there once.
    pub(super) fn missing(&self, given: &Map<String, Value>) -> Option<String> {
        let has = |name: &str| given.contains_key(name);
        if self.schema == "ServerSpec" && !has("address") {
            return Some("a server has no `address`: write its own address (RIP)".to_owned());
        }
        if self.schema != "ServiceSpec" {
            return None;
        }
        let missing: Vec<_> = ["protocol", "address", "port"]
            .into_iter()
            .filter(|name| !has(name))
            .collect();
        match (has("mark"), missing.as_slice()) {
            (true, [_, _, _]) => None,
            (true, _) => {
                Some("a service has `mark`, or `protocol`, `address` and `port`, not both".to_owned())
            }
            (false, []) if has("ipv6") => {
                Some("`ipv6` is for the service of a mark: the address says it here".to_owned())
            }
            (false, []) => None,
            (false, [_, _, _]) => {
                Some("a service has no name: write `protocol`, `address` and `port`, or `mark`".to_owned())
            }
            (false, missing) => Some(format!("a service has no `{}`", missing.join("` and no `"))),
        }
    }
}

fn try_as<T: DeserializeOwned>(value: &Value) -> Result<(), (Vec<Segment>, String)> {
    let mut track = Track::new();
    match T::deserialize(serde_path_to_error::Deserializer::new(value, &mut track)) {
        Ok(_) => Ok(()),
        Err(error) => Err((track.path().iter().cloned().collect(), error.to_string())),
    }
}

/// Looks for names that are none, in a field and all that it has inside.
fn look(
    what: &str,
    known: &BTreeMap<String, Vec<&'static Value>>,
    elsewhere: Option<&str>,
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
    found: &mut Vec<(usize, String)>,
) {
    let name = key.get_ref().as_ref();
    let Some(schemas) = known.get(name) else {
        let names: BTreeSet<_> = known.keys().map(String::as_str).chain(elsewhere).collect();
        let names: Vec<_> = names.into_iter().collect();
        found.push((
            key.span().start,
            format!("unknown key `{name}` in {what}: use one of {}", names.join(" ")),
        ));
        return;
    };
    let Some(table) = value.get_ref().as_table() else {
        return;
    };
    let tag = |name: &str| value.get_ref().get(name).and_then(|tag| tag.get_ref().as_str());
    let mut inside = BTreeMap::new();
    for schema in schemas {
        collect(schema, &tag, &mut inside);
    }
    // Of what is no table its own type says so.
    if inside.is_empty() {
        return;
    }
    for (key, value) in table {
        look(&format!("`{name}`"), &inside, None, key, value, found);
    }
}

/// The fields of a type that the description names.
fn named(schema: &str) -> BTreeMap<String, Vec<&'static Value>> {
    let mut fields = BTreeMap::new();
    if let Some(schema) = component(schema) {
        collect(schema, &|_| None, &mut fields);
    }
    fields
}

fn component(name: &str) -> Option<&'static Value> {
    DOCUMENT.pointer(&format!("/components/schemas/{name}"))
}

/// Collects the fields of a type, of all its parts and of all its variants but those that a tag excludes.
fn collect<'t>(
    schema: &'static Value,
    tag: &impl Fn(&str) -> Option<&'t str>,
    fields: &mut BTreeMap<String, Vec<&'static Value>>,
) {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str)
        && let Some(named) = name.rsplit('/').next().and_then(component)
    {
        collect(named, tag, fields);
    }
    for part in ["allOf", "oneOf", "anyOf"] {
        let parts = schema.get(part).and_then(Value::as_array);
        for part in parts.into_iter().flatten() {
            if !is_excluded(part, tag) {
                collect(part, tag, fields);
            }
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, schema) in properties.into_iter().flatten() {
        fields.entry(name.clone()).or_default().push(schema);
    }
}

/// Whether a variant has a tag of another value.
fn is_excluded<'t>(variant: &Value, tag: &impl Fn(&str) -> Option<&'t str>) -> bool {
    let own = variant.get("properties").and_then(Value::as_object);
    let by_itself = own.into_iter().flatten().any(|(name, schema)| {
        let values = schema.get("enum").and_then(Value::as_array);
        match (values, tag(name)) {
            (Some(values), Some(tag)) => !values.iter().any(|value| value == tag),
            _ => false,
        }
    });
    let parts = variant.get("allOf").and_then(Value::as_array);
    by_itself || parts.into_iter().flatten().any(|part| is_excluded(part, tag))
}

/// A value as the API has it.
///
/// # Errors
///
/// Where something is that JSON has not, and what.
pub(super) fn json(value: &Spanned<DeValue<'_>>) -> Result<Value, (usize, String)> {
    let refuse = |message: &str| Err((value.span().start, message.to_owned()));
    Ok(match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(is_true) => Value::Bool(*is_true),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) => number.into(),
            Err(_) => return refuse("the number is too big"),
        },
        DeValue::Float(_) => return refuse("it is no whole number"),
        DeValue::Datetime(_) => return refuse("there is no date or time here: write a number or a text"),
        DeValue::Array(items) => Value::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        DeValue::Table(table) => {
            let fields = table
                .iter()
                .map(|(key, value)| Ok((key.get_ref().to_string(), json(value)?)));
            Value::Object(fields.collect::<Result<_, _>>()?)
        }
    })
}
