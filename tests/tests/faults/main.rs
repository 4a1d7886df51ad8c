//! The agent dies, the disk fills up, events are lost: what it was told stays as it was, or is as it is to be.

mod disk;
mod kills;
mod points;
mod tables;
