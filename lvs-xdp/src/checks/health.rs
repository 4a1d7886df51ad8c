//! From results to a state: how many in a row it takes, and what the first one means.
//!
//! Pure: what time it is is told.

use std::time::{Duration, SystemTime};

use crate::api::types::{Check, CheckResult, CheckState};

/// What one try has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The real server serves; in words, how.
    Good(String),
    /// It does not; in words, why.
    Bad(String),
    /// The director itself could not ask: that says nothing of the real server.
    Unknown(String),
}

/// What is known of one real server by its check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) state: CheckState,
    /// When the state began.
    pub(super) since: SystemTime,
    /// Results in a row that were as the last one.
    pub(super) in_a_row: u32,
    /// The last result that says something.
    pub(super) last: Option<CheckResult>,
    /// Why there was none since.
    pub(super) fault: Option<String>,
}

impl Health {
    /// Before the first result.
    pub(super) fn new(state: CheckState, now: SystemTime) -> Self {
        Self {
            state,
            since: now,
            in_a_row: 0,
            last: None,
            fault: None,
        }
    }

    /// Takes in a result; whether the state has changed by it.
    pub(super) fn note(&mut self, outcome: Outcome, took: Duration, check: &Check, now: SystemTime) -> bool {
        let (is_good, why) = match outcome {
            Outcome::Good(why) => (true, why),
            Outcome::Bad(why) => (false, why),
            Outcome::Unknown(why) => {
                self.fault = Some(why);
                return false;
            }
        };
        let is_first = self.last.is_none();
        self.record(is_good, why, took, now);
        let next = match self.state {
            CheckState::Down if is_good && (is_first || self.in_a_row >= check.rise) => CheckState::Up,
            CheckState::Up if !is_good && self.in_a_row >= check.fall => CheckState::Down,
            _ => return false,
        };
        self.turn(next, now);
        true
    }

    /// Keeps a result, from which nothing follows yet.
    pub(super) fn record(&mut self, is_good: bool, why: String, took: Duration, now: SystemTime) {
        self.fault = None;
        let as_before = self.last.as_ref().is_some_and(|last| last.is_good == is_good);
        self.in_a_row = if as_before {
            self.in_a_row.saturating_add(1)
        } else {
            1
        };
        self.last = Some(CheckResult {
            at: millis(now),
            took: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            is_good,
            why,
        });
    }

    /// Goes over to a state.
    pub(super) fn turn(&mut self, state: CheckState, now: SystemTime) {
        self.state = state;
        self.since = now;
    }
}

/// Milliseconds since 1970.
pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::api::types::Probe;

    fn check(rise: u32, fall: u32) -> Check {
        Check {
            rise,
            fall,
            ..Check::new(Probe::Tcp {})
        }
    }

    /// The states after each of some results: `+` good, `-` bad, `?` unknown.
    fn states(first: CheckState, rise: u32, fall: u32, results: &str) -> String {
        let mut health = Health::new(first, SystemTime::UNIX_EPOCH);
        let states = results.chars().zip(1..).map(|(result, second)| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            let outcome = match result {
                '+' => Outcome::Good("yes".into()),
                '-' => Outcome::Bad("no".into()),
                _ => Outcome::Unknown("busy".into()),
            };
            let before = health.state;
            let has_changed = health.note(outcome, Duration::from_millis(3), &check(rise, fall), now);
            assert_eq!(has_changed, before != health.state);
            assert_eq!(has_changed, health.since == now);
            assert_eq!(health.fault.is_some(), result == '?');
            match health.state {
                CheckState::Up => 'U',
                CheckState::Down => 'd',
            }
        });
        states.collect()
    }

    #[test]
    fn the_first_good_result_is_enough_and_later_ones_have_to_be_more() {
        let (up, down) = (CheckState::Up, CheckState::Down);
        for (first, results, expected) in [
            (down, "+", "U"),
            (down, "-+++", "ddUU"),
            (down, "-+-++", "ddddU"),
            (down, "?+", "dU"),
            (up, "---", "UUd"),
            (up, "--+---", "UUUUUd"),
            (up, "--??-", "UUUUd"),
            (up, "---+-++", "UUddddU"),
            (up, "+---++---", "UUUddUUUd"),
        ] {
            let seen = states(first, 2, 3, results);
            assert_eq!(seen, expected, "{results}");
        }
        assert_eq!(states(up, 1, 1, "-+-+"), "dUdU");
    }

    #[test]
    fn a_result_is_kept_with_its_words() {
        let mut health = Health::new(CheckState::Up, SystemTime::UNIX_EPOCH);
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        health.note(
            Outcome::Bad("status 503".into()),
            Duration::from_millis(7),
            &check(2, 3),
            at,
        );
        health.note(
            Outcome::Unknown("no sockets".into()),
            Duration::ZERO,
            &check(2, 3),
            at,
        );
        let last = health.last.clone().unwrap();
        assert_eq!(
            (last.at, last.took, last.is_good, last.why.as_str()),
            (1_500, 7, false, "status 503")
        );
        assert_eq!(health.fault.as_deref(), Some("no sockets"));
        assert_eq!(health.in_a_row, 1);
    }

    proptest! {
        /// The state by counting anew for each prefix of the results.
        #[test]
        fn any_results(
            starts_up in any::<bool>(), rise in 1u32..5, fall in 1u32..5, results in vec(option_of_result(), 0..60)
        ) {
            let first = if starts_up { CheckState::Up } else { CheckState::Down };
            let text: String = results.iter().collect();
            let seen = states(first, rise, fall, &text);
            let told: Vec<char> = results.iter().copied().filter(|result| *result != '?').collect();
            let mut expected = starts_up;
            for length in 1..=told.len() {
                let row = |wanted| told[..length].iter().rev().take_while(|result| **result == wanted).count();
                if expected && row('-') >= fall as usize {
                    expected = false;
                } else if !expected && (row('+') >= rise as usize || length == 1 && told[0] == '+') {
                    expected = true;
                }
            }
            if let Some(last) = seen.chars().last() {
                prop_assert_eq!(last == 'U', expected, "{} {}", text, seen);
            }
        }
    }

    fn option_of_result() -> impl Strategy<Value = char> {
        prop_oneof![4 => Just('+'), 4 => Just('-'), 1 => Just('?')]
    }
}
