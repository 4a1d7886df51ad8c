//! A real server on a segment that the director reaches by a router: for tunnels.

use std::{
    fs,
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::AgentConfig,
    family::Family,
    lab::{Lab, LabConfig},
    load::Load,
    netns::Netns,
    process::run,
    web::WebServer,
};

/// The reference case, and a real server `far` on one more segment, which the router alone is on.
#[derive(Debug)]
pub struct Far {
    web: WebServer,
    /// The lab, with a service that has `rs1` alone.
    pub lab: Lab,
}

impl Far {
    /// Starts everything; the far server has no VIP yet ([`Far::realserver`]), and the service does not have it.
    ///
    /// # Errors
    ///
    /// When a part does not start.
    pub fn new(agent: AgentConfig, family: Family) -> Result<Self> {
        let config = LabConfig {
            real_servers: 1,
            agent,
            binary: None,
        };
        let mut lab = Lab::hosts(config)?.over(family);
        let topology = lab.topology_mut();
        topology.add_switch("beyond")?;
        let of = |host| {
            Family::ALL.map(|family| format!("{}/{}", family.of([192, 168, 3, host]), family.prefix_len()))
        };
        let addresses = of(1);
        topology.connect("router", "eth2", "beyond", &[&addresses[0], &addresses[1]])?;
        topology.add_host("far")?;
        let addresses = of(220);
        topology.connect("far", "eth0", "beyond", &[&addresses[0], &addresses[1]])?;
        let far = topology.host("far").clone();
        for family in Family::ALL {
            far.ip(&format!("route add default via {}", family.of([192, 168, 3, 1])))?;
            let network = format!("{}/{}", family.of([192, 168, 3, 0]), family.prefix_len());
            let router = family.router_inside();
            topology
                .host("director")
                .ip(&format!("route replace {network} via {router}"))?;
        }
        let web = WebServer::start(&far, "far", &lab.big_file())?;
        lab.prepare_real_servers()?;
        lab.start_agent()?;
        lab.add_service("rr")?;
        Ok(Self { web, lab })
    }

    /// The far server's network.
    pub fn host(&self) -> &Netns {
        self.lab.topology().host("far")
    }

    /// `lvs-xdp realserver` with these arguments on the far server.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn realserver(&self, arguments: &[&str]) -> Result<()> {
        let binary = self.lab.agent()?.binary();
        let words = ["realserver"].iter().chain(arguments);
        self.host().run(binary, words).map(drop)
    }

    /// `ipvsadm` with this verb about the far server, by its address of a family, with these options.
    ///
    /// # Errors
    ///
    /// When it is refused.
    pub fn server(&self, verb: &str, outer: Family, options: &str) -> Result<()> {
        let service = self.lab.service().to_string();
        let server = SocketAddr::new(outer.of([192, 168, 3, 220]), 80).to_string();
        let words = [verb, "-t", &service, "-r", &server];
        self.lab
            .ipvsadm(words.into_iter().chain(options.split_whitespace()))?;
        Ok(())
    }

    /// Every second connection goes to the far server.
    ///
    /// # Errors
    ///
    /// When it is not so.
    pub fn check_turns(&self) -> Result<()> {
        let report = Load::sequential(self.lab.vip(), 10).run(self.lab.client())?;
        ensure!(report.failures().is_empty(), "{:?}", report.failures());
        let answers = Vec::from_iter(report.answers());
        let is_in_turn = |pair: &[&str]| pair[0] != pair[1];
        ensure!(answers.windows(2).all(is_in_turn), "not in turns: {answers:?}");
        Ok(())
    }

    /// Full-sized packets do not fit, and the client is told: what it uploads arrives.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn check_upload(&self, name: &str) -> Result<()> {
        // To whichever of the two it goes: the second of two in turn goes to the far one.
        for _ in 0..2 {
            let mut upload = self.lab.curl();
            upload
                .args(["--max-time", "60", "--upload-file"])
                .arg(self.lab.big_file());
            upload.arg(self.lab.url(&format!("/upload/{name}")));
            run(upload)?;
        }
        let uploaded = self.web.uploaded(name).context("far has not kept the upload")?;
        ensure!(
            fs::read(uploaded)? == fs::read(self.lab.big_file())?,
            "the upload differs"
        );
        Ok(())
    }

    /// Waits until something is so.
    ///
    /// # Errors
    ///
    /// When it is not after ten seconds.
    pub fn soon(&self, fault: &str, is_so: impl Fn() -> bool) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        while !is_so() {
            ensure!(
                Instant::now() < end,
                "{fault}; {}",
                self.lab.cli(["server", "list"])?
            );
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}
