//! The way from one table to another: as changes for the model, and as steps for people.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    api::types::{Action, Change, MarkRule, ServerKey, ServerSpec, ServiceKey, Step},
    config::words,
    model::{Model, ServiceEntry},
};

/// The changes that make `to` out of `from`, as few as there can be of them. What is the same in both is not named.
///
/// New real servers go to the head of their list and new rules of marks behind the others, so what is to be elsewhere
/// is deleted and added again. As all of it is one step, that moves it and touches no connection.
pub fn diff(from: &Model, to: &Model) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    // First of all, since what comes may need the room.
    for key in from.services().keys() {
        if !to.services().contains_key(key) {
            changes.push(Change::DeleteService { service: *key });
        }
    }
    if from.timeouts() != to.timeouts() {
        let timeouts = to.timeouts();
        changes.push(Change::SetTimeouts { timeouts });
    }
    if from.settings() != to.settings() {
        let settings = to.settings();
        changes.push(Change::SetSettings { settings });
    }
    let (gone, new) = marks(from, to);
    changes.extend(gone.map(|rule| Change::DeleteMark { rule: rule.clone() }));
    changes.extend(new.map(|rule| Change::AddMark { rule: rule.clone() }));

    let mut trial = from.clone();
    for (key, wanted) in to.services() {
        let Some(present) = from.services().get(key) else {
            changes.extend(wanted.changes());
            continue;
        };
        if is_same(present, wanted) {
            continue;
        }
        let edits = edits(present, wanted);
        // A change of a service may not fit its real servers before these have changed, and the other way round.
        if trial.apply(&edits).is_ok() {
            changes.extend(edits);
        } else {
            changes.push(Change::DeleteService { service: *key });
            changes.extend(wanted.changes());
        }
    }
    changes
}

/// The same as [`diff`] for people. `connections` says how many live ones a real server of `from` has.
pub fn steps(
    from: &Model,
    to: &Model,
    mut connections: impl FnMut(&ServiceKey, &ServerKey) -> u64,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut push = |action, object: String, detail: String, connections| {
        steps.push(Step {
            action,
            object,
            detail,
            connections,
        });
    };
    for (object, detail) in [
        ("settings", words::change(&from.settings(), &to.settings())),
        ("time-outs", words::change(&from.timeouts(), &to.timeouts())),
    ] {
        if !detail.is_empty() {
            push(Action::Change, object.to_owned(), detail, 0);
        }
    }
    let (gone, new) = marks(from, to);
    let (gone, new): (Vec<_>, Vec<_>) = (gone.collect(), new.collect());
    for rule in &gone {
        if !new.contains(rule) {
            push(Action::Delete, words::rule(rule), String::new(), 0);
        }
    }
    for rule in &new {
        let is_moved = gone.contains(rule);
        let action = if is_moved { Action::Move } else { Action::Add };
        push(action, words::rule(rule), String::new(), 0);
    }
    for (key, entry) in from.services() {
        if !to.services().contains_key(key) {
            let servers = entry.servers.iter();
            let touched = servers.map(|server| connections(key, &server.key)).sum();
            push(Action::Delete, words::service(key), String::new(), touched);
        }
    }
    for (key, wanted) in to.services() {
        let Some(present) = from.services().get(key) else {
            push(
                Action::Add,
                words::service(key),
                words::settings(&wanted.spec, words::SERVICE_NAMES),
                0,
            );
            for server in wanted.servers.iter().rev() {
                let detail = words::settings(server, words::SERVER_NAMES);
                push(Action::Add, words::server(key, &server.key), detail, 0);
            }
            continue;
        };
        if is_same(present, wanted) {
            continue;
        }
        let detail = words::change(&present.spec, &wanted.spec);
        if !detail.is_empty() {
            push(Action::Change, words::service(key), detail, 0);
        }
        let servers = Servers::of(present, wanted);
        for server in present.servers.iter().rev() {
            if !wanted.servers.contains(&server.key) {
                let touched = connections(key, &server.key);
                push(
                    Action::Delete,
                    words::server(key, &server.key),
                    String::new(),
                    touched,
                );
            }
        }
        for (position, server) in wanted.servers.iter().rev().enumerate() {
            let object = words::server(key, &server.key);
            let Some(old) = present.servers.get(&server.key) else {
                push(
                    Action::Add,
                    object,
                    words::settings(server, words::SERVER_NAMES),
                    0,
                );
                continue;
            };
            if old != server {
                let is_elsewhere = old.method != server.method;
                let touched = if is_elsewhere {
                    connections(key, &server.key)
                } else {
                    0
                };
                push(Action::Change, object, words::change(old, server), touched);
            } else if position >= servers.kept {
                push(Action::Move, object, String::new(), 0);
            }
        }
    }
    steps
}

