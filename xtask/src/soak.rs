//! `cargo xtask soak`: operations by chance against a model in the lab, for as long as one likes.

use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use clap::Args;

use crate::{
    command,
    run::BINARY_VARIABLE,
    setup::{Needs, setup},
    workspace::{Profile, Workspace, require_root},
};

#[derive(Args)]
pub(crate) struct SoakArgs {
    /// How long to play
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Play the operations of this seed, as one that failed has named it; else those of another seed each time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Play so many operations, however long they take
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    operations: Option<u64>,
}

/// Builds the agent and plays.
///
/// # Errors
/// Not root, no tool chain or test package, or a failed build. What the game finds is the exit code.
pub(crate) fn run(workspace: &Workspace, args: &SoakArgs) -> Result<ExitCode> {
    require_root("soak")?;
    setup(workspace, Needs::EVERYTHING)?;
    workspace.build(Profile::Dev, &["--package", "lvs-xdp", "--bin", "lvs-xdp"])?;
    let seed = args.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs()
    });
    let (budget, amount) = match args.operations {
        Some(operations) => ("LVS_XDP_SOAK_OPERATIONS", operations),
        None => ("LVS_XDP_SOAK_MINUTES", args.minutes),
    };
    let mut cargo = workspace.cargo();
    cargo
        .args([
            "test",
            "--package",
            "lvs-xdp-tests",
            "--test",
            "soak",
            "--",
            "--nocapture",
        ])
        .env(BINARY_VARIABLE, workspace.binary(Profile::Dev, "lvs-xdp"))
        .env("LVS_XDP_SOAK_SEED", seed.to_string())
        .env(budget, amount.to_string());
    Ok(command::exit_code(command::status(&mut cargo)?))
}
