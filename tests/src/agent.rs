//! The agent on a director, as an operator runs it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        signal::Signal,
        statfs::{BPF_FS_MAGIC, statfs},
    },
};
use tempfile::TempDir;

use crate::{
    netns::Netns,
    process::{COMMAND_LIMIT, Process, output, run},
    stale,
};

/// Where the kernel's BPF file system is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// How long the agent may take until its socket answers: on an emulated processor the kernel's verifier
/// takes ten seconds.
const START_LIMIT: Duration = Duration::from_secs(40);
/// How long the agent may take to end when asked to.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How the program is attached: the agent's `--xdp-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// Native if the driver can, else generic.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the stack, or not at all.
    Generic,
}

impl XdpMode {
    /// Every mode, in the order in which help texts name them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Native, Self::Generic];

    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Makes of each function that takes the mode a test in native mode and one in generic mode.
#[macro_export]
macro_rules! in_both_modes {
    ($($test:ident),+ $(,)?) => {
        mod native {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                super::$test($crate::agent::XdpMode::Native)
            })+
        }
        mod generic {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                super::$test($crate::agent::XdpMode::Generic)
            })+
        }
    };
}

/// What the agent is started with.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// `--xdp-mode`.
    pub xdp_mode: XdpMode,
    /// `--connections`, in entries; the agent's own default where it is `None`.
    pub connections: Option<u32>,
    /// More arguments, after all others.
    pub arguments: Vec<String>,
}

impl Default for AgentConfig {
    /// A small connection table: many labs may run at once, and its memory is taken at the start.
    fn default() -> Self {
        Self {
            xdp_mode: XdpMode::default(),
            connections: Some(1 << 16),
            arguments: Vec::new(),
        }
    }
}

/// An agent on a host; what it has loaded and pinned is removed when dropped.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    binary: PathBuf,
    netns: Netns,
    interfaces: Vec<String>,
    pins: PathBuf,
    directory: TempDir,
}

impl Agent {
    /// Starts the agent `binary` in `netns` on `interfaces`, and waits until its socket answers.
    ///
    /// # Errors
    ///
    /// When it cannot be started, ends, or does not answer in time; the error carries its log.
    pub fn start(binary: &Path, netns: &Netns, interfaces: &[&str], config: &AgentConfig) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        mount_bpffs()?;
        let process_id = std::process::id();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pins = Path::new(BPFFS).join(format!("{}{process_id}-{number}", stale::PIN_PREFIX));
        let prefix = format!("{}{process_id}-agent-", stale::DIRECTORY_PREFIX);
        let mut agent = Self {
            process: None,
            binary: binary.to_owned(),
            netns: netns.clone(),
            interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            pins,
            directory: tempfile::Builder::new().prefix(&prefix).tempdir()?,
        };
        agent.launch(config)?;
        Ok(agent)
    }

    /// Starts the agent again, with the same socket, state and pins; the one before must have ended.
    ///
    /// # Errors
    ///
    /// As [`Agent::start`], and when one is running.
    pub fn launch(&mut self, config: &AgentConfig) -> Result<()> {
        self.launch_in(config, &[])
    }

    /// As [`Agent::launch`], with more environment variables.
    ///
    /// # Errors
    ///
    /// As [`Agent::launch`].
    pub fn launch_in(&mut self, config: &AgentConfig, environment: &[(&str, &str)]) -> Result<()> {
        ensure!(self.process.is_none(), "the agent is running already");
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command(config);
        command.envs(environment.iter().copied());
        command.stdout(log.try_clone()?).stderr(log);
        let mut process = Process::spawn(command)?;
        // The process is killed here if the agent does not come up.
        wait_until_it_answers(&self.socket(), &mut process)
            .with_context(|| format!("the agent says:\n{}", self.log_tail()))?;
        self.process = Some(process);
        Ok(())
    }

    /// The command that [`Agent::launch`] runs: for tests of agents that must not come up.
    pub fn command(&self, config: &AgentConfig) -> Command {
        let mut command = self.netns.command(&self.binary);
        command.arg("agent");
        for interface in &self.interfaces {
            command.arg("--interface").arg(interface);
        }
        command.arg("--socket").arg(self.socket());
        command.arg("--state-dir").arg(self.state_dir());
        command.arg("--pin-dir").arg(&self.pins);
        command.arg("--xdp-mode").arg(config.xdp_mode.name());
        if let Some(capacity) = config.connections {
            command.arg("--connections").arg(capacity.to_string());
        }
        command.args(&config.arguments);
        command
    }

    /// A command of `lvs-xdp` on the agent's host, with `LVS_XDP_SOCKET` set.
    pub fn client<I>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let mut command = self.netns.command(&self.binary);
        command.args(arguments).env("LVS_XDP_SOCKET", self.socket());
        command
    }

    /// Runs `lvs-xdp ARGUMENTS` and returns its standard output.
    ///
    /// # Errors
    ///
    /// When it ends with a status other than 0; the error carries the command, what it wrote to
    /// standard error, and the end of the agent's log.
    pub fn cli<I>(&self, arguments: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        run(self.client(arguments)).with_context(|| format!("the agent says:\n{}", self.log_tail()))
    }

    /// Runs `lvs-xdp ARGUMENTS` and returns what it wrote and its status, whatever that is.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not end.
    pub fn cli_output<I>(&self, arguments: I) -> Result<Output>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        output(self.client(arguments), COMMAND_LIMIT)
    }

    /// Runs `ipvsadm ARGUMENTS`, the drop-in, and returns its standard output.
    ///
    /// # Errors
    ///
    /// As [`Agent::cli`].
    pub fn ipvsadm<I>(&self, arguments: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.cli(std::iter::once("ipvsadm".into()).chain(owned(arguments)))
    }

    /// Runs `ipvsadm ARGUMENTS` and returns what it wrote and its status, whatever that is.
    ///
    /// # Errors
    ///
    /// As [`Agent::cli_output`].
    pub fn ipvsadm_output<I>(&self, arguments: I) -> Result<Output>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.cli_output(std::iter::once("ipvsadm".into()).chain(owned(arguments)))
    }

    /// The agent's process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Sends the agent a signal.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process
            .as_mut()
            .context("the agent does not run")?
            .signal(signal)
    }

    /// Kills the agent with SIGKILL; what it has pinned stays.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the agent does not run")?.kill()?;
        Ok(())
    }

    /// The agent's status if it has ended by itself; it can be launched again then.
    ///
    /// # Errors
    ///
    /// When it was ended before, or the kernel cannot tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let process = self.process.as_mut().context("the agent does not run")?;
        let ended = process.ended()?;
        if ended.is_some() {
            self.process = None;
        }
        Ok(ended)
    }

    /// Ends the agent with SIGTERM and returns its status.
    ///
    /// # Errors
    ///
    /// When it does not run, or does not end within 10 s (it is killed then).
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut process = self.process.take().context("the agent does not run")?;
        process.signal(Signal::SIGTERM)?;
        process
            .wait(END_LIMIT)
            .with_context(|| format!("the agent says:\n{}", self.log_tail()))
    }

    /// The agent's log: its standard output and error, over all its lives.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(self.log_path()).context("reading the agent's log")
    }

    /// The last lines of the agent's log, for an error.
    pub fn log_tail(&self) -> String {
        tail(&self.log_path())
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    /// Where the agent keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Where the agent's link and maps are pinned.
    pub fn pin_dir(&self) -> &Path {
        &self.pins
    }

    /// The host that it is on.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The binary that is run.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Names another binary, to be run from the next [`Agent::launch`] or command on.
    pub fn replace_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("agent.log")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent says:\n{}", self.log_tail());
        }
        // `unload` may fail: the test may have left the agent dead or its pins broken. Removing the
        // pins, which are then the last to hold the program, detaches it in any case.
        let _: Result<Output> = output(self.client(["unload"]), END_LIMIT);
        drop(self.process.take());
        if self.pins.exists()
            && let Err(error) = fs::remove_dir_all(&self.pins)
        {
            eprintln!("removing {}: {error}", self.pins.display());
        }
    }
}

