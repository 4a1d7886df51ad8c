//! Child processes whose failures explain themselves, and that never outlive their guard.

use std::{
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long a command that ends by itself may take, unless a caller says otherwise.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// Runs `command` to its end, at most `limit` long, and returns what it wrote and its status, whatever that is.
///
/// # Errors
///
/// When it cannot be started, or has not ended within `limit` (it is killed then).
pub fn output(command: Command, limit: Duration) -> Result<Output> {
    output_fed(command, "", limit)
}

/// As [`output`], with this on the command's standard input.
///
/// # Errors
///
/// As [`output`].
pub fn output_fed(command: Command, input: &str, limit: Duration) -> Result<Output> {
    let shown = show(&command);
    let started = Instant::now();
    let output = assert_cmd::Command::from_std(command)
        .write_stdin(input)
        .timeout(limit)
        .output()
        .map_err(|error| explain_start(error, &shown))?;
    // A killed command has no exit code: tell a time-out from a command that was killed by someone else. The
    // wait is in whole milliseconds, rounded down.
    if output.status.code().is_none() && started.elapsed() + Duration::from_millis(2) >= limit {
        bail!(
            "`{shown}` had not ended after {} s{}",
            limit.as_secs_f32(),
            show_stderr(&output)
        );
    }
    Ok(output)
}

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
///
/// When it cannot be started, takes longer than [`COMMAND_LIMIT`], or ends with a status other than
/// 0; the error carries the command, the status and what it wrote to standard error.
pub fn run(command: Command) -> Result<String> {
    let shown = show(&command);
    let output = output(command, COMMAND_LIMIT)?;
    if !output.status.success() {
        bail!("`{shown}` failed, {}{}", output.status, show_stderr(&output));
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` wrote what is no UTF-8"))
}

/// A process that runs beside the test; killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    shown: String,
}

impl Process {
    /// Starts `command` in a process group of its own, so that a Ctrl-C on the terminal reaches only
    /// the lab, which then ends its processes in the right order.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let shown = show(&command);
        let child = command
            .process_group(0)
            .spawn()
            .map_err(|error| explain_start(error, &shown))?;
        Ok(Self { child, shown })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its status if it has ended, `None` while it runs.
    ///
    /// # Errors
    ///
    /// When the kernel cannot tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("asking for the status of `{}`", self.shown))
    }

    /// Sends `signal`; nothing happens when the process has ended.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Once reaped, the id may belong to someone else.
        if self.ended()?.is_none() {
            let pid = Pid::from_raw(self.child.id().try_into().context("a process id beyond pid_t")?);
            kill(pid, signal).with_context(|| format!("sending {signal} to `{}`", self.shown))?;
        }
        Ok(())
    }

    /// Waits for its end, at most `limit` long.
    ///
    /// # Errors
    ///
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("`{}` had not ended after {} s", self.shown, limit.as_secs_f32());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it with SIGKILL and reaps it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child
            .kill()
            .with_context(|| format!("killing `{}`", self.shown))?;
        self.child
            .wait()
            .with_context(|| format!("waiting for `{}`", self.shown))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

/// The command as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    words.join(" ")
}

fn show_stderr(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    match text.trim_end() {
        "" => String::from(", without a word on standard error"),
        text => format!(":\n{text}"),
    }
}

fn explain_start(error: io::Error, shown: &str) -> anyhow::Error {
    let hint = if error.kind() == io::ErrorKind::NotFound {
        ": it is not installed, or not in PATH"
    } else {
        ""
    };
    anyhow::Error::new(error).context(format!("starting `{shown}`{hint}"))
}
