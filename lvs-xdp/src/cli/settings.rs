//! `lvs-xdp settings`.

use std::io::Write;

use serde_json::{Map, Value};

use super::{
    Failure,
    args::ListArgs,
    table::Table,
    value::{self, SettingValue},
    write_json,
};
use crate::api::{
    client::BlockingClient,
    types::{Change, Setting, Settings},
};

pub(super) fn run(
    name: Option<Setting>,
    value: Option<SettingValue>,
    list: &ListArgs,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if let (Some(setting), Some(value)) = (name, value) {
        value::check_setting(setting, value).map_err(Failure::Usage)?;
        let mut settings = client.status()?.settings;
        let default = *setting.of(&mut Settings::default());
        *setting.of(&mut settings) = value.0.unwrap_or(default);
        return Ok(client.change(vec![Change::SetSettings { settings }])?);
    }
    let mut settings = client.status()?.settings;
    let shown = Setting::ALL
        .into_iter()
        .filter(|setting| name.is_none_or(|name| name == *setting));
    if list.json {
        let object: Map<_, _> = shown
            .map(|setting| (setting.name().to_owned(), Value::from(*setting.of(&mut settings))))
            .collect();
        return write_json(&object, out);
    }
    if let Some(setting) = name {
        return Ok(writeln!(out, "{}", setting.of(&mut settings))?);
    }
    let mut table = Table::new(["SETTING", " VALUE", " DEFAULT"]);
    for setting in shown {
        table.row([
            setting.to_string(),
            setting.of(&mut settings).to_string(),
            setting.of(&mut Settings::default()).to_string(),
        ]);
    }
    Ok(table.write(out)?)
}
