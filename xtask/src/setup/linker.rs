//! bpf-linker: at a pinned version, in the target directory.

use anyhow::Result;

use super::{Row, tool::CargoTool};
use crate::workspace::Workspace;

/// Where `ebpf::linker` looks for it.
const LINKER: CargoTool = CargoTool {
    name: "bpf-linker",
    version: "0.10.3",
    takes: "a minute or two",
};

/// The LLVM whose interface this version calls, in the tool chain's own library.
pub(super) const LLVM_MAJOR: u32 = 22;

/// Builds bpf-linker from crates.io unless it is there.
///
/// # Errors
/// Cargo cannot download or compile it.
pub(super) fn ensure(workspace: &Workspace) -> Result<()> {
    LINKER.ensure(workspace).map(drop)
}

pub(super) fn report(workspace: &Workspace) -> Row {
    Row {
        what: LINKER.name.into(),
        found: LINKER.find(workspace),
    }
}
