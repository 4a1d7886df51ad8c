//! When a check is made: each has its own turn, and no two stay together for long.
//!
//! Pure: chance is told, as a number from 0 to 1.

use std::time::Duration;

use crate::api::types::Check;

/// Within this time the first one of a check is made.
const FIRST: Duration = Duration::from_millis(200);

/// The wait before the first one.
pub(super) fn first(check: &Check, chance: f64) -> Duration {
    FIRST
        .min(check.interval.duration())
        .mul_f64(chance.clamp(0.0, 1.0))
}

/// The time from one start to the next: the interval or less, so that what goes wrong is seen in time.
pub(super) fn next(check: &Check, chance: f64) -> Duration {
    let share = f64::from(check.jitter.min(Check::MOST_JITTER)) / 100.0;
    check
        .interval
        .duration()
        .mul_f64(1.0 - share * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::types::{Probe, Span};

    fn check(interval: u64, jitter: u32) -> Check {
        Check {
            interval: Span::from_millis(interval),
            jitter,
            ..Check::new(Probe::Tcp {})
        }
    }

    #[test]
    fn waits_are_the_interval_less_some_of_it() {
        assert_eq!(next(&check(2_000, 10), 0.0), Duration::from_millis(2_000));
        assert_eq!(next(&check(2_000, 10), 1.0), Duration::from_millis(1_800));
        assert_eq!(next(&check(2_000, 50), 0.5), Duration::from_millis(1_500));
        assert_eq!(next(&check(2_000, 0), 0.7), Duration::from_millis(2_000));
        assert_eq!(first(&check(2_000, 10), 0.5), Duration::from_millis(100));
        assert_eq!(first(&check(20, 10), 0.5), Duration::from_millis(10));
    }

    proptest! {
        #[test]
        fn a_check_is_never_late_and_never_without_rest(
            interval in 10u64..86_400_000, jitter in 0u32..=50, chance in 0.0f64..=1.0
        ) {
            let check = check(interval, jitter);
            let wait = next(&check, chance);
            prop_assert!(wait <= check.interval.duration());
            prop_assert!(wait >= check.interval.duration() / 2 - Duration::from_micros(1));
            prop_assert!(first(&check, chance) <= check.interval.duration().min(FIRST));
        }
    }
}
