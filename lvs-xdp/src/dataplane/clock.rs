//! The clock that connections age by, as somebody reads it who has no claim to the pins.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aya::maps::{Array, MapData};
use lvs_xdp_common::abi::{Control, SECONDS_SHIFT, name};

use super::pins::{newest_program, open_map};

/// `Control` as words, which is what it is made of.
const CONTROL_WORDS: usize = size_of::<Control>() / size_of::<u64>();

/// What the tables say of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// jiffies64 when the agent has read it last, which it does every second.
    pub(crate) jiffies: u64,
    /// `CLOCK_MONOTONIC` at that moment, in nanoseconds.
    pub(crate) nanoseconds: u64,
    /// Jiffies in a second, as the tables take it.
    pub(crate) rate: u64,
}

impl Sample {
    /// Reads it from the newest generation in a directory of pins.
    ///
    /// # Errors
    ///
    /// Where nothing is pinned, or the maps are of another layout.
    pub(crate) fn read(pin_directory: &Path) -> anyhow::Result<Self> {
        let program = newest_program(pin_directory)?;
        let directory = program.parent().map(PathBuf::from).unwrap_or_default();
        let clock: Array<MapData, [u64; 2]> = open_map(&directory, name::CLOCK)?;
        let control: Array<MapData, [u64; CONTROL_WORDS]> = open_map(&directory, name::CONTROL)?;
        let [jiffies, nanoseconds] = clock.get(&0, 0).context("cannot read the clock")?;
        let control = control.get(&0, 0).context("cannot read the control row")?;
        let word = std::mem::offset_of!(Control, seconds_per_jiffy) / size_of::<u64>();
        let fraction = control.get(word).copied().unwrap_or_default();
        Ok(Self {
            jiffies,
            nanoseconds,
            // The fraction was rounded up.
            rate: ((1_u64 << SECONDS_SHIFT) + fraction / 2)
                .checked_div(fraction)
                .unwrap_or(0),
        })
    }
}
