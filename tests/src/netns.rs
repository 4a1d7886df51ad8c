//! A network namespace with a name, deleted when its last handle is dropped.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CloneFlags, setns},
    unistd::geteuid,
};

use crate::{
    process::{Process, run},
    stale,
};

/// Where iproute2 keeps the names of network namespaces.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A network namespace of the lab, named `lx<pid>-<number>-<label>`.
///
/// A clone is another handle to the same namespace.
#[derive(Debug, Clone)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
}

impl Netns {
    /// Makes a namespace with the loopback interface up.
    ///
    /// # Errors
    ///
    /// When this process is not root or `ip` fails.
    pub fn new(label: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        ensure!(
            geteuid().is_root(),
            "the lab must run as root: it makes network namespaces"
        );
        stale::remove();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "{}{}-{number}-{label}",
            stale::NAMESPACE_PREFIX,
            std::process::id()
        );
        let mut command = Command::new("ip");
        command.args(["netns", "add", &name]);
        run(command)?;
        let netns = Self(Arc::new(Inner { name }));
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file that stands for it: `/run/netns/NAME`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(DIRECTORY).join(self.name())
    }

    /// A command that runs `program` inside.
    ///
    /// It is `nsenter`, never `ip netns exec`: that mounts a /sys of its own, and what an agent pins
    /// on the bpffs below it is gone when the command ends.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a program inside to its end and returns its standard output.
    ///
    /// # Errors
    ///
    /// As [`run`].
    pub fn run<I>(&self, program: impl AsRef<OsStr>, arguments: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let mut command = self.command(program);
        command.args(arguments);
        run(command)
    }

    /// Starts a program inside that runs beside the test.
    ///
    /// # Errors
    ///
    /// As [`Process::spawn`].
    pub fn spawn<I>(&self, program: impl AsRef<OsStr>, arguments: I) -> Result<Process>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let mut command = self.command(program);
        command.args(arguments);
        Process::spawn(command)
    }

    /// Runs iproute2's `ip` on this namespace; `arguments` are separated by blanks.
    ///
    /// # Errors
    ///
    /// As [`run`].
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command
            .args(["-n", self.name()])
            .args(arguments.split_whitespace());
        run(command)
    }

    /// Sets a `net.*` sysctl of the namespace, as in `netns.sysctl("net.ipv4.ip_forward", "1")`.
    ///
    /// Names of interfaces must not contain a dot.
    ///
    /// # Errors
    ///
    /// When the kernel has no such sysctl or refuses the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
        // /proc/sys/net shows the namespace of the thread that opens it.
        self.enter(|| fs::write(&path, value))?
            .with_context(|| format!("setting sysctl {name}={value} in {}", self.name()))
    }

    /// Runs `inside` on a thread in the namespace and waits for it; threads it starts are inside too.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    ///
    /// When `inside` does.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.switch_this_thread()?;
                Ok(inside())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts `inside` on a thread in the namespace, which the thread keeps alive.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let netns = self.clone();
        thread::spawn(move || {
            netns.switch_this_thread()?;
            inside()
        })
    }

    /// Moves the calling thread into the namespace, for good: only threads made for that call it.
    fn switch_this_thread(&self) -> Result<()> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.name()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut command = Command::new("ip");
        command.args(["netns", "del", &self.name]);
        if let Err(error) = run(command) {
            eprintln!("{error:#}");
        }
    }
}
