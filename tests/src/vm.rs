//! A virtual machine: another kernel on this machine's own file system, and tests that run in it.
//!
//! A kernel of Debian's boots by virtme-ng in QEMU. Its root is the host's file system, read-only or with
//! what is written kept in the guest's memory; so what runs in it - the agent, the lab, nginx, the test
//! itself - is what runs outside. The processor is emulated: a machine in a machine seldom has a KVM that
//! works, and a test must not pass by it on one machine only. An instruction costs some twenty times as
//! much as outside: tests in the guest make few requests, and measure no time.
//!
//! `cargo xtask test` has virtme-ng and the kernels in place. By hand: `cargo xtask kernels 6.12` once, then
//! `LVS_XDP_BIN=target/debug/lvs-xdp cargo test -p lvs-xdp-tests --test vm`.
//!
//! # To add a case for the guest
//!
//! Cases are in `tests/tests/vm`, a module for each subject. A case is a function `fn name() -> Result<()>`
//! which does what any end-to-end test does, with a [`Lab`](crate::lab::Lab) or a
//! [`Topology`](crate::topology::Topology); the kernel is Debian's, with all its modules, so `ip link add
//! ... type vlan`, bonds, tunnels, SCTP sockets, dummies and netem are there and load by themselves. List
//! it in the module's [`in_the_guest!`](crate::in_the_guest), which makes a test of it:
//!
//! ```text
//! in_the_guest!(a_tagged_packet_keeps_its_tag);
//!
//! fn a_tagged_packet_keeps_its_tag() -> Result<()> { ... }
//! ```
//!
//! The first of these tests that runs boots the guest, once for all of them, and there runs this very test
//! binary with the arguments it was started with: a filter holds inside as outside. Each case leaves its
//! result in a file, and its test outside reports that. All cases together have [`GUEST_LIMIT`].

use std::{
    any::Any,
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tempfile::TempDir;

use crate::{
    agent::{find_binary, tail},
    process::{Process, run},
    stale::{self, DIRECTORY_PREFIX},
};

/// How long the guest may take for all cases of a test binary, its boot included.
pub const GUEST_LIMIT: Duration = Duration::from_secs(900);

/// The series of Linux that the tests' guest runs.
pub const TESTED: &str = "6.12";
/// Names the directory with `venv/bin/vng` and `kernels/SERIES`; `vm` in cargo's target directory otherwise.
const DIRECTORY_VARIABLE: &str = "LVS_XDP_VM";
/// Set in the guest: the directory that the host reads, too.
const GUEST_VARIABLE: &str = "LVS_XDP_GUEST";
/// What a case that has passed leaves.
const PASSED: &str = "passed";

/// A kernel that can be booted.
#[derive(Debug, Clone)]
pub struct Machine {
    vng: PathBuf,
    image: PathBuf,
    /// What virtme-ng is told about the processors.
    processors: &'static [&'static str],
}

