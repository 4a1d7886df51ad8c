//! The agent dies, the disk fills up, events are lost: what it was told stays as it was, or is as it is to be.

mod disk;
mod events;
mod full;
mod kills;
// What it watches is in debug builds only.
#[cfg(debug_assertions)]
mod points;
mod tables;
