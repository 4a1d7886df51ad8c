use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn seen(syns: u64, repeated: u64, acknowledged: u64) -> Handshakes {
    Handshakes {
        syns,
        repeated,
        acknowledged,
        microseconds: acknowledged * 1_000,
    }
}

/// The verdicts, a letter each.
fn letters(verdicts: &[Verdict]) -> String {
    let letter = |verdict: &Verdict| match verdict {
        Verdict::Unknown => '?',
        Verdict::Good => '+',
        Verdict::AsFellows => '=',
        Verdict::Spared => 's',
        Verdict::Bad => '-',
    };
    verdicts.iter().map(letter).collect()
}

#[test]
fn one_fails_where_its_fellows_do_clearly_better() {
    let probe = PassiveProbe::default();
    let (well, dead, few) = (seen(100, 1, 99), seen(100, 180, 0), seen(19, 19, 0));
    let half = seen(100, 50, 50);
    for (windows, out, expected) in [
        (vec![well, dead], 0, "+-"),
        // Slow ones are acknowledged in the end.
        (vec![well, seen(100, 80, 98)], 0, "+-"),
        (vec![well, half], 0, "++"),
        (vec![well, seen(100, 51, 50)], 0, "+-"),
        // Nobody to compare it with, or nothing to see.
        (vec![dead], 0, "="),
        (vec![dead, few], 0, "=?"),
        (vec![well, few], 0, "+?"),
        (vec![dead, seen(5, 0, 5), seen(15, 0, 15)], 0, "-??"),
        (vec![], 0, ""),
        // A flood, with clients who are answered among it, and one that answers none of these.
        (vec![seen(1000, 0, 40), seen(1000, 3, 50), dead], 0, "==="),
        (vec![seen(1000, 0, 600), seen(1000, 3, 610), dead], 0, "++-"),
        // All, or most of them.
        (vec![dead, dead, dead], 0, "==="),
        (vec![dead, dead, dead, well], 0, "===+"),
        (vec![dead, dead, well, well], 0, "--++"),
        // No more than half are out, and the worst first.
        (vec![dead, well], 1, "s+"),
        (vec![dead, well, well], 1, "-++"),
        (vec![seen(100, 0, 20), dead, well, seen(900, 0, 900)], 1, "s-++"),
    ] {
        assert_eq!(letters(&judge(&probe, &windows, out)), expected, "{windows:?}");
    }
}

proptest! {
    /// Whatever is seen: not all fail, never more than half are out, and nobody who does as well as all together.
    #[test]
    fn a_service_stays(
        windows in vec((0u64..200, 0u64..300, 0u64..200), 0..8), out in 0usize..8, share in 1u32..100,
        connections in 1u32..50
    ) {
        let probe = PassiveProbe { share, connections, ..PassiveProbe::default() };
        let windows: Vec<_> = windows.into_iter().map(|(syns, repeated, acks)| seen(syns, repeated, acks)).collect();
        let verdicts = judge(&probe, &windows, out);
        let bad = verdicts.iter().filter(|verdict| **verdict == Verdict::Bad).count();
        prop_assert!(bad == 0 || bad + out <= (windows.len() + out) / 2);
        let syns: u64 = windows.iter().map(|one| one.syns).sum();
        let troubled: u64 = windows.iter().map(Handshakes::troubled).sum();
        for (one, verdict) in windows.iter().zip(verdicts) {
            if verdict == Verdict::Bad {
                prop_assert!(one.syns >= u64::from(connections));
                prop_assert!(one.troubled() * 100 > u64::from(share) * one.syns);
                prop_assert!(one.troubled() * syns > troubled * one.syns);
            }
        }
    }

    /// What all have in common takes nobody out.
    #[test]
    fn a_flood_takes_nobody_out(shares in vec(50u64..=100, 1..8), out in 0usize..8) {
        let windows: Vec<_> = shares.into_iter().map(|share| seen(1_000, 0, 1_000 - 10 * share)).collect();
        let verdicts = judge(&PassiveProbe::default(), &windows, out);
        prop_assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Good | Verdict::AsFellows)));
    }
}

