//! Real servers that nobody asks: they are judged by what clients' TCP handshakes with them look like.
//!
//! With direct routing only the clients' half of a handshake is seen: SYNs, those that are sent again, and the first
//! acknowledgement. It is not enough to look at one real server by itself: to a flood of SYNs from addresses that are
//! not the sender's none answers, and whoever is far away has to try again, wherever he is sent. So a real server is
//! compared with its fellows, the service's other ones together ([`judge`]).
//!
//! Pure: counters and times are told.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use super::health::Health;
use crate::api::types::{CheckState, Handshakes, PassiveProbe, ServerKey, Span};

/// What a window says of a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Too few connections to say anything.
    Unknown,
    /// It does well enough.
    Good,
    /// It does not, but neither do its fellows, or there are too few connections to tell.
    AsFellows,
    /// It does not, and as many are out already as may be.
    Spared,
    /// It does not, and its fellows do.
    Bad,
}

/// Judges those who get connections by what was seen of each in the same window; `out` others get none for now.
///
/// One fails where a greater share of its connections is in trouble than may be, and of its fellows' connections
/// together not even half that share. A half is what the real servers that are well make clear up to a half of them
/// being dead; and two that have a flood in common differ by less. Of those that fail the worst come first, until half
/// of all are out: whoever can steer the connections that he leaves unanswered (from one address, in a persistent
/// service) is not to take out one real server after the other.
fn judge(probe: &PassiveProbe, seen: &[Handshakes], out: usize) -> Vec<Verdict> {
    let all = seen.iter().fold(Handshakes::default(), |all, one| all.and(*one));
    let least = u64::from(probe.connections);
    let troubled: u64 = seen.iter().map(Handshakes::troubled).sum();
    let mut verdicts: Vec<_> = seen
        .iter()
        .map(|one| {
            let fellows = all.syns - one.syns;
            let [own, others] = [one.troubled(), troubled - one.troubled()].map(u128::from);
            if one.syns < least {
                Verdict::Unknown
            } else if own * 100 <= u128::from(probe.share) * u128::from(one.syns) {
                Verdict::Good
            } else if fellows < least || others * 2 * u128::from(one.syns) > own * u128::from(fellows) {
                Verdict::AsFellows
            } else {
                Verdict::Bad
            }
        })
        .collect();
    let mut failed: Vec<_> = (0..seen.len())
        .filter(|&index| verdicts[index] == Verdict::Bad)
        .collect();
    failed.sort_by_key(|&index| std::cmp::Reverse(seen[index].troubled_percent()));
    let most = ((seen.len() + out) / 2).saturating_sub(out);
    for index in failed.into_iter().skip(most) {
        verdicts[index] = Verdict::Spared;
    }
    verdicts
}

/// A real server that has changed its state, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turned {
    pub(super) server: ServerKey,
    pub(super) state: CheckState,
    pub(super) why: String,
}

/// The real servers of a service that are watched.
#[derive(Debug, Default)]
pub(super) struct Watch {
    probe: PassiveProbe,
    /// When the window has begun, and what there had been of each by then.
    began: Option<Instant>,
    before: BTreeMap<ServerKey, Handshakes>,
    /// Those that are out, as far as known since when.
    out: BTreeMap<ServerKey, Instant>,
}

impl Watch {
    /// Goes by other numbers from now on.
    pub(super) fn go_by(&mut self, probe: PassiveProbe) {
        if self.probe != probe {
            self.probe = probe;
            self.began = None;
        }
    }

    /// Looks at all of them: brings back those that have been out for long enough, and at the window's end judges the
    /// others. `counted` says what there were in all of one's handshakes.
    pub(super) fn look(
        &mut self,
        mut servers: Vec<(ServerKey, &mut Health)>,
        now: Instant,
        date: SystemTime,
        counted: impl Fn(&ServerKey) -> Handshakes,
    ) -> Vec<Turned> {
        let mut turned = Vec::new();
        let retry = self.probe.retry;
        let out_before = std::mem::take(&mut self.out);
        for (server, health) in &mut servers {
            if health.state == CheckState::Up {
                continue;
            }
            let since = out_before.get(server).copied().unwrap_or(now);
            if now.saturating_duration_since(since) < retry.duration() {
                self.out.insert(*server, since);
                continue;
            }
            // What came while it was out, of connections that it had, says nothing of how it does now.
            self.before.insert(*server, counted(server));
            health.turn(CheckState::Up, date);
            turned.push(Turned {
                server: *server,
                state: CheckState::Up,
                why: format!("after {retry} it is tried again"),
            });
        }
        let elapsed = self.began.map(|began| now.saturating_duration_since(began));
        if elapsed.is_some_and(|elapsed| elapsed < self.probe.window.duration()) {
            return turned;
        }
        let totals: BTreeMap<_, _> = servers
            .iter()
            .map(|(server, _)| (*server, counted(server)))
            .collect();
        let before = std::mem::replace(&mut self.before, totals);
        self.began = Some(now);
        if let Some(elapsed) = elapsed {
            turned.extend(self.conclude(servers, &before, elapsed, now, date));
        }
        turned
    }

    /// Judges by a window that is over.
    fn conclude(
        &mut self,
        servers: Vec<(ServerKey, &mut Health)>,
        before: &BTreeMap<ServerKey, Handshakes>,
        elapsed: Duration,
        now: Instant,
        date: SystemTime,
    ) -> Vec<Turned> {
        let up = servers
            .into_iter()
            .filter(|(_, health)| health.state == CheckState::Up);
        let (up, seen): (Vec<_>, Vec<_>) = up
            .map(|(server, health)| {
                let total = self.before.get(&server).copied().unwrap_or_default();
                // Of one that is new the window begins here.
                let seen = total.since(before.get(&server).copied().unwrap_or(total));
                ((server, health), seen)
            })
            .unzip();
        let verdicts = judge(&self.probe, &seen, self.out.len());
        let over = Span::from_millis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        let mut turned = Vec::new();
        for (((server, health), seen), verdict) in up.into_iter().zip(seen).zip(verdicts) {
            let told = told(seen, over);
            let (is_good, why) = match verdict {
                Verdict::Unknown => continue,
                Verdict::Good => (true, told),
                Verdict::AsFellows => (
                    false,
                    format!("{told}; its fellows do not clearly better, and it stays"),
                ),
                Verdict::Spared => (
                    false,
                    format!("{told}; half of them are out already, and it stays"),
                ),
                Verdict::Bad => (false, told),
            };
            health.record(is_good, why.clone(), elapsed, date);
            if verdict == Verdict::Bad {
                health.turn(CheckState::Down, date);
                self.out.insert(server, now);
                turned.push(Turned {
                    server,
                    state: CheckState::Down,
                    why,
                });
            }
        }
        turned
    }
}

/// What was seen, in words.
fn told(seen: Handshakes, over: Span) -> String {
    let Handshakes {
        syns,
        repeated,
        acknowledged,
        ..
    } = seen;
    let percent = seen.troubled_percent().unwrap_or(0);
    format!(
        "{percent}% in trouble: {syns} SYNs, {repeated} sent again, {acknowledged} acknowledged within {over}"
    )
}

#[cfg(test)]
mod tests;