impl Machine {
    /// The machine with the kernel of a series, as `6.12`.
    ///
    /// # Errors
    ///
    /// When virtme-ng or the kernel is not in place.
    pub fn find(series: &str) -> Result<Self> {
        let directory = match env::var_os(DIRECTORY_VARIABLE) {
            Some(directory) => PathBuf::from(directory),
            // The binary is target/PROFILE/lvs-xdp.
            None => find_binary()?.with_file_name("..").join("vm"),
        };
        let missing = || {
            format!(
                "there is no virtual machine with Linux {series} in {}: `cargo xtask kernels {series}` \
                 puts it there",
                directory.display()
            )
        };
        let directory = fs::canonicalize(&directory).with_context(missing)?;
        let vng = directory.join("venv/bin/vng");
        ensure!(vng.is_file(), missing());
        let image = fs::read_dir(directory.join("kernels").join(series).join("boot"))
            .with_context(missing)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
            })
            .with_context(missing)?;
        Ok(Self {
            vng,
            image,
            processors: &["--cpus=2"],
        })
    }

    /// The same with one processor whose clock counts instructions, one a nanosecond: what is measured there is the
    /// same on every machine and at every run. Waiting takes no time, but is counted.
    pub fn counting_instructions(self) -> Self {
        Self {
            processors: &["--cpus=1", "--qemu-opts=-icount shift=0,sleep=off"],
            ..self
        }
    }

    /// The kernel's release, as `uname -r` has it.
    pub fn release(&self) -> String {
        let name = self.image.file_name().unwrap_or_default().to_string_lossy();
        name.trim_start_matches("vmlinuz-").to_owned()
    }

    /// Boots, runs `command` with its arguments and variables and with the binary under test, and ends when that ends. Only `exchange` is
    /// the host's own to write to; what the guest says on its console is `exchange/console` then, and
    /// what the command writes `exchange/log`.
    ///
    /// virtme-ng has no exit status to go by: the command leaves what it has to say in `exchange`.
    ///
    /// # Errors
    ///
    /// When it has not ended within `limit` (it is killed then).
    pub fn run(&self, command: &Command, exchange: &Path, limit: Duration) -> Result<()> {
        // Debug information is most of the binary, and it is read anew each time that the agent is asked something.
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(exchange.join("lvs-xdp")).arg(find_binary()?);
        run(strip)?;
        let script = exchange.join("run");
        fs::write(&script, guest_script(command, exchange))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;

        let mut boot = String::from("exec ");
        let shared = format!("--rwdir={}", exchange.display());
        let machine = [
            self.vng.as_os_str(),
            OsStr::new("--disable-kvm"),
            OsStr::new("--force-9p"),
            OsStr::new("--memory=2G"),
        ];
        let guest = [
            OsStr::new(&shared),
            OsStr::new("--run"),
            self.image.as_os_str(),
            OsStr::new("--"),
            script.as_os_str(),
        ];
        let processors = self.processors.iter().map(OsStr::new);
        for word in machine.into_iter().chain(processors).chain(guest) {
            write!(boot, "{} ", quoted(word))?;
        }
        // virtme-ng runs programs that are beside it.
        let mut path = self.vng.parent().unwrap_or(&self.vng).as_os_str().to_owned();
        if let Some(inherited) = env::var_os("PATH") {
            path.push(":");
            path.push(inherited);
        }
        // QEMU wants a terminal, which a test has not.
        let mut console = Command::new("script");
        console
            .args(["--quiet", "--return", "--command", &boot])
            .arg(exchange.join("console"))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut process = Process::spawn(console)?;
        process
            .wait(limit)
            .map(drop)
            .with_context(|| format!("Linux {} in QEMU: {}", self.release(), last_words(exchange)))
    }
}

/// A directory that a guest and the host both write to.
///
/// # Errors
///
/// When there is no temporary directory.
pub fn exchange_directory() -> Result<TempDir> {
    stale::remove();
    let prefix = format!("{DIRECTORY_PREFIX}{}-guest-", std::process::id());
    Ok(tempfile::Builder::new().prefix(&prefix).tempdir()?)
}

/// In a guest: the directory that it shares with the host.
pub fn guest_exchange() -> Option<PathBuf> {
    env::var_os(GUEST_VARIABLE).map(PathBuf::from)
}

/// The end of what a guest has said, for an error.
pub fn last_words(exchange: &Path) -> String {
    let log = exchange.join("log");
    if log.exists() {
        format!("the log in it says:\n{}", tail(&log))
    } else {
        format!("its console says:\n{}", tail(&exchange.join("console")))
    }
}

/// The script that the guest runs.
fn guest_script(command: &Command, exchange: &Path) -> String {
    let [log, binary, exchange] = [
        exchange.join("log"),
        exchange.join("lvs-xdp"),
        exchange.to_owned(),
    ]
    .map(|path| quoted(path.as_os_str()));
    let path = quoted(&env::var_os("PATH").unwrap_or_default());
    // The binary is run many times, and memory is faster than the host's file system.
    format!(
        "#!/bin/sh\n\
         exec >{log} 2>&1 </dev/null\n\
         mkdir /run/guest && cp {binary} /run/guest\n\
         export PATH={path} LVS_XDP_BIN=/run/guest/lvs-xdp {GUEST_VARIABLE}={exchange}\n\
         {}\n",
        shell_line(command)
    )
}

/// The command for a shell, its variables before it.
fn shell_line(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    variables.chain(words.map(quoted)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell reads it back.
fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))
}

