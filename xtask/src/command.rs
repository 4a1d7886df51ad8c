//! Running other programs: their output, their status, and a limit on their time.

use std::{
    io::Read as _,
    iter,
    path::Path,
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
    command.status().with_context(|| not_started(command))
}

/// Runs `command` and gives what it wrote to its standard output.
///
/// # Errors
/// It cannot be started, or failed; the error has what it complained of.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| not_started(command))?;
    if !output.status.success() {
        bail!(
            "`{}`: {}",
            line(command),
            complaint(&output.stderr, output.status)
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote no text", line(command)))
}

/// Runs `command` silently and ends it when it is not done within `limit`.
///
/// # Errors
/// It cannot be started, failed, or took too long; the error has what it complained of.
pub(crate) fn silently(command: &mut Command, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| not_started(command))?;
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
                bail!("`{}`: {}", line(command), complaint(&written, status));
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

/// The command as one would type it: the program without its directory, and nothing quoted.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words = iter::once(program.file_name().unwrap_or(program.as_os_str())).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn not_started(command: &Command) -> String {
    format!("cannot run {}", command.get_program().display())
}

/// The line that says what went wrong: the first that calls itself an error, else the last.
fn complaint(stderr: &[u8], status: ExitStatus) -> String {
    let text = String::from_utf8_lossy(stderr);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines
        .clone()
        .find(|line| ["error:", "E: "].iter().any(|prefix| line.starts_with(prefix)));
    error
        .or_else(|| lines.next_back())
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
    fn a_failure_shows_what_the_program_complained_of() {
        let error = output(&mut shell("echo first >&2; echo second >&2; exit 3")).expect_err("status 3");
        assert!(error.to_string().ends_with(": second"), "{error}");
        let script = "echo info; echo 'error: no route' >&2; echo '  0: frame' >&2; exit 1";
        let error = output(&mut shell(script)).expect_err("status 1");
        assert!(error.to_string().ends_with(": error: no route"), "{error}");
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
