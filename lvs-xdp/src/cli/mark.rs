//! `lvs-xdp mark ...`.

use std::io::Write;

use super::{
    Failure,
    args::{MarkVerb, RuleArgs},
    table::Table,
    write_json,
};
use crate::api::{
    client::BlockingClient,
    types::{Change, MarkRule, Protocol},
};

pub(super) fn run(verb: MarkVerb, client: &mut BlockingClient, out: &mut dyn Write) -> Result<(), Failure> {
    let changes = match verb {
        MarkVerb::List(list) => return print(&client.marks()?, list.json, out),
        MarkVerb::Add { mark, rule } => vec![Change::AddMark { rule: rule.of(mark) }],
        MarkVerb::Delete { mark, rule } if !rule.addresses.is_empty() => {
            vec![Change::DeleteMark { rule: rule.of(mark) }]
        }
        // The definition of the arguments lets none come without an address.
        MarkVerb::Delete { mark, .. } => {
            let rules = client.marks()?.into_iter();
            let own: Vec<_> = rules
                .filter(|rule| rule.mark == mark)
                .map(|rule| Change::DeleteMark { rule })
                .collect();
            if own.is_empty() {
                return Err(Failure::Refused(format!(
                    "mark {mark} has no rules; `lvs-xdp mark list` shows what there is"
                )));
            }
            own
        }
    };
    Ok(client.change(changes)?)
}

impl RuleArgs {
    fn of(self, mark: u32) -> MarkRule {
        let Self {
            addresses,
            protocol,
            ports,
        } = self;
        MarkRule {
            mark,
            protocol: protocol.0,
            addresses,
            ports,
        }
    }
}

fn print(rules: &[MarkRule], json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if json {
        return write_json(rules, out);
    }
    let mut table = Table::new([" MARK", "PROTOCOL", "ADDRESSES", "PORTS"]);
    for rule in rules {
        table.row([
            rule.mark.to_string(),
            rule.protocol
                .map_or_else(|| "any".to_owned(), |protocol| protocol.to_string()),
            list(&rule.addresses),
            if rule.ports.is_empty() {
                "any".to_owned()
            } else {
                list(&rule.ports)
            },
        ]);
    }
    Ok(table.write(out)?)
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}

/// The protocols that a rule is for: one of them, or any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RuleProtocol(pub(super) Option<Protocol>);
