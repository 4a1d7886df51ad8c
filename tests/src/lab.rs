//! The reference case: a client behind a router, a director with a VIP, and real servers, all real but for the cables.
//!
//! ```text
//!  client              router                       director  VIP 192.168.2.100
//!  192.168.1.200 ───── 192.168.1.1 │ 192.168.2.1 ─┬─ 192.168.2.200
//!                                                 ├─ rs1  192.168.2.220, VIP on lo
//!                                                 └─ rs2  192.168.2.210, VIP on lo
//! ```
//!
//! Each of them is a network namespace; two bridges in one more are the segments. Every host has IPv6 addresses
//! beside these, fd00:1::200 for 192.168.1.200 and so on: [`Lab::over`] says which family the lab speaks.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufWriter, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::{
    agent::{Agent, AgentConfig, XdpMode, find_binary},
    family::Family,
    netns::Netns,
    port::fresh,
    process::run,
    stale,
    topology::Topology,
    web::WebServer,
};

/// The virtual address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 100);
/// The client.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 200);
/// The router's address towards the client.
pub const ROUTER_OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// The router's address towards the director and the real servers.
pub const ROUTER_INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 1);
/// The director's own address.
pub const DIRECTOR: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 200);
/// The most real servers a lab can have: the addresses end.
pub const REAL_SERVER_LIMIT: usize = 32;
/// The size of the file that every real server has as `/big`, in bytes.
pub const BIG_SIZE: u64 = 50_000_000;
const _: () = assert!(BIG_SIZE.is_multiple_of(8), "it is written in words");

const SWITCH_OUTSIDE: &str = "outside";
const SWITCH_INSIDE: &str = "inside";

/// Programs the lab runs, each with the Debian package it is in.
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("ethtool", "ethtool"),
    ("nginx", "nginx-light"),
    ("curl", "curl"),
];

/// The address of real server `number`, counted from 1: rs1 is .220 and rs2 .210, the others follow rs1.
///
/// # Panics
///
/// When `number` is not in 1 to [`REAL_SERVER_LIMIT`].
pub fn real_server_address(number: usize) -> Ipv4Addr {
    assert!(
        (1..=REAL_SERVER_LIMIT).contains(&number),
        "there is no real server {number}"
    );
    let last = match number {
        1 => 220,
        2 => 210,
        // At most 250, by the limit.
        _ => u8::try_from(218 + number).unwrap_or(u8::MAX),
    };
    Ipv4Addr::new(192, 168, 2, last)
}

/// What differs from lab to lab.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Number of real servers, 1 to [`REAL_SERVER_LIMIT`].
    pub real_servers: usize,
    /// What the agent is started with.
    pub agent: AgentConfig,
    /// The binary under test; see [`find_binary`] where it is `None`.
    pub binary: Option<PathBuf>,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            real_servers: 2,
            agent: AgentConfig::default(),
            binary: None,
        }
    }
}

/// A running reference case; everything of it is gone when dropped.
#[derive(Debug)]
pub struct Lab {
    // In the order in which they have to go.
    agent: Option<Agent>,
    servers: Vec<WebServer>,
    topology: Topology,
    content: TempDir,
    config: LabConfig,
    family: Family,
}

impl Lab {
    /// Builds the hosts, prepares the real servers, and starts web servers and the agent. No virtual
    /// service is configured: see [`Lab::add_service`].
    ///
    /// # Errors
    ///
    /// When this is not root, a program that the lab needs is missing, or a step fails; the error says what and why.
    pub fn start(config: LabConfig) -> Result<Self> {
        // Known before anything is built.
        let binary = config.binary.clone().map_or_else(find_binary, Ok)?;
        let mut lab = Self::hosts(LabConfig {
            binary: Some(binary),
            ..config
        })?;
        lab.prepare_real_servers()?;
        lab.start_agent()?;
        Ok(lab)
    }

