//! All real servers of a service are exchanged for others while wrk asks as fast as it can: no request fails.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{
    ask::{server, servers, wait_for},
    lab::{Lab, LabConfig, real_server_address},
    report::tell,
};

const SERVICE: [&str; 2] = ["tcp", "192.168.2.100:80"];
/// Connections that wrk keeps open. nginx ends each after a thousand requests, and wrk opens another one.
const CONNECTIONS: &str = "8";
/// How long wrk asks, in seconds: longer than the exchange takes on a busy machine.
const SECONDS: u32 = 16;

/// Four real servers, of which the service has the first two. What a client has closed is forgotten after a second, so
/// that a real server that is drained has gone soon.
fn lab() -> Result<Lab> {
    let lab = Lab::start(LabConfig {
        real_servers: 4,
        ..LabConfig::default()
    })?;
    lab.cli(["service", "add", SERVICE[0], SERVICE[1], "--scheduler", "rr"])?;
    lab.ipvsadm(["--set", "900", "1", "300"])?;
    for number in [1, 2] {
        add(&lab, number)?;
    }
    Ok(lab)
}

fn add(lab: &Lab, number: usize) -> Result<()> {
    let address = real_server_address(number).to_string();
    lab.cli(["server", "add", SERVICE[0], SERVICE[1], &address])?;
    wait_for("its MAC address", || Ok(server(lab, number)?.mac.is_some()))?;
    Ok(())
}

/// wrk at work.
struct Clients(Child);

impl Clients {
    fn start(lab: &Lab) -> Result<Self> {
        let child = (lab.client().command("wrk"))
            .args(["--threads", "1", "--connections", CONNECTIONS])
            .args(["--duration", &format!("{SECONDS}s")])
            .arg(lab.url("/"))
            .stdout(Stdio::piped())
            .spawn()
            .context("starting wrk")?;
        thread::sleep(Duration::from_millis(500));
        Ok(Self(child))
    }

    /// What it says at its end: how many requests were answered, all of them well.
    fn finish(mut self) -> Result<u64> {
        let mut said = String::new();
        let mut out = self.0.stdout.take().context("wrk has an output")?;
        std::io::Read::read_to_string(&mut out, &mut said)?;
        ensure!(self.0.wait()?.success(), "{said}");
        // wrk is silent about both where there are none.
        for fault in ["Socket errors", "Non-2xx"] {
            ensure!(!said.contains(fault), "{said}");
        }
        let requests = said
            .lines()
            .find_map(|line| line.trim().split_once(" requests in "));
        let (count, _) = requests.with_context(|| format!("wrk says nothing of requests:\n{said}"))?;
        Ok(count.parse()?)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // It has ended by itself, or nobody waits for it any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the clients have said, with the third and the fourth real server in the place of the first two, which both
/// worked.
fn judge(lab: &Lab, mut clients: Clients) -> Result<()> {
    let ended = clients.0.try_wait()?;
    ensure!(ended.is_none(), "wrk ended before all were exchanged: {ended:?}");
    let left = servers(lab)?;
    let left = Vec::from_iter(left.iter().map(|server| server.spec.key.address));
    ensure!(
        left == [4, 3].map(|number| IpAddr::from(real_server_address(number))),
        "{left:?}"
    );
    let requests = clients.finish()?;
    ensure!(requests > 0, "no request was answered");
    for web_server in lab.real_servers() {
        let answered = web_server.access_log()?.lines().count();
        println!("{}: {answered} requests", web_server.name());
        ensure!(answered > 0, "{} had nothing to do", web_server.name());
    }
    tell(format_args!("{requests} requests, none of which failed"));
    Ok(())
}

#[test]
fn by_drain() -> Result<()> {
    let lab = lab()?;
    let clients = Clients::start(&lab)?;
    for (old, new) in [(1, 3), (2, 4)] {
        add(&lab, new)?;
        let address = real_server_address(old).to_string();
        lab.cli(["server", "drain", SERVICE[0], SERVICE[1], &address])?;
        wait_for("it to be removed", || {
            let servers = servers(&lab)?;
            Ok(servers
                .iter()
                .all(|server| server.spec.key.address != real_server_address(old)))
        })?;
    }
    judge(&lab, clients)
}

#[test]
fn by_apply() -> Result<()> {
    let lab = lab()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("lvs-xdp.toml");
    // Those with a weight, and one without, which keeps the connections that it has.
    let apply = |kept: &[usize], quiet: Option<usize>| -> Result<()> {
        let mut text =
            "[timeouts]\ntcp_fin = 1\n[[service]]\nprotocol = \"tcp\"\naddress = \"192.168.2.100\"\n\
             port = 80\nscheduler = \"rr\"\n"
                .to_owned();
        let servers = kept
            .iter()
            .map(|number| (*number, 1))
            .chain(quiet.map(|number| (number, 0)));
        for (number, weight) in servers {
            let address = real_server_address(number);
            writeln!(
                text,
                "[[service.server]]\naddress = \"{address}\"\nweight = {weight}"
            )?;
        }
        fs::write(&file, text)?;
        lab.cli(["apply", &file.to_string_lossy()])?;
        Ok(())
    };
    let clients = Clients::start(&lab)?;
    for (kept, old) in [([2, 3], 1), ([3, 4], 2)] {
        apply(&kept, Some(old))?;
        wait_for("its connections to end", || {
            let server = server(&lab, old)?;
            Ok(server.active + server.inactive == 0)
        })?;
        apply(&kept, None)?;
    }
    judge(&lab, clients)
}
