//! From a configuration file to a table, or to all that is wrong with the file.
//!
//! Values are read by the API's own types, and which names there are is taken from their published description: what
//! the API has, files have. A first pass finds what is no value, a second one, by the model, what makes no sense.

mod fields;
mod place;

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use self::{
    fields::{Fields, MARK, SERVER, SERVICE, SETTINGS, TIMEOUTS},
    place::Places,
};
use crate::{
    api::types::{
        ApiError, Change, Configuration, ConfiguredService, MarkRule, ServerSpec, ServiceKey, ServiceSpec,
        Settings, Timeouts,
    },
    line::one_line,
    model::Model,
};

/// Something that is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The line, from 1 on.
    pub line: usize,
    /// The character of the line, from 1 on.
    pub column: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            column,
            message,
        } = self;
        write!(f, "line {line}, column {column}: {message}")
    }
}

/// All that is wrong with a file, in its order; at least one thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Reads a configuration file; the model is what it means.
///
/// # Errors
///
/// Everything that is wrong with it. Where it is no TOML, only that.
pub fn read(text: &str) -> Result<(Configuration, Model), Faults> {
    let places = Places::of(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let faults = errors.iter().map(|error| {
            let (line, column) = places.at(error.span().map_or(0, |span| span.start));
            let message = error.message().trim_end().replace('\n', "; ");
            Fault {
                line,
                column,
                message: one_line(message),
            }
        });
        return Err(in_order(faults.collect()));
    }
    let mut reader = Reader {
        places,
        faults: Vec::new(),
    };
    let file = reader.file(document.get_ref());
    if reader.faults.is_empty() {
        let configuration = file.configuration();
        if let Ok(model) = configuration.model() {
            return Ok((configuration, model));
        }
    }
    reader.check(&file);
    if reader.faults.is_empty() {
        // What is wrong of the whole and of no part of it: there is no such thing, but silence would be worse.
        reader.fault(0, "the parts of this file do not fit together");
    }
    Err(in_order(reader.faults))
}

fn in_order(mut faults: Vec<Fault>) -> Faults {
    faults.sort();
    faults.dedup();
    Faults(faults)
}

/// Where something is in the file: its header or its brace, and its keys.
struct Place<'a> {
    offset: usize,
    table: &'a DeTable<'a>,
}

/// A service's real servers, in the file's order.
type Servers<'a> = Vec<(ServerSpec, Place<'a>)>;

