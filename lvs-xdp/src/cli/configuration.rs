//! `lvs-xdp apply`, `export`, `rollback` and `history`: the whole table.

use std::{
    io::Write,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use nix::unistd::{Uid, User};

use super::{Failure, args::ListArgs, table::Table, write_json};
use crate::{
    api::{
        client::BlockingClient,
        types::{Action, Plan, Step},
    },
    config,
};

/// Applies a file, or says what that would change.
pub(super) fn apply(
    file: &Path,
    dry_run: bool,
    list: &ListArgs,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let (configuration, _) = config::load(file).map_err(|error| {
        // Each fault is a line of its own, and each line says whose it is.
        Failure::Refused(error.to_string().replace('\n', "\nlvs-xdp: "))
    })?;
    let plan = client.configure(&configuration, dry_run, config::source(file))?;
    print(&plan, dry_run, list, out)
}

/// Writes the table as a file.
pub(super) fn export(
    list: &ListArgs,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let configuration = client.configuration()?;
    if list.json {
        return write_json(&configuration, out);
    }
    let text = config::write(&configuration).map_err(Failure::Refused)?;
    Ok(write!(out, "{text}")?)
}

/// Goes back to an earlier table.
pub(super) fn rollback(
    back: u32,
    dry_run: bool,
    list: &ListArgs,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    print(&client.rollback(back, dry_run)?, dry_run, list, out)
}

/// Lists the versions.
pub(super) fn history(
    list: &ListArgs,
    client: &mut BlockingClient,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let versions = client.history()?;
    if list.json {
        return write_json(&versions, out);
    }
    let mut table = Table::new([" BACK", " VERSION", "TIME", "BY", "WHAT"]);
    for (back, version) in (1..).zip(versions) {
        table.row([
            back.to_string(),
            version.number.to_string(),
            time(version.time),
            (version.uid.map(user).or(version.client)).unwrap_or_else(|| "agent".to_owned()),
            version.what,
        ]);
    }
    Ok(table.write(out)?)
}

/// A time of the history, as RFC 3339 has it.
fn time(seconds: u64) -> String {
    /// The last second of the year 9999, the last one that has a text.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A user's name, or the number where there is none.
fn user(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// A line for each difference, and what they come to.
fn print(plan: &Plan, dry_run: bool, list: &ListArgs, out: &mut dyn Write) -> Result<(), Failure> {
    if list.json {
        return write_json(plan, out);
    }
    let Plan {
        steps,
        touched,
        connections,
    } = plan;
    if steps.is_empty() {
        return Ok(writeln!(out, "nothing to change")?);
    }
    for step in steps {
        writeln!(out, "{}", line(step))?;
    }
    let (changes, verb) = match steps.len() {
        1 => ("1 change".to_owned(), if dry_run { "touches" } else { "touched" }),
        many => (
            format!("{many} changes"),
            if dry_run { "touch" } else { "touched" },
        ),
    };
    let would = if dry_run { ", not made," } else { "" };
    Ok(writeln!(
        out,
        "{changes}{would} {verb} {touched} of {connections} connections{}",
        share(*touched, *connections)
    )?)
}

fn line(step: &Step) -> String {
    let Step {
        action,
        object,
        detail,
        connections,
    } = step;
    let sign = match action {
        Action::Add => '+',
        Action::Change => '~',
        Action::Move => '>',
        Action::Delete => '-',
    };
    let mut line = format!("{sign} {object}");
    if !detail.is_empty() {
        line += &format!(": {detail}");
    }
    match connections {
        0 => {}
        1 => line += " (1 connection)",
        many => line += &format!(" ({many} connections)"),
    }
    line
}

/// The share in percent, with a digit behind the point, in brackets.
fn share(part: u64, whole: u64) -> String {
    // Rounded up: what is a little is not nothing.
    match (u128::from(part) * 1000).checked_div(u128::from(whole)) {
        None => String::new(),
        Some(floor) => {
            let is_exact = floor * u128::from(whole) == u128::from(part) * 1000;
            let permille = floor + u128::from(!is_exact);
            format!(" ({}.{} %)", permille / 10, permille % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(plan: &Plan, dry_run: bool) -> String {
        let mut out = Vec::new();
        print(plan, dry_run, &ListArgs { json: false }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_plan_is_a_line_for_each_difference_and_a_sum() {
        let step = |action, object: &str, detail: &str, connections| Step {
            action,
            object: object.to_owned(),
            detail: detail.to_owned(),
            connections,
        };
        let plan = Plan {
            steps: vec![
                step(Action::Change, "settings", "sloppy_tcp 0 -> 1", 0),
                step(Action::Add, "service TCP 192.0.2.1:80", "scheduler rr", 0),
                step(Action::Delete, "service UDP 192.0.2.1:53", "", 1),
                step(
                    Action::Delete,
                    "real server 198.51.100.1:80 of TCP 192.0.2.2:80",
                    "",
                    20,
                ),
                step(
                    Action::Move,
                    "real server 198.51.100.2:80 of TCP 192.0.2.2:80",
                    "",
                    0,
                ),
            ],
            touched: 21,
            connections: 1000,
        };
        insta::assert_snapshot!("dry_run", printed(&plan, true));
        insta::assert_snapshot!("applied", printed(&plan, false));
        assert_eq!(printed(&Plan::default(), true), "nothing to change\n");
    }

    #[test]
    fn a_share_is_never_rounded_to_nothing() {
        for (part, whole, text) in [
            (0, 0, ""),
            (0, 7, " (0.0 %)"),
            (1, 1_000_000, " (0.1 %)"),
            (1, 3, " (33.4 %)"),
            (7, 7, " (100.0 %)"),
        ] {
            assert_eq!(share(part, whole), text);
        }
    }
}
