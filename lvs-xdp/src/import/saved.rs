//! A saved IPVS table, by the reader of `ipvsadm -R`.

use std::rc::Rc;

use super::{Context, Imported, Place, Table};
use crate::{api::types::Change, ipvsadm};

/// Takes over the rules line by line.
pub(super) fn import(text: &str, context: Context<'_>) -> Imported {
    let mut table = Table::new();
    let file: Rc<str> = context.name.into();
    let place = |line| Place {
        file: Rc::clone(&file),
        line,
    };
    let rules = ipvsadm::rules(text, context.names);
    let mut faults = rules.faults;
    for (line, change) in rules.changes {
        // The service of a line with a fault is none, and what else is in that line says no more.
        if faults.contains_key(&line) {
            continue;
        }
        let mark = match &change {
            Change::AddService { service } if service.key.protocol().is_none() => Some(service.key),
            _ => None,
        };
        match table.make(change) {
            Ok(()) => {
                if let Some(service) = mark {
                    table.note(
                        &place(line),
                        format!(
                            "service {service} is taken over, but not the firewall's rules that give the mark: see \
                             `lvs-xdp mark add --help`"
                        ),
                    );
                }
            }
            Err(error) => {
                faults.insert(line, error.message);
            }
        }
    }
    for (line, message) in faults {
        table.note(&place(line), format!("not taken over: {message}"));
    }
    table.imported()
}