/// What could be read of a file.
#[derive(Default)]
struct File<'a> {
    settings: Option<(Settings, Place<'a>)>,
    timeouts: Option<(Timeouts, Place<'a>)>,
    marks: Vec<(MarkRule, Place<'a>)>,
    services: Vec<(ServiceSpec, Place<'a>, Servers<'a>)>,
}

impl File<'_> {
    fn configuration(&self) -> Configuration {
        Configuration {
            settings: self
                .settings
                .as_ref()
                .map(|(settings, _)| *settings)
                .unwrap_or_default(),
            timeouts: self
                .timeouts
                .as_ref()
                .map(|(timeouts, _)| *timeouts)
                .unwrap_or_default(),
            mark: self.marks.iter().map(|(rule, _)| rule.clone()).collect(),
            service: (self.services.iter())
                .map(|(spec, _, servers)| ConfiguredService {
                    spec: spec.clone(),
                    server: servers.iter().map(|(server, _)| server.clone()).collect(),
                })
                .collect(),
        }
    }
}

struct Reader<'a> {
    places: Places<'a>,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, offset: usize, message: impl Into<String>) {
        let (line, column) = self.places.at(offset);
        self.faults.push(Fault {
            line,
            column,
            message: one_line(message),
        });
    }

    fn file<'a>(&mut self, document: &'a DeTable<'a>) -> File<'a> {
        let mut file = File::default();
        for (key, value) in document {
            match key.get_ref().as_ref() {
                "settings" => file.settings = self.table(&SETTINGS, value, Map::new()),
                "timeouts" => file.timeouts = self.table(&TIMEOUTS, value, Map::new()),
                "mark" => {
                    for item in self.items("mark", value) {
                        file.marks.extend(self.table(&MARK, item, Map::new()));
                    }
                }
                "service" => {
                    for item in self.items("service", value) {
                        self.service(item, &mut file);
                    }
                }
                name => self.fault(
                    key.span().start,
                    format!("unknown key `{name}`: use one of settings timeouts mark service"),
                ),
            }
        }
        file
    }

    fn service<'a>(&mut self, item: &'a Spanned<DeValue<'a>>, file: &mut File<'a>) {
        let spec: Option<(ServiceSpec, _)> = self.table(&SERVICE, item, Map::new());
        let servers = item.get_ref().get("server");
        let servers = servers.map_or_else(Vec::new, |servers| self.items("server", servers));
        let port = spec.as_ref().map_or(1, |(spec, _)| spec.key.port());
        let defaults = server_defaults(port);
        let servers = servers
            .into_iter()
            .filter_map(|server| self.table(&SERVER, server, defaults.clone()))
            .collect();
        file.services
            .extend(spec.map(|(spec, place)| (spec, place, servers)));
    }

    /// The tables of an array of tables.
    fn items<'a>(&mut self, name: &str, value: &'a Spanned<DeValue<'a>>) -> Vec<&'a Spanned<DeValue<'a>>> {
        let Some(items) = value.get_ref().as_array() else {
            self.fault(
                value.span().start,
                format!("`{name}` is no list of tables: write [[{name}]] for each"),
            );
            return Vec::new();
        };
        items.iter().collect()
    }

    /// A table as one of the API's types, with `defaults` for what is not there.
    fn table<'a, T: serde::de::DeserializeOwned>(
        &mut self,
        fields: &Fields,
        item: &'a Spanned<DeValue<'a>>,
        defaults: Map<String, Value>,
    ) -> Option<(T, Place<'a>)> {
        let offset = item.span().start;
        let Some(table) = item.get_ref().as_table() else {
            self.fault(offset, format!("{} is no table", fields.what));
            return None;
        };
        let before = self.faults.len();
        let mut given = Map::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if fields.is_elsewhere(name) {
                continue;
            }
            for (offset, message) in fields.unknown(key, value) {
                self.fault(offset, message);
            }
            match fields::json(value) {
                Ok(value) => drop(given.insert(name.to_owned(), value)),
                Err((offset, message)) => self.fault(offset, format!("`{name}`: {message}")),
            }
        }
        if let Some(message) = fields.missing(&given) {
            self.fault(offset, message);
        }
        if self.faults.len() > before {
            self.values::<T>(fields, table, &given);
            return None;
        }
        let mut whole = fields.base_or(defaults);
        whole.extend(given.clone());
        match serde_json::from_value(Value::Object(whole)) {
            Ok(read) => Some((read, Place { offset, table })),
            Err(error) => {
                if !self.values::<T>(fields, table, &given) {
                    self.fault(offset, format!("{}: {error}", fields.what));
                }
                None
            }
        }
    }

    /// Tries each value by itself; whether something was wrong with one.
    fn values<T: serde::de::DeserializeOwned>(
        &mut self,
        fields: &Fields,
        table: &DeTable<'_>,
        given: &Map<String, Value>,
    ) -> bool {
        let before = self.faults.len();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if let Some(json) = given.get(name)
                && let Err((path, message)) = fields.try_value::<T>(name, json)
            {
                let (offset, path) = place::inside(name, value, &path);
                self.fault(offset, format!("`{path}`: {message}"));
            }
        }
        self.faults.len() > before
    }

    /// Finds what makes no sense to the model.
    fn check(&mut self, file: &File<'_>) {
        let mut model = Model::default();
        if let Some((settings, place)) = &file.settings {
            let change = |settings| Change::SetSettings { settings };
            self.attempt(
                &mut model,
                &SETTINGS,
                place,
                &Map::new(),
                change(*settings),
                change,
            );
        }
        if let Some((timeouts, place)) = &file.timeouts {
            let change = |timeouts| Change::SetTimeouts { timeouts };
            self.attempt(
                &mut model,
                &TIMEOUTS,
                place,
                &Map::new(),
                change(*timeouts),
                change,
            );
        }
        for (rule, place) in &file.marks {
            let change = |rule| Change::AddMark { rule };
            self.attempt(
                &mut model,
                &MARK,
                place,
                &Map::new(),
                change(rule.clone()),
                change,
            );
        }
        let mut seen: BTreeMap<ServiceKey, usize> = BTreeMap::new();
        for (spec, place, servers) in &file.services {
            if let Some(first) = seen.get(&spec.key) {
                let (line, _) = self.places.at(*first);
                self.fault(
                    place.offset,
                    format!(
                        "service {} is there twice, the first time in line {line}",
                        spec.key
                    ),
                );
                continue;
            }
            seen.insert(spec.key, place.offset);
            let change = |service| Change::AddService { service };
            if self.attempt(
                &mut model,
                &SERVICE,
                place,
                &Map::new(),
                change(spec.clone()),
                change,
            ) {
                self.check_servers(&mut model, spec.key, servers);
            }
        }
    }

    fn check_servers(&mut self, model: &mut Model, service: ServiceKey, servers: &[(ServerSpec, Place<'_>)]) {
        let mut seen = BTreeMap::new();
        for (server, place) in servers {
            if let Some(first) = seen.get(&server.key) {
                let (line, _) = self.places.at(*first);
                self.fault(
                    place.offset,
                    format!(
                        "real server {} is there twice in service {service}, the first time in line {line}",
                        server.key
                    ),
                );
                continue;
            }
            seen.insert(server.key, place.offset);
            let change = |server| Change::AddServer {
                service,
                server,
                require_on_link: false,
            };
            let defaults = server_defaults(service.port());
            self.attempt(model, &SERVER, place, &defaults, change(server.clone()), change);
        }
    }

    /// Makes a change; where it is refused, the fault is at the key with which it would not be,
    /// if that were left out or harmless. Whether it was made.
    fn attempt<T: serde::de::DeserializeOwned>(
        &mut self,
        model: &mut Model,
        fields: &Fields,
        place: &Place<'_>,
        defaults: &Map<String, Value>,
        change: Change,
        again: impl Fn(T) -> Change,
    ) -> bool {
        let Err(ApiError { message, .. }) = model.apply(&[change]) else {
            return true;
        };
        let keys: Vec<_> = (place.table.iter())
            .filter(|(key, _)| !fields.is_elsewhere(key.get_ref()))
            .collect();
        let base = fields.base();
        let is_cured_by = |name: &str, other: Option<&Value>| {
            let mut table = fields.base_or(defaults.clone());
            for (key, value) in &keys {
                if let Ok(value) = fields::json(value) {
                    table.insert(key.get_ref().to_string(), value);
                }
            }
            match other {
                Some(other) => drop(table.insert(name.to_owned(), other.clone())),
                None => drop(table.remove(name)),
            }
            let read = serde_json::from_value(Value::Object(table));
            read.is_ok_and(|read| model.clone().apply(&[again(read)]).is_ok())
        };
        let culprit = keys
            .iter()
            .find(|(key, _)| {
                let name = key.get_ref().as_ref();
                is_cured_by(name, defaults.get(name))
                    || base.get(name).is_some_and(|good| is_cured_by(name, Some(good)))
            })
            .or_else(|| {
                keys.iter()
                    .find(|(key, _)| fields.names.contains(&key.get_ref().as_ref()))
            });
        let offset = culprit.map_or(place.offset, |(_, value)| value.span().start);
        self.fault(offset, message);
        false
    }
}

/// What a real server has that does not say so: the port of its service, and IPVS's weight.
fn server_defaults(port: u16) -> Map<String, Value> {
    [("port".to_owned(), port.into()), ("weight".to_owned(), 1.into())]
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests;
