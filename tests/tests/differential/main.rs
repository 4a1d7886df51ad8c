//! The program in the kernel and the same code on the host decide alike: about a million frames of a grammar that
//! knows what a director meets, damaged or not, in long sequences over equal tables.

mod grammar;
mod host;
mod pair;
mod random;
mod services;

use std::{thread, time::Instant};

use lvs_xdp_common::reason::Reason;

use self::{grammar::Grammar, pair::Pair, random::Random};

/// Names another seed than [`SEED`].
const SEED_VARIABLE: &str = "LVS_XDP_SEED";
/// The seed where none is named: a run can be repeated.
const SEED: u64 = 2026;
/// Sequences at once, each with directors and a seed of its own.
const SEQUENCES: u64 = 2;
/// Frames of each.
const FRAMES: u32 = 500_000;
/// After so many frames some of the configuration changes.
const CHANGE_EVERY: u32 = 500;
/// After so many frames the clock goes on, and the tables are compared.
const CLOCK_EVERY: u32 = 400;
/// After so many frames the connection table is said to be moved for [`MIGRATION`] frames.
const MIGRATE_EVERY: u32 = 50_000;
const MIGRATION: u32 = 200;

/// What needs a flood, a frame without headroom, a coincidence, or a defect.
const ABSENT: [Reason; 4] = [
    Reason::NoDestinationQuiet,
    Reason::RewriteFailed,
    Reason::TagCollision,
    Reason::Internal,
];

/// The MAC address of another director.
const PEER: [u8; 6] = [0x02, 0, 0, 0, 2, 201];

#[test]
fn kernel_and_host_decide_alike() {
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(seed) => seed.parse().expect("LVS_XDP_SEED is a number"),
        Err(_) => SEED,
    };
    println!("{SEQUENCES} x {FRAMES} frames from the seed {seed} ({SEED_VARIABLE} names another)");
    let begun = Instant::now();
    let met: Vec<_> = thread::scope(|scope| {
        let sequences = (0..SEQUENCES).map(|number| scope.spawn(move || compare(seed.wrapping_add(number))));
        let sequences: Vec<_> = sequences.collect();
        let met = sequences.into_iter().map(thread::ScopedJoinHandle::join);
        met.map(|met| met.expect("kernel and host decide alike"))
            .collect()
    });
    println!("{:.1} s", begun.elapsed().as_secs_f64());
    let of = |reason: Reason| met.iter().map(|met| met[reason as usize]).sum::<u32>();
    for &reason in Reason::ALL {
        println!("{:>22} {}", reason.name(), of(reason));
    }
    for &reason in Reason::ALL {
        assert_eq!(of(reason) == 0, ABSENT.contains(&reason), "{}", reason.name());
    }
}

/// Compares one sequence of frames; how often each reason was met.
fn compare(seed: u64) -> [u32; Reason::ALL.len()] {
    let mut grammar = Grammar::new(Random::new(seed));
    let mut pair = Pair::new();
    let mut seconds = 1000;
    let mut met = [0; Reason::ALL.len()];
    for number in 0..FRAMES {
        if number % CHANGE_EVERY == CHANGE_EVERY - 1 {
            pair.change(grammar.random());
        }
        if number % CLOCK_EVERY == CLOCK_EVERY - 1 {
            // Entries expire at one second or another, at the edge and far beyond it.
            seconds += grammar.random().of(&[1, 5, 10, 11, 30, 60, 61]);
            pair.set_clock(seconds);
            pair.compare_tables(number);
        }
        match number % MIGRATE_EVERY {
            0 => pair.set_migrating(true),
            MIGRATION => pair.set_migrating(false),
            _ => {}
        }
        let frame = grammar.frame();
        met[pair.compare(number, &frame) as usize] += 1;
    }
    pair.compare_tables(FRAMES);
    met
}