fn is_same(one: &Arc<ServiceEntry>, other: &Arc<ServiceEntry>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// How many of the first of `to` stay as they stand when the rest of `from` is deleted and the rest of `to` is added
/// behind them. No other way needs fewer deletions and additions.
fn stay<T: PartialEq>(from: impl Iterator<Item = T>, to: &[T]) -> usize {
    from.fold(0, |kept, item| kept + usize::from(to.get(kept) == Some(&item)))
}

/// The rules that are deleted, and those that are added behind what stays.
fn marks<'a>(
    from: &'a Model,
    to: &'a Model,
) -> (
    impl Iterator<Item = &'a MarkRule>,
    impl Iterator<Item = &'a MarkRule>,
) {
    let to = to.marks();
    let kept = if Arc::ptr_eq(from.marks(), to) {
        to.len()
    } else {
        let to: Vec<_> = to.iter().collect();
        stay(from.marks().iter(), &to)
    };
    let (kept, new) = to.split_at(kept);
    let mut next = 0;
    let gone = from.marks().iter().filter(move |rule| {
        let stays = kept.get(next) == Some(*rule);
        next += usize::from(stays);
        !stays
    });
    (gone, new.iter())
}

/// What becomes of a service's real servers.
struct Servers {
    /// So many of the wanted ones, in the order of adding, stay where they are.
    kept: usize,
}

impl Servers {
    fn of(present: &ServiceEntry, wanted: &ServiceEntry) -> Self {
        let wanted: Vec<_> = wanted.servers.iter().rev().map(|server| server.key).collect();
        let present = present.servers.iter().rev().map(|server| server.key);
        Self {
            kept: stay(present, &wanted),
        }
    }
}

/// The changes of a service that is in both tables.
fn edits(present: &ServiceEntry, wanted: &ServiceEntry) -> Vec<Change> {
    let service = wanted.spec.key;
    let mut changes = Vec::new();
    if present.spec != wanted.spec {
        changes.push(Change::EditService {
            service: wanted.spec.clone(),
        });
    }
    let Servers { kept } = Servers::of(present, wanted);
    let in_order = || wanted.servers.iter().rev();
    let staying: BTreeSet<_> = in_order().take(kept).map(|server| server.key).collect();
    for server in &present.servers {
        if !staying.contains(&server.key) {
            let server = server.key;
            changes.push(Change::DeleteServer { service, server });
        }
    }
    for server in in_order().take(kept) {
        let old = present.servers.get(&server.key);
        if let Some(old) = old.filter(|old| *old != server) {
            changes.extend(edit(service, old, server));
        }
    }
    changes.extend(in_order().skip(kept).flat_map(|server| server.added(service)));
    changes
}

/// The changes of a real server that stays.
fn edit(service: ServiceKey, old: &ServerSpec, new: &ServerSpec) -> impl Iterator<Item = Change> {
    let drain = new.drain.map(|drain| Change::DrainServer {
        service,
        server: new.key,
        drain,
    });
    // What draining alone makes of it.
    let drained = ServerSpec {
        weight: 0,
        drain: new.drain,
        ..old.clone()
    };
    let edit = (drain.is_none() || drained != *new).then(|| Change::EditServer {
        service,
        server: ServerSpec {
            drain: None,
            ..new.clone()
        },
    });
    edit.into_iter().chain(drain)
}

#[cfg(test)]
mod tests;
