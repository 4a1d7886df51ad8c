//! `lvs-xdp connections`.

use std::io::Write;

use super::{
    Failure,
    args::{ConnectionsArgs, ConnectionsVerb, FilterArgs},
    write_json,
};
use crate::api::{
    client::{BlockingClient, ListForm},
    filter::ConnectionFilter,
    types::Flushed,
};

pub(super) fn run(
    args: ConnectionsArgs,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let ConnectionsArgs { verb, filter, list } = args;
    match verb {
        None => {
            // A list can be long, and the agent writes it as it is to be printed.
            let form = if list.json { ListForm::Json } else { ListForm::Text };
            let printed = client.list_connections(&filter.into(), form, |piece| out.write_all(piece))?;
            Ok(printed?)
        }
        Some(ConnectionsVerb::Flush { filter, all: _, list }) => {
            let removed = client.flush_connections(&filter.into())?;
            if list.json {
                return write_json(&Flushed { removed }, out);
            }
            Ok(writeln!(out, "{removed} removed")?)
        }
    }
}

impl From<FilterArgs> for ConnectionFilter {
    fn from(args: FilterArgs) -> Self {
        let FilterArgs {
            client,
            service,
            server,
            state,
        } = args;
        Self {
            client,
            service,
            server,
            state,
        }
    }
}