/// Makes of each function a test that runs in the guest; see [the module](crate::vm).
#[macro_export]
macro_rules! in_the_guest {
    ($($case:ident),+ $(,)?) => {
        mod guest {
            $(#[test]
            fn $case() -> anyhow::Result<()> {
                let name = concat!(module_path!(), "::", stringify!($case));
                $crate::vm::in_the_guest(name, super::$case)
            })+
        }
    };
}

/// Runs a case if this is the guest, and says there what became of it; reports that if this is the host.
///
/// # Errors
///
/// When the case failed, or the guest could not be had or has not come to it.
pub fn in_the_guest(name: &str, case: fn() -> Result<()>) -> Result<()> {
    if let Some(results) = guest_exchange() {
        let outcome = caught(case);
        let said = match &outcome {
            Ok(()) => PASSED.to_owned(),
            Err(error) => format!("{error:#}"),
        };
        fs::write(results.join(name), said)?;
        return outcome;
    }
    static GUEST: OnceLock<Result<Guest, String>> = OnceLock::new();
    let guest = GUEST.get_or_init(|| Guest::run().map_err(|error| format!("{error:#}")));
    match guest {
        Ok(guest) => guest.report(name),
        Err(error) => bail!("{error}"),
    }
}

/// What a case that panics has to say is an error like any other.
fn caught(case: fn() -> Result<()>) -> Result<()> {
    panic::catch_unwind(AssertUnwindSafe(case)).unwrap_or_else(|panic| Err(anyhow!("{}", message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
}

/// A guest that has run all cases, or has ended on the way.
#[derive(Debug)]
struct Guest {
    /// What each case has said. No directory: a guest is in a static, which is never dropped.
    said: BTreeMap<String, String>,
    /// Why there may be cases missing.
    end: String,
}

impl Guest {
    /// Boots, and runs this test binary in it with its arguments.
    fn run() -> Result<Self> {
        let machine = Machine::find(TESTED)?;
        let exchange = exchange_directory()?;
        let mut cases = Command::new(env::current_exe()?);
        cases
            .args(env::args_os().skip(1))
            // As many as it has processors.
            .env("RUST_TEST_THREADS", "2");
        let end = match machine.run(&cases, exchange.path(), GUEST_LIMIT) {
            Ok(()) => last_words(exchange.path()),
            Err(error) => format!("{error:#}"),
        };
        let mut said = BTreeMap::new();
        for entry in fs::read_dir(exchange.path())? {
            let entry = entry?;
            // The other files there have no path of a module for a name.
            if let Some(name) = entry.file_name().to_str()
                && name.contains("::")
            {
                said.insert(name.to_owned(), fs::read_to_string(entry.path())?);
            }
        }
        Ok(Self { said, end })
    }

    fn report(&self, name: &str) -> Result<()> {
        match self.said.get(name).map(String::as_str) {
            Some(PASSED) => Ok(()),
            Some(said) => bail!("in the guest: {said}"),
            None => bail!("the guest has not come to the end of this case: {}", self.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_runs_the_command_as_it_is() -> Result<()> {
        let mut command = Command::new("printenv");
        command.args(["GREETING", "HOME"]).env("GREETING", "a 'b'  $c");
        command.env("HOME", "here");
        let output = Command::new("sh").args(["-c", &shell_line(&command)]).output()?;
        assert_eq!(String::from_utf8(output.stdout)?, "a 'b'  $c\nhere\n");

        let mut command = Command::new("printf");
        command.args(["%s|", "it's", "two words", "$HOME"]);
        let output = Command::new("sh").args(["-c", &shell_line(&command)]).output()?;
        assert_eq!(String::from_utf8(output.stdout)?, "it's|two words|$HOME|");
        Ok(())
    }

    #[test]
    fn a_case_that_panics_has_failed_with_its_message() {
        let failed = |case: fn() -> Result<()>| caught(case).expect_err("it fails").to_string();
        assert_eq!(failed(|| panic!("{} of two", 1)), "1 of two");
        assert_eq!(failed(|| panic!("plain")), "plain");
        assert_eq!(failed(|| bail!("refused")), "refused");
        assert!(caught(|| Ok(())).is_ok());
    }
}
