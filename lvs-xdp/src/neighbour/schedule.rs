//! When an address is asked for next, and how: the timing described in [the module](super).

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// From one unicast probe to the next.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(750);
/// How long the known MAC address has for its answer. A busy real server that needs longer
/// costs a broadcast, nothing else.
pub(super) const ANSWER_TIME: Duration = Duration::from_millis(250);
/// From one broadcast probe to the next.
pub(super) const BROADCAST_INTERVAL: Duration = Duration::from_millis(750);
/// Unanswered broadcasts after which nobody is there.
pub(super) const BROADCASTS: u8 = 3;
/// How often route and entry of an address that has no MAC address are looked at again. An
/// unresolved entry is three broadcasts of the kernel's, a second apart, so this is about
/// one broadcast in 1.3 s.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Look at route and entry again, and have the kernel resolve it.
    Refresh,
    /// Ask the known MAC address.
    Unicast,
    /// Ask everybody.
    Broadcast,
    /// Nobody answered: the entry has failed.
    GiveUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// There is nothing to ask: not on-link, or the administrator set the MAC address.
    Idle,
    /// The MAC address is not known; the kernel asks for it.
    Resolving,
    /// It is known and was confirmed.
    Confirmed,
    /// It was asked, and then everybody, so many times.
    Asking { broadcasts: u8 },
}

/// The timing of one address.
#[derive(Debug)]
pub(super) struct Schedule {
    mode: Mode,
    /// When the next step is due; meaningless in [`Mode::Idle`].
    due: Instant,
}

impl Schedule {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            mode: Mode::Idle,
            due: now,
        }
    }

    /// There is nothing to ask.
    pub(super) fn idle(&mut self) {
        self.mode = Mode::Idle;
    }

    /// The MAC address is not known (any more).
    pub(super) fn resolving(&mut self, now: Instant) {
        if self.mode != Mode::Resolving {
            *self = Self {
                mode: Mode::Resolving,
                due: now + RETRY_INTERVAL,
            };
        }
    }

    /// The MAC address is known; `changed` says that it is another one than before. The address
    /// itself spreads the probes of many over the interval.
    pub(super) fn known(&mut self, changed: bool, address: IpAddr, now: Instant) {
        match self.mode {
            Mode::Confirmed | Mode::Asking { .. } if !changed => {}
            Mode::Idle | Mode::Resolving | Mode::Confirmed | Mode::Asking { .. } => {
                let last_octet = match address {
                    IpAddr::V4(address) => address.octets()[3],
                    IpAddr::V6(address) => address.octets()[15],
                };
                let spread = PROBE_INTERVAL * u32::from(last_octet) / 256;
                *self = Self {
                    mode: Mode::Confirmed,
                    due: now + spread,
                };
            }
        }
    }

    /// An answer came, from the known MAC address or from another one. Another one is no
    /// confirmation: the kernel has not (yet) taken it. But somebody is there.
    pub(super) fn answered(&mut self, from_known: bool, now: Instant) {
        if let Mode::Asking { broadcasts } = &mut self.mode {
            if from_known {
                *self = Self {
                    mode: Mode::Confirmed,
                    due: now + PROBE_INTERVAL,
                };
            } else {
                *broadcasts = (*broadcasts).min(1);
            }
        }
    }

    /// When the next step is due, if ever.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.mode != Mode::Idle).then_some(self.due)
    }

    /// The step that is due at `now`, if one is; what follows on it is set.
    pub(super) fn step(&mut self, now: Instant) -> Option<Step> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        let (mode, wait, step) = match self.mode {
            Mode::Idle => return None,
            Mode::Resolving => (Mode::Resolving, RETRY_INTERVAL, Step::Refresh),
            Mode::Confirmed => (Mode::Asking { broadcasts: 0 }, ANSWER_TIME, Step::Unicast),
            Mode::Asking { broadcasts } if broadcasts < BROADCASTS => (
                Mode::Asking {
                    broadcasts: broadcasts + 1,
                },
                BROADCAST_INTERVAL,
                Step::Broadcast,
            ),
            Mode::Asking { .. } => (Mode::Resolving, RETRY_INTERVAL, Step::GiveUp),
        };
        *self = Self {
            mode,
            due: now + wait,
        };
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 0));

    /// Takes every step up to `until` and says when each was taken, in milliseconds.
    fn steps(schedule: &mut Schedule, from: Instant, until: Duration) -> Vec<(u128, Step)> {
        let mut steps = Vec::new();
        while let Some(due) = schedule.due().filter(|due| *due <= from + until) {
            steps.push((
                (due - from).as_millis(),
                schedule.step(due).expect("a step is due"),
            ));
        }
        steps
    }

    #[test]
    fn a_silent_neighbour_is_asked_alone_then_by_broadcast_then_given_up() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.known(true, ADDRESS, start);
        assert_eq!(
            steps(&mut schedule, start, Duration::from_secs(5)),
            [
                (0, Step::Unicast),
                (250, Step::Broadcast),
                (1000, Step::Broadcast),
                (1750, Step::Broadcast),
                (2500, Step::GiveUp),
                (4500, Step::Refresh),
            ]
        );
    }

    #[test]
    fn an_answer_from_the_known_mac_ends_the_question() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.known(true, ADDRESS, start);
        for round in 0..10 {
            let now = start + PROBE_INTERVAL * round;
            assert_eq!(schedule.step(now), Some(Step::Unicast), "round {round}");
            schedule.answered(true, now);
        }
    }

    #[test]
    fn an_answer_from_another_mac_keeps_the_broadcasts_going() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.known(true, ADDRESS, start);
        assert_eq!(schedule.step(start), Some(Step::Unicast));
        for _ in 0..10 {
            let due = schedule.due().expect("it is being asked for");
            assert_eq!(schedule.step(due), Some(Step::Broadcast));
            schedule.answered(false, due);
        }
    }

    #[test]
    fn the_same_mac_again_does_not_delay_the_next_probe() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.known(true, ADDRESS, start);
        schedule.step(start);
        let due = schedule.due();
        schedule.known(false, ADDRESS, start + ANSWER_TIME / 2);
        assert_eq!(schedule.due(), due);
    }

    #[test]
    fn idle_is_never_due() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        schedule.resolving(now);
        schedule.idle();
        assert_eq!(schedule.step(now + Duration::from_secs(3600)), None);
    }

    #[test]
    fn probes_of_a_whole_network_are_spread_over_the_interval() {
        let now = Instant::now();
        let due = |octet| {
            let mut schedule = Schedule::new(now);
            schedule.known(true, IpAddr::from([192, 0, 2, octet]), now);
            schedule.due().expect("a probe is due") - now
        };
        assert_eq!(due(0), Duration::ZERO);
        assert_eq!(due(128), PROBE_INTERVAL / 2);
        assert!(due(255) < PROBE_INTERVAL);
    }
}
