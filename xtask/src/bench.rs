//! `cargo xtask bench`: what lvs-xdp costs.

use std::{
    env::{self, consts::ARCH},
    process::{Command, ExitCode},
};

use anyhow::{Result, anyhow, bail};

use crate::{
    bench_args::BenchArgs,
    command,
    ebpf::{self, Program},
    run::{BINARY_VARIABLE, become_program},
    setup::{Needs, kernel, machine, setup},
    workspace::{Profile, Workspace, require_root},
};

/// The programs that lvs-xdp is measured with.
pub(crate) const FLOORS: Program = Program {
    package: "lvs-xdp-floors",
    binary: "floors",
};

/// The byte order of this machine, and so of its kernel, as cargo names it.
pub(crate) const ENDIAN: &str = if cfg!(target_endian = "big") {
    "big"
} else {
    "little"
};

/// The environment variable that names the object with the floors to the benchmark.
const FLOORS_VARIABLE: &str = "LVS_XDP_FLOORS";

/// Builds the benchmark, and all optimized, and becomes it with the words that this program was given for it.
///
/// # Errors
/// Not root, no tool chain or virtual machine, or a failed build; otherwise this does not return.
pub(crate) fn run(workspace: &Workspace, args: &BenchArgs) -> Result<ExitCode> {
    require_root("bench")?;
    setup(
        workspace,
        if args.ipvs {
            Needs::Kernels(kernel::TESTED)
        } else {
            Needs::Lab
        },
    )?;
    let packages = ["--package", "lvs-xdp", "--package", "lvs-xdp-bench"];
    let programs = ["--bin", "lvs-xdp", "--bin", "lvs-xdp-bench"];
    workspace.build(Profile::Release, &[packages, programs].concat())?;

    let toolchain = ebpf::Toolchain::find(workspace.tools_dir())
        .map_err(|missing| anyhow!("the eBPF tool chain that was set up is gone: {}", missing.reason))?;
    let mut floors = toolchain.command(["cargo", "build"], FLOORS, ARCH, ENDIAN);
    floors.current_dir(workspace.root());
    if !command::status(&mut floors)?.success() {
        bail!("`{}` failed: see above", command::line(&floors));
    }

    // Where it was called: its files are named from there.
    let mut program = Command::new(workspace.binary(Profile::Release, "lvs-xdp-bench"));
    program
        .args(env::args_os().skip_while(|word| word != "bench").skip(1))
        .env(BINARY_VARIABLE, workspace.binary(Profile::Release, "lvs-xdp"))
        .env(machine::VARIABLE, machine::directory(workspace))
        .env(FLOORS_VARIABLE, toolchain.object(FLOORS, ENDIAN));
    become_program(program)
}
