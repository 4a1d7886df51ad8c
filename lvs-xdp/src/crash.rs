//! Points at which a debug build kills itself, so that tests can have an agent die at each of them: `LVS_XDP_CRASH`
//! names the work, `start` or `change`, and the number of the point in it, as in `change:17`. The points are each
//! write into a shared table ([`lvs_xdp_common::crash`]), and what [`point`] marks: steps towards the disk, and calls
//! that change a map. A release build has none of it, and looks for no such variable.

/// What an agent is at when it is to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// It starts, and takes over what is pinned.
    Start,
    /// It makes the first table that a client has sent live, and settles it.
    Change,
}

pub(crate) use lvs_xdp_common::crash::point;

/// This thread begins a work.
pub(crate) fn begin(work: Work) {
    #[cfg(debug_assertions)]
    watch::begin(work);
    #[cfg(not(debug_assertions))]
    let _ = work;
}

/// This thread has done what it has begun.
pub(crate) fn end() {
    #[cfg(debug_assertions)]
    watch::end();
}

#[cfg(debug_assertions)]
mod watch {
    use std::cell::Cell;

    use nix::sys::signal::{Signal, raise};

    use super::Work;

    /// The environment variable.
    const VARIABLE: &str = "LVS_XDP_CRASH";

    thread_local! {
        /// So many points are left until the end, while the work goes on.
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
        /// The work was begun; the next of its kind is let be.
        static HAS_BEGUN: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn begin(work: Work) {
        let Ok(wanted) = std::env::var(VARIABLE) else {
            return;
        };
        let name = match work {
            Work::Start => "start:",
            Work::Change => "change:",
        };
        if let Some(number) = wanted.strip_prefix(name)
            && !HAS_BEGUN.replace(true)
        {
            LEFT.set(number.parse().ok());
            lvs_xdp_common::crash::watch(at_point);
        }
    }

    pub(super) fn end() {
        LEFT.set(None);
    }

    fn at_point() {
        match LEFT.get() {
            Some(0 | 1) => {
                // Nothing runs after this: no handler, no destructor.
                let _ = raise(Signal::SIGKILL);
            }
            left => LEFT.set(left.map(|left| left - 1)),
        }
    }
}
