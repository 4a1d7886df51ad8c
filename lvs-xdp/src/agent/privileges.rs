//! Which capabilities the agent keeps once it is set up, and which the programs of health checks get.

use anyhow::Context as _;
use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};
use tracing::{info, warn};

/// What the agent needs as long as it runs.
const KEPT: CapabilitySet = CapabilitySet::BPF // maps and programs
    .union(CapabilitySet::NET_ADMIN) // to attach programs, neighbours, SO_MARK
    .union(CapabilitySet::NET_RAW) // ARP and neighbour discovery, sockets bound to a device
    .union(CapabilitySet::PERFMON); // the programs of health checks, loaded for the first one

/// What a program that a health check runs may have: `ping` needs it.
const OF_PROGRAMS: CapabilitySet = CapabilitySet::NET_RAW;

/// Refuses to begin without what is needed.
///
/// # Errors
///
/// Names the capabilities that are missing.
pub(super) fn require() -> anyhow::Result<()> {
    let held = capabilities(None).context("cannot ask for the agent's capabilities")?;
    let missing = KEPT.difference(held.effective);
    anyhow::ensure!(
        missing.is_empty(),
        "the agent lacks {}: give it to it (CapabilityBoundingSet= of a systemd unit, --cap-add of a container)",
        names(missing)
    );
    Ok(())
}

/// Drops all capabilities of this thread but [`KEPT`], and of all programs that it starts but [`OF_PROGRAMS`]. Threads
/// inherit it, so it comes before there are any.
///
/// # Errors
///
/// Where the kernel refuses to take one away.
pub(super) fn drop_unneeded() -> anyhow::Result<()> {
    set_no_new_privs(true).context("cannot keep programs from gaining privileges")?;
    clear_ambient_capability_set().context("cannot clear the ambient capabilities")?;
    for capability in CapabilitySet::all().difference(OF_PROGRAMS).iter() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(Errno::PERM) => {
                warn!(
                    "the agent lacks CAP_SETPCAP: programs of health checks get the capabilities {}, too",
                    names(KEPT)
                );
                break;
            }
            Err(error) => return Err(error).context("cannot limit the capabilities of programs"),
        }
    }
    let kept = CapabilitySets {
        effective: KEPT,
        permitted: KEPT,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept).context("cannot drop capabilities")?;
    info!(
        "capabilities: keeps {}; programs of health checks get {}",
        names(KEPT),
        names(OF_PROGRAMS)
    );
    Ok(())
}

/// As people write them: `CAP_BPF CAP_NET_ADMIN`.
fn names(set: CapabilitySet) -> String {
    let names: Vec<_> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_their_kernels_names() {
        assert_eq!(names(KEPT), "CAP_NET_ADMIN CAP_NET_RAW CAP_PERFMON CAP_BPF");
        assert!(KEPT.contains(OF_PROGRAMS));
    }
}
