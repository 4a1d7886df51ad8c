//! The whole decision about a frame, on the host, for inputs that a fuzzer makes up: [`run`].
//!
//! An input is a description of the tables ([`tables`]) and the frames that come in, one after the other
//! ([`input`]). Nothing may panic; and what leaves must be well-formed in the eyes of a parser that no one here
//! wrote ([`oracle`]).

pub mod input;
pub mod oracle;
pub mod tables;

use lvs_xdp_common::{answer, director, frame::rewrite_macs, reason::Outcome, rewrite};

use self::{input::Input, tables::INGRESS};

/// The frame before which real servers are removed, counted from 0.
const REMOVAL: usize = 3;

/// Decides about every frame of an input, and does to each what the program would.
///
/// # Panics
///
/// Where something is wrong: that is how a fuzzer finds out.
pub fn run(input: &[u8]) {
    let Some(input) = Input::read(input) else {
        return;
    };
    let maps = tables::tables(input.settings);
    for (number, (seconds, frame)) in input.frames().enumerate() {
        if number == REMOVAL {
            tables::remove(&maps, input.settings);
        }
        maps.pass_time(seconds);
        // The slice ends where the frame does: a read past its end is a panic.
        let verdict = director::decide(frame, &maps, INGRESS);
        let mut out = frame.to_vec();
        match verdict.reason.outcome() {
            Outcome::Forward if verdict.is_special => {
                match rewrite::rewrite(&mut out, &maps, verdict.destination) {
                    Ok(()) => oracle::special(&maps, verdict.destination, frame, &out),
                    Err(reason) if reason.outcome() == Outcome::Answer => oracle::answer(reason, frame, &out),
                    Err(_) => {}
                }
            }
            Outcome::Forward => {
                rewrite_macs(&mut out, verdict.to, verdict.from).expect("what is forwarded has a header");
                oracle::forwarded(&maps, verdict.destination, frame, &out);
            }
            Outcome::Answer => {
                if answer::answer(&mut out, &maps, INGRESS, verdict.reason).is_some() {
                    oracle::answer(verdict.reason, frame, &out);
                }
            }
            // Left as it is, or thrown away.
            Outcome::Pass | Outcome::Drop => {}
        }
    }
}
