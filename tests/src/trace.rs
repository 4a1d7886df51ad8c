//! A program that is stopped at a system call of its own: for a kill at a moment of the test's choice.

use std::{
    os::unix::process::CommandExt as _,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::process::Process;

/// How long a program may take from one stop to the next.
const LIMIT: Duration = Duration::from_secs(30);

/// A program's first thread under ptrace(2), by the thread that has started it; killed when dropped.
#[derive(Debug)]
pub struct Traced {
    process: Process,
    pid: Pid,
}

impl Traced {
    /// Starts `command`, stopped before its first instruction.
    ///
    /// # Errors
    ///
    /// When it cannot be started or traced.
    pub fn spawn(mut command: Command) -> Result<Self> {
        // SAFETY: the closure makes one system call, and neither allocates nor takes a lock.
        unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
        let process = Process::spawn(command)?;
        let pid = Pid::from_raw(process.id().try_into().context("a process id beyond pid_t")?);
        let stopped = waitpid(pid, None)?;
        ensure!(
            stopped == WaitStatus::Stopped(pid, Signal::SIGTRAP),
            "the traced program should be stopped: {stopped:?}"
        );
        ptrace::setoptions(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)?;
        Ok(Self { process, pid })
    }

    /// Lets it run until it enters the system call `number` with `first` as its first argument, any
    /// where that is `None`. It is stopped then, and the call has not been made.
    ///
    /// # Errors
    ///
    /// When it ends before, or does not come there within 30 s.
    pub fn run_to(&mut self, number: libc::c_long, first: Option<u64>) -> Result<()> {
        let number = u64::try_from(number)?;
        let deadline = Instant::now() + LIMIT;
        let mut signal = None;
        loop {
            ptrace::syscall(self.pid, signal.take())?;
            match waitpid(self.pid, None)? {
                WaitStatus::PtraceSyscall(_) => {
                    let info = ptrace::syscall_info(self.pid)?;
                    if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                        // SAFETY: `op` says that this is the variant.
                        let entry = unsafe { info.u.entry };
                        if entry.nr == number && first.is_none_or(|first| entry.args[0] == first) {
                            return Ok(());
                        }
                    }
                }
                // Of an exec(2), and no signal that anybody has sent.
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
                WaitStatus::Stopped(_, received) => signal = Some(received),
                ended => bail!("the traced program did not come to system call {number}: {ended:?}"),
            }
            ensure!(
                Instant::now() < deadline,
                "the traced program did not come to system call {number} in {} s",
                LIMIT.as_secs()
            );
        }
    }

    /// Kills it with SIGKILL where it is.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        Ok(())
    }
}