/// The binary under test: `LVS_XDP_BIN`, else `lvs-xdp` beside the running executable, or one
/// directory up where that is a test in `deps`.
///
/// # Errors
///
/// When there is none.
pub fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LVS_XDP_BIN") {
        let path = PathBuf::from(path);
        ensure!(
            path.is_file(),
            "LVS_XDP_BIN names {}, which is no file",
            path.display()
        );
        return std::path::absolute(&path).with_context(|| format!("resolving {}", path.display()));
    }
    let executable = std::env::current_exe().context("asking for the path of this executable")?;
    let here = executable.parent().context("this executable has no directory")?;
    let profile = if here.ends_with("deps") {
        here.parent().unwrap_or(here)
    } else {
        here
    };
    let path = profile.join("lvs-xdp");
    ensure!(
        path.is_file(),
        "there is no {}: build it with `cargo build -p lvs-xdp`, or name it in LVS_XDP_BIN",
        path.display()
    );
    Ok(path)
}

/// The binary under test with another eBPF program in it: `lvs-xdp-rebuilt` beside [`find_binary`]'s.
///
/// # Errors
///
/// When there is none.
pub fn find_rebuilt_binary() -> Result<PathBuf> {
    let path = find_binary()?.with_file_name("lvs-xdp-rebuilt");
    ensure!(
        path.is_file(),
        "there is no {}: `cargo xtask test` builds it",
        path.display()
    );
    Ok(path)
}

/// The last lines of a log, for an error.
pub(crate) fn tail(path: &Path) -> String {
    const LINES: usize = 40;
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("({} cannot be read: {error})", path.display()),
    };
    let lines: Vec<_> = text.lines().collect();
    match lines.get(lines.len().saturating_sub(LINES)..) {
        None | Some([]) => String::from("(nothing)"),
        Some(last) => last.join("\n"),
    }
}

/// Mounts the BPF file system where the machine's init has not.
fn mount_bpffs() -> Result<()> {
    let found = statfs(BPFFS).with_context(|| format!("{BPFFS}: has the kernel no BPF?"))?;
    if found.filesystem_type() != BPF_FS_MAGIC {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting the BPF file system on {BPFFS}"))?;
    }
    Ok(())
}

fn wait_until_it_answers(socket: &Path, process: &mut Process) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(status) = process.ended()? {
            bail!("the agent ended at once, {status}");
        }
        match ask_for_status(socket) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                let waited = START_LIMIT.as_secs();
                return Err(error)
                    .with_context(|| format!("the agent's socket did not answer for {waited} s"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// One request over the agent's socket. Spelled out rather than by the product's own client: the
/// lab must not wait for, or hide, what that does.
fn ask_for_status(socket: &Path) -> Result<()> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    let line = answer.lines().next().unwrap_or_default();
    ensure!(
        line.starts_with("HTTP/1.1 200"),
        "GET /v1/status was answered by `{line}`"
    );
    Ok(())
}

fn owned<I>(arguments: I) -> impl Iterator<Item = std::ffi::OsString>
where
    I: IntoIterator<Item: AsRef<OsStr>>,
{
    arguments.into_iter().map(|argument| argument.as_ref().to_owned())
}
