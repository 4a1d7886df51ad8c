//! From a table to a configuration file.

use serde::Serialize;
use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value, ser::ValueSerializer};

use crate::api::types::Configuration;

/// The file that says the same as `configuration`: what is by default is left out, but for settings and time-outs.
///
/// # Errors
///
/// A number is too high for TOML (above 2^63 - 1), in one line.
pub fn write(configuration: &Configuration) -> Result<String, String> {
    let Configuration {
        settings,
        timeouts,
        mark,
        service,
    } = configuration;
    let mut document = DocumentMut::new();
    document.insert("settings", Item::Table(table(settings)?));
    document.insert("timeouts", Item::Table(table(timeouts)?));
    if !mark.is_empty() {
        let rules: Result<ArrayOfTables, _> = mark.iter().map(table).collect();
        document.insert("mark", Item::ArrayOfTables(rules?));
    }
    let mut services = ArrayOfTables::new();
    for service in service {
        let mut item = table(&service.spec)?;
        if !service.server.is_empty() {
            let servers: Result<ArrayOfTables, _> = service.server.iter().map(table).collect();
            item.insert("server", Item::ArrayOfTables(servers?));
        }
        services.push(item);
    }
    if !services.is_empty() {
        document.insert("service", Item::ArrayOfTables(services));
    }
    Ok(document.to_string())
}

/// A table with all that is inside of it on one line each.
fn table(spec: &impl Serialize) -> Result<Table, String> {
    let value = spec
        .serialize(ValueSerializer::new())
        .map_err(|error| error.to_string())?;
    match value {
        Value::InlineTable(fields) => Ok(InlineTable::into_table(fields)),
        _ => Err("it is no table".to_owned()),
    }
}
