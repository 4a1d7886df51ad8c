//! `lvs-xdp checks`.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use super::{
    Failure,
    args::ListArgs,
    service::{endpoint, protocol},
    table::Table,
    write_json,
};
use crate::api::types::{CheckState, CheckStatus};

pub(super) fn print(checks: &[CheckStatus], list: &ListArgs, out: &mut dyn Write) -> Result<(), Failure> {
    if list.json {
        return write_json(checks, out);
    }
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = since_1970.unwrap_or_default();
    Ok(table(checks, now).write(out)?)
}

fn table(checks: &[CheckStatus], now: Duration) -> Table {
    let mut table = Table::new([
        "PROTOCOL",
        "VIRTUAL",
        "REAL SERVER",
        "CHECK",
        "ASKED",
        "STATE",
        " SINCE",
        " IN A ROW",
        " TOOK",
        " AGO",
        "RESULT",
    ]);
    for check in checks {
        let last = check.last.as_ref();
        table.row([
            protocol(&check.service),
            endpoint(&check.service),
            check.server.to_string(),
            check.probe.clone(),
            check.asked.map(|asked| asked.to_string()).unwrap_or_default(),
            state(check.state).to_owned(),
            ago(now, check.since),
            last.map(|_| check.in_a_row.to_string()).unwrap_or_default(),
            last.map(|last| format!("{}ms", last.took)).unwrap_or_default(),
            last.map(|last| ago(now, last.at)).unwrap_or_default(),
            result(check),
        ]);
    }
    table
}

pub(super) fn state(state: CheckState) -> &'static str {
    match state {
        CheckState::Up => "up",
        CheckState::Down => "down",
    }
}

/// What was seen last, or why nothing was.
fn result(check: &CheckStatus) -> String {
    match (&check.fault, &check.last) {
        (Some(fault), _) => format!("cannot be checked: {fault}"),
        (None, Some(last)) => last.why.clone(),
        (None, None) => String::new(),
    }
}

/// How long ago something was that is told in milliseconds since 1970, in its two greatest units.
fn ago(now: Duration, then: u64) -> String {
    let seconds = now.saturating_sub(Duration::from_millis(then)).as_secs();
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    let units: Vec<_> = text.split(' ').take(2).collect();
    units.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{CheckResult, CheckTarget, Protocol, ServerKey, ServiceKey};

    #[test]
    fn every_check_has_a_line() {
        let check = CheckStatus {
            service: ServiceKey::new(Protocol::Tcp, [192, 168, 2, 100].into(), 80),
            server: ServerKey {
                address: [192, 168, 2, 220].into(),
                port: 80,
            },
            probe: "http".to_owned(),
            target: CheckTarget::Vip,
            asked: "192.168.2.100:80".parse().ok(),
            state: CheckState::Down,
            since: 1_000,
            in_a_row: 3,
            last: Some(CheckResult {
                at: 99_000,
                took: 7,
                is_good: false,
                why: "status 503, expected 200-399".to_owned(),
            }),
            fault: None,
        };
        let unasked = CheckStatus {
            state: CheckState::Up,
            last: None,
            fault: Some("no socket".to_owned()),
            ..check.clone()
        };
        let mut out = Vec::new();
        let now = Duration::from_secs(100_000);
        table(&[check, unasked], now).write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<Vec<_>> = text
            .lines()
            .map(|line| {
                line.split("  ")
                    .filter(|cell| !cell.is_empty())
                    .map(str::trim)
                    .collect()
            })
            .collect();
        assert_eq!(
            lines[1][4..],
            [
                "192.168.2.100:80",
                "down",
                "1day 3h",
                "3",
                "7ms",
                "1day 3h",
                "status 503, expected 200-399"
            ]
        );
        assert_eq!(
            lines[2][5..],
            ["up", "1day 3h", "-", "-", "-", "cannot be checked: no socket"]
        );
    }
}