    /// Builds the hosts and starts the web servers, but neither gives the real servers the VIP nor
    /// starts the agent: no binary under test is run.
    ///
    /// # Errors
    ///
    /// As [`Lab::start`].
    pub fn hosts(config: LabConfig) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "the lab must run as root: it makes network namespaces and loads XDP programs"
        );
        ensure!(
            (1..=REAL_SERVER_LIMIT).contains(&config.real_servers),
            "{} real servers: a lab can have 1 to {REAL_SERVER_LIMIT}",
            config.real_servers
        );
        check_tools()?;
        let topology = build(config.real_servers).context("building the lab's hosts")?;
        let prefix = format!("{}{}-content-", stale::DIRECTORY_PREFIX, std::process::id());
        let content = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let mut lab = Self {
            agent: None,
            servers: Vec::new(),
            topology,
            content,
            config,
            family: Family::V4,
        };
        write_noise(&lab.big_file())?;
        for number in 1..=lab.config.real_servers {
            let name = real_server_name(number);
            let server = WebServer::start(lab.topology.host(&name), &name, &lab.big_file())?;
            lab.servers.push(server);
        }
        Ok(lab)
    }

    /// Has the lab speak this family, in place of IPv4: its service, its clients and what they ask for.
    pub fn over(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// The family that the lab speaks.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The virtual address, of the lab's family.
    pub fn vip(&self) -> IpAddr {
        self.family.vip()
    }

    /// The virtual address, and the port of the reference case.
    pub fn service(&self) -> SocketAddr {
        SocketAddr::new(self.vip(), 80)
    }

    /// `http://VIP/PATH`; the path begins with a slash.
    pub fn url(&self, path: &str) -> String {
        match self.vip() {
            IpAddr::V4(vip) => format!("http://{vip}{path}"),
            IpAddr::V6(vip) => format!("http://[{vip}]{path}"),
        }
    }

    /// Gives every real server the VIPs of both families, by `lvs-xdp realserver setup`.
    ///
    /// # Errors
    ///
    /// When there is no binary or it fails.
    pub fn prepare_real_servers(&self) -> Result<()> {
        let binary = self.binary()?;
        let vips = Family::ALL.map(|family| family.vip().to_string());
        for server in &self.servers {
            server
                .netns()
                .run(
                    &binary,
                    ["realserver", "setup", "--vip", &vips[0], "--vip", &vips[1]],
                )
                .with_context(|| format!("preparing {}", server.name()))?;
        }
        Ok(())
    }

    /// Starts the agent on the director; the far end of its cable gets what native XDP needs, unless
    /// the agent is told to use generic mode, which must work without.
    ///
    /// # Errors
    ///
    /// As [`Agent::start`].
    pub fn start_agent(&mut self) -> Result<&mut Agent> {
        self.start_agent_on(&["eth0"])
    }

    /// As [`Lab::start_agent`], on the director's `interfaces`.
    ///
    /// # Errors
    ///
    /// As [`Agent::start`].
    pub fn start_agent_on(&mut self, interfaces: &[&str]) -> Result<&mut Agent> {
        self.start_agent_over(interfaces, interfaces)
    }

    /// As [`Lab::start_agent_on`], on `interfaces` that are no cables themselves but use `cables`: a bond.
    ///
    /// # Errors
    ///
    /// As [`Agent::start`].
    pub fn start_agent_over(&mut self, interfaces: &[&str], cables: &[&str]) -> Result<&mut Agent> {
        ensure!(self.agent.is_none(), "the lab has an agent already");
        if self.config.agent.xdp_mode != XdpMode::Generic {
            for cable in cables {
                self.topology.attach_xdp_pass("director", cable)?;
            }
        }
        let agent = Agent::start(&self.binary()?, self.director(), interfaces, &self.config.agent)?;
        Ok(self.agent.insert(agent))
    }

    /// Adds the virtual service of the reference case with the commands of [`Lab::service_commands`].
    ///
    /// # Errors
    ///
    /// When one of them fails.
    pub fn add_service(&self, scheduler: &str) -> Result<()> {
        for command in self.service_commands(scheduler) {
            self.ipvsadm(command.split_whitespace())?;
        }
        Ok(())
    }

    /// The arguments of the ipvsadm commands that make the virtual service of the reference case: the
    /// service, then each real server, rs1 first.
    pub fn service_commands(&self, scheduler: &str) -> Vec<String> {
        let service = self.service();
        let mut commands = vec![format!("-A -t {service} -s {scheduler}")];
        commands.extend((1..=self.config.real_servers).map(|number| {
            let server = SocketAddr::new(self.family.real_server(number), service.port());
            format!("-a -t {service} -r {server} -g")
        }));
        commands
    }

    /// The answers that rr gives to the first `requests` requests: IPVS begins with the real server added last.
    pub fn round_robin_answers(&self, requests: usize) -> Vec<String> {
        (1..=self.config.real_servers)
            .rev()
            .map(real_server_name)
            .cycle()
            .take(requests)
            .collect()
    }

    /// Requests `http://VIP{path}` from the client, with curl, and returns the body.
    ///
    /// # Errors
    ///
    /// When there is no answer within 10 s or its status is not 2xx; the error carries the end of the agent's log.
    pub fn fetch(&self, path: &str) -> Result<String> {
        let mut command = self.curl();
        command.args(["--local-port", &fresh().to_string()]);
        command.arg(self.url(path));
        self.explained(run(command))
    }

    /// curl in the client's namespace, quiet but for errors, with status 22 for answers such as 404 and
    /// at most 10 s to take; the caller adds a URL and may override any of it.
    pub fn curl(&self) -> Command {
        let mut command = self.client().command("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "10"]);
        command
    }

    /// Runs `lvs-xdp ARGUMENTS` on the director and returns its standard output.
    ///
    /// # Errors
    ///
    /// As [`Agent::cli`].
    pub fn cli<I>(&self, arguments: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.agent()?.cli(arguments)
    }

    /// Runs `lvs-xdp ARGUMENTS` on the director and returns what it wrote and its status, whatever that is.
    ///
    /// # Errors
    ///
    /// As [`Agent::cli_output`].
    pub fn cli_output<I>(&self, arguments: I) -> Result<Output>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.agent()?.cli_output(arguments)
    }

    /// Runs `ipvsadm ARGUMENTS`, the drop-in, on the director and returns its standard output.
    ///
    /// # Errors
    ///
    /// As [`Agent::ipvsadm`].
    pub fn ipvsadm<I>(&self, arguments: I) -> Result<String>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.agent()?.ipvsadm(arguments)
    }

    /// The agent.
    ///
    /// # Errors
    ///
    /// When it was not started.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the lab has no agent")
    }

    /// The agent, to end it and start it again.
    ///
    /// # Errors
    ///
    /// When it was not started.
    pub fn agent_mut(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("the lab has no agent")
    }

    /// The client's namespace.
    pub fn client(&self) -> &Netns {
        self.topology.host("client")
    }

    /// The router's namespace.
    pub fn router(&self) -> &Netns {
        self.topology.host("router")
    }

    /// The director's namespace.
    pub fn director(&self) -> &Netns {
        self.topology.host("director")
    }

    /// The web servers on the real servers, rs1 first.
    pub fn real_servers(&self) -> &[WebServer] {
        &self.servers
    }

    /// The hosts, and the cables between them.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The hosts, to add more of them or more cables.
    pub fn topology_mut(&mut self) -> &mut Topology {
        &mut self.topology
    }

    /// The file that all real servers have as `/big`: [`BIG_SIZE`] random bytes.
    pub fn big_file(&self) -> PathBuf {
        self.content.path().join("big")
    }

    /// What the lab was built from.
    pub fn config(&self) -> &LabConfig {
        &self.config
    }

    fn binary(&self) -> Result<PathBuf> {
        self.config.binary.clone().map_or_else(find_binary, Ok)
    }

    /// Adds the end of the agent's log to an error.
    fn explained<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| match &self.agent {
            Some(agent) => format!("the agent says:\n{}", agent.log_tail()),
            None => String::from("the lab has no agent"),
        })
    }
}

