//! Running other programs: their output, their status, and a limit on their time.

use std::{
    io::Read as _,
    process::{Command, ExitCode, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Runs `command` with our own standard streams.
///
/// # Errors
/// It cannot be started. A status of failure is no error: see [`exit_code`].
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command
        .status()
        .with_context(|| format!("cannot run {}", line(command)))
}

/// Runs `command` and gives what it wrote to its standard output.
///
/// # Errors
/// It cannot be started, or failed; the error has the last line it wrote to standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", line(command)))?;
    if !output.status.success() {
        bail!(
            "`{}`: {}",
            line(command),
            last_line(&output.stderr, output.status)
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote no text", line(command)))
}

/// Runs `command` silently and ends it when it is not done within `limit`.
///
/// # Errors
/// It cannot be started, failed, or took too long; the error has the last line it wrote to standard error.
pub(crate) fn silently(command: &mut Command, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", line(command)))?;
    let mut pipe = child.stderr.take().context("a piped standard error is there")?;
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    });
    loop {
        if let Some(status) = child.try_wait()? {
            let written = reader.join().unwrap_or_default();
            if !status.success() {
                bail!("`{}`: {}", line(command), last_line(&written, status));
            }
            return Ok(());
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("`{}` was not done after {} s", line(command), limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The status to end with when `status` is the result; 1 if a signal ended the program.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    match status.code().map(u8::try_from) {
        Some(Ok(code)) => ExitCode::from(code),
        _ => ExitCode::FAILURE,
    }
}

/// The command as one would type it (nothing is quoted: for messages only).
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn last_line(stderr: &[u8], status: ExitStatus) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .map_or_else(|| status.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_shows_the_last_line_of_standard_error() {
        let error = output(&mut shell("echo first >&2; echo second >&2; exit 3")).expect_err("status 3");
        assert!(error.to_string().ends_with(": second"), "{error}");
        let error = silently(&mut shell("exit 3"), Duration::from_secs(10)).expect_err("status 3");
        assert!(error.to_string().ends_with("exit status: 3"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let begun = Instant::now();
        let error = silently(&mut shell("exec sleep 60"), Duration::from_millis(100)).expect_err("too long");
        assert!(error.to_string().contains("not done after"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