#[test]
fn counters_that_begin_anew_are_taken_as_they_are() {
    let total = seen(10, 2, 8);
    assert_eq!(total.since(seen(4, 2, 3)), seen(6, 0, 5));
    assert_eq!(total.since(seen(11, 0, 0)), total);
    assert_eq!(seen(10, 25, 10).troubled(), 10);
    assert_eq!(seen(10, 25, 10).troubled_percent(), Some(100));
    assert_eq!(seen(0, 3, 0).troubled_percent(), None);
    assert_eq!(
        (total.mean_microseconds(), seen(1, 0, 0).mean_microseconds()),
        (Some(1_000), None)
    );
}

/// Two real servers, second by second.
struct Played {
    watch: Watch,
    healths: [Health; 2],
    totals: [Handshakes; 2],
    second: u32,
    start: Instant,
}

impl Played {
    fn new(states: [CheckState; 2]) -> Self {
        let mut watch = Watch::default();
        watch.go_by(PassiveProbe {
            window: Span::from_millis(3_000),
            retry: Span::from_millis(5_000),
            ..PassiveProbe::default()
        });
        Self {
            watch,
            healths: states.map(|state| Health::new(state, SystemTime::UNIX_EPOCH)),
            totals: [Handshakes::default(); 2],
            second: 0,
            start: Instant::now(),
        }
    }

    fn key(number: usize) -> ServerKey {
        ServerKey {
            address: [198, 51, 100, u8::try_from(number).unwrap()].into(),
            port: 80,
        }
    }

    /// A second in which this comes; who turned.
    fn second(&mut self, came: [Handshakes; 2]) -> Vec<(usize, CheckState)> {
        for (total, came) in self.totals.iter_mut().zip(came) {
            *total = total.and(came);
        }
        let now = self.start + self.second * SECOND;
        let date = SystemTime::UNIX_EPOCH + self.second * SECOND;
        self.second += 1;
        let servers = self.healths.iter_mut().enumerate();
        let servers = servers
            .map(|(number, health)| (Self::key(number), health))
            .collect();
        let totals = self.totals;
        let index = |server: &ServerKey| usize::from(*server != Self::key(0));
        let turned = self
            .watch
            .look(servers, now, date, |server| totals[index(server)]);
        let turned = turned
            .into_iter()
            .map(|turned| (index(&turned.server), turned.state));
        turned.collect()
    }
}

#[test]
fn one_goes_out_is_tried_again_and_judged_anew() {
    use CheckState::{Down, Up};
    let mut played = Played::new([Up, Up]);
    let (well, dead, none) = (seen(20, 0, 20), seen(20, 20, 0), Handshakes::default());
    // What was before the first window counts for nothing.
    assert_eq!(played.second([seen(500, 900, 0), well]), []);
    let turns: Vec<_> = (0..3).map(|_| played.second([dead, well])).collect();
    assert_eq!(turns, [vec![], vec![], vec![(0, Down)]]);
    let last = played.healths[0].last.clone().unwrap();
    assert_eq!(
        last.why,
        "100% in trouble: 60 SYNs, 60 sent again, 0 acknowledged within 3s"
    );
    assert!(!last.is_good && played.healths[1].last.as_ref().unwrap().is_good);
    // Out, it gets nothing but what its connections send again.
    let turns: Vec<_> = (0..5)
        .flat_map(|_| played.second([seen(0, 30, 0), well]))
        .collect();
    assert_eq!(turns, [(0, Up)]);
    assert_eq!(played.healths[0].since, SystemTime::UNIX_EPOCH + 8 * SECOND);
    // It is as bad as before: the next window that has enough of it takes it out again.
    let turns: Vec<_> = (0..5).flat_map(|_| played.second([dead, well])).collect();
    assert_eq!(turns, [(0, Down)]);
    let turns: Vec<_> = (0..5).flat_map(|_| played.second([none, well])).collect();
    assert_eq!(turns, [(0, Up)]);
    let turns: Vec<_> = (0..12).flat_map(|_| played.second([well, well])).collect();
    assert_eq!(turns, []);
    assert!(played.healths[0].last.as_ref().unwrap().is_good);
}

#[test]
fn one_that_was_out_before_the_agent_began_is_tried_again() {
    use CheckState::{Down, Up};
    let mut played = Played::new([Down, Up]);
    let none = [Handshakes::default(); 2];
    let turns: Vec<_> = (0..5).flat_map(|_| played.second(none)).collect();
    assert_eq!(turns, []);
    assert_eq!(played.second(none), [(0, Up)]);
}