/// The name of real server `number`, counted from 1.
pub fn real_server_name(number: usize) -> String {
    format!("rs{number}")
}

fn build(real_servers: usize) -> Result<Topology> {
    let mut topology = Topology::new()?;
    topology.add_switch(SWITCH_OUTSIDE)?;
    topology.add_switch(SWITCH_INSIDE)?;

    topology.add_host("router")?;
    connect(
        &mut topology,
        "router",
        "eth0",
        SWITCH_OUTSIDE,
        Family::router_outside,
    )?;
    connect(
        &mut topology,
        "router",
        "eth1",
        SWITCH_INSIDE,
        Family::router_inside,
    )?;
    let router = topology.host("router");
    router.sysctl("net.ipv4.ip_forward", "1")?;
    router.sysctl("net.ipv6.conf.all.forwarding", "1")?;

    topology.add_host("client")?;
    connect(&mut topology, "client", "eth0", SWITCH_OUTSIDE, Family::client)?;
    route_by(topology.host("client"), Family::router_outside)?;

    topology.add_host("director")?;
    connect(&mut topology, "director", "eth0", SWITCH_INSIDE, Family::director)?;
    let director = topology.host("director");
    // The director's own address comes first: it is the source of what the director itself says.
    director.ip(&format!("address add {VIP}/32 dev eth0"))?;
    // With IPv6 the order says nothing, but a deprecated address is nobody's first choice (RFC 6724, rule 3).
    let vip = Family::V6.vip();
    director.ip(&format!("address add {vip}/128 dev eth0 preferred_lft 0"))?;
    route_by(director, Family::router_inside)?;

    for number in 1..=real_servers {
        let name = real_server_name(number);
        topology.add_host(&name)?;
        connect(&mut topology, &name, "eth0", SWITCH_INSIDE, |family| {
            family.real_server(number)
        })?;
        route_by(topology.host(&name), Family::router_inside)?;
    }
    Ok(topology)
}

