//! Network namespaces for tests: made by the test, named after its process, removed when dropped.

use std::{
    fs::File,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::geteuid,
};

/// One network namespace.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    /// A new namespace, with its loopback interface up.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let netns = Self {
            name: format!("lx{}-n{number}", std::process::id()),
        };
        run("ip", &["netns", "add", &netns.name]);
        netns.ip("link set lo up");
        netns
    }

    /// Runs `ip` with these arguments in the namespace and gives what it printed.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let arguments: Vec<_> = ["-n", &self.name]
            .into_iter()
            .chain(arguments.split_whitespace())
            .collect();
        run("ip", &arguments)
    }

    /// Joins an interface of this namespace with one of another by a cable.
    pub(crate) fn join(&self, interface: &str, other: &Self, other_interface: &str) {
        self.ip(&format!(
            "link add {interface} type veth peer name {other_interface} netns {}",
            other.name
        ));
        self.ip(&format!("link set {interface} up"));
        other.ip(&format!("link set {other_interface} up"));
    }

    /// Runs a function in the namespace, on a thread of its own.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace exists");
            setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter it");
            work()
        };
        thread::scope(|scope| match scope.spawn(work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs an asynchronous function in the namespace, on a runtime of its own.
    pub(crate) fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work())
        })
    }

    /// The value of a sysctl in the namespace, by its path below `/proc/sys/net`.
    pub(crate) fn sysctl(&self, path: &str) -> String {
        let path = format!("/proc/sys/net/{path}");
        self.enter(|| {
            std::fs::read_to_string(path)
                .expect("the sysctl exists")
                .trim()
                .to_owned()
        })
    }

    /// Sets a sysctl in the namespace.
    pub(crate) fn set_sysctl(&self, path: &str, value: &str) {
        let path = format!("/proc/sys/net/{path}");
        self.enter(|| std::fs::write(path, value).expect("the sysctl can be written"));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A test that fails is on its way out already: no second panic.
        let removed = Command::new("ip").args(["netns", "delete", &self.name]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("could not remove the network namespace {}", self.name);
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}
