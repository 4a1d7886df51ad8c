//! Kernels, and sandboxes on them, in which BPF cannot be had.

use std::{
    collections::BTreeMap, env::consts::ARCH, fs, io, os::unix::process::CommandExt as _, path::PathBuf,
    process::Command,
};

use anyhow::Result;
use lvs_xdp_tests::{agent::BPFFS, lab::Lab, process::output};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::{LIMIT, agent_command, agent_config, assert_parts, lab, listing, refusal};

/// Makes a system call fail in the program that the command becomes.
fn deny(command: &mut Command, call: libc::c_long, errno: Errno) -> Result<()> {
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        ARCH.try_into()?,
    )?;
    let program = BpfProgram::try_from(filter)?;
    // SAFETY: the closure makes system calls only: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(move || apply_filter(&program).map_err(|_| io::Error::last_os_error())) };
    Ok(())
}

/// Takes the BPF file system away from the program that the command becomes, and from nobody else.
fn without_bpffs(command: &mut Command) {
    let detach = || -> nix::Result<()> {
        const NONE: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
        umount2(BPFFS, MntFlags::MNT_DETACH)
    };
    // SAFETY: the closure makes system calls only; short paths are copied to the stack.
    unsafe { command.pre_exec(move || Ok(detach()?)) };
}

/// Starts agents that have been spoilt, which must be refused with these parts of one line: one that would
/// be the first on its host, and one that would take over from another. Nothing must have changed.
fn assert_no_agent_starts(spoil: impl Fn(&mut Command) -> Result<()>, parts: &[&str]) -> Result<()> {
    let mut lab = lab(&[])?;
    lab.add_service("rr")?;
    lab.agent_mut()?.terminate()?;
    let agent = lab.agent()?;
    let (pins, state) = (agent.pin_dir(), agent.state_dir());
    let left = |lab: &Lab| -> Result<_> {
        let link = lab.director().ip("-details link show dev eth0")?;
        Ok((
            listing(pins)?,
            listing(&state)?,
            fs::read(state.join("state"))?,
            link,
        ))
    };
    let before = left(&lab)?;
    let mut next = agent.command(&agent_config(&[]));
    spoil(&mut next)?;
    assert_parts(&refusal(output(next, LIMIT)?, 1)?, parts);
    assert_eq!(left(&lab)?, before);
    assert_eq!(lab.fetch("/")?, "rs1\n", "forwarding needs no agent");

    let directory = tempfile::tempdir()?;
    // Below the lab's, which removes it.
    let first_pins = pins.join("first");
    let mut first = agent_command(
        lab.client(),
        directory.path(),
        &first_pins,
        &["--interface", "eth0"],
    )?;
    spoil(&mut first)?;
    assert_parts(&refusal(output(first, LIMIT)?, 1)?, parts);
    assert_eq!(listing(directory.path())?, Vec::<PathBuf>::new());
    assert!(!first_pins.exists());
    Ok(())
}

#[test]
fn a_kernel_without_bpf() -> Result<()> {
    assert_no_agent_starts(
        |command| deny(command, libc::SYS_bpf, Errno::ENOSYS),
        &["this kernel has no BPF", "CONFIG_BPF_SYSCALL"],
    )
}

#[test]
fn a_sandbox_that_refuses_bpf() -> Result<()> {
    assert_no_agent_starts(
        |command| deny(command, libc::SYS_bpf, Errno::EPERM),
        &["CAP_BPF", "seccomp", "Operation not permitted"],
    )
}

#[test]
fn a_container_without_the_bpf_file_system() -> Result<()> {
    assert_no_agent_starts(
        |command| {
            without_bpffs(command);
            deny(command, libc::SYS_mount, Errno::EPERM)
        },
        &["BPF file system", "/sys/fs/bpf", "container"],
    )
}