/// Connects a host to a segment, by its addresses there, IPv4 first.
fn connect(
    topology: &mut Topology,
    host: &str,
    interface: &str,
    switch: &str,
    address: impl Fn(Family) -> IpAddr,
) -> Result<()> {
    let addresses = Family::ALL.map(|family| format!("{}/{}", address(family), family.prefix_len()));
    topology.connect(host, interface, switch, &addresses.each_ref().map(String::as_str))
}

/// Routes what is elsewhere by this router.
fn route_by(host: &Netns, router: impl Fn(Family) -> IpAddr) -> Result<()> {
    for family in Family::ALL {
        host.ip(&format!("route add default via {}", router(family)))?;
    }
    Ok(())
}

/// Says at once what is missing, rather than in the middle.
fn check_tools() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(tool, _)| !std::env::split_paths(&path).any(|directory| directory.join(tool).is_file()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let tools: Vec<_> = missing.iter().map(|(tool, _)| *tool).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    bail!(
        "the lab needs {}, which PATH does not have: install it with `apt-get install {}`",
        tools.join(", "),
        packages.join(" ")
    )
}

/// Random bytes: a part that is lost, doubled or moved cannot go unnoticed.
///
/// The kernel's own would take seconds where the processor is emulated; these are Marsaglia's xorshift64.
fn write_noise(path: &Path) -> Result<()> {
    let mut seed = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    let mut state = u64::from_ne_bytes(seed) | 1;
    let mut write = || -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        for _ in 0..BIG_SIZE / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            file.write_all(&state.to_ne_bytes())?;
        }
        file.flush()
    };
    write().with_context(|| format!("writing {}", path.display()))
}
