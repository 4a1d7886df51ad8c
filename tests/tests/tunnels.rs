//! Real servers behind tunnels, on a segment that the director reaches by a router.
//!
//! The other end is a [`Decapsulator`]: this kernel may have none. A real server that decapsulates by the
//! kernel's own devices is in the virtual machine's cases.

use std::{
    fs,
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    decapsulator::Decapsulator,
    family::Family,
    in_both_modes_and_families,
    lab::{Lab, LabConfig},
    load::Load,
    process::run,
    web::WebServer,
};

in_both_modes_and_families!(
    every_tunnel_of_every_family_serves_beside_direct_routing,
    a_tunnel_follows_its_router,
);

/// Options of ipvsadm for each tunnel, and the outer protocol: `None` for that of the inner family.
const TUNNELS: [(&str, Option<u8>); 6] = [
    ("-i", None),
    ("-i --tun-type gue --tun-port 6080", Some(17)),
    ("-i --tun-type gue --tun-port 6080 --tun-csum", Some(17)),
    ("-i --tun-type gue --tun-port 6080 --tun-remcsum", Some(17)),
    ("-i --tun-type gre", Some(47)),
    ("-i --tun-type gre --tun-csum", Some(47)),
];

/// The reference case, and a real server `far` on one more segment, which the router alone is on.
struct Far {
    end: Decapsulator,
    web: WebServer,
    lab: Lab,
}

impl Far {
    fn new(mode: XdpMode, family: Family) -> Result<Self> {
        let config = LabConfig {
            real_servers: 1,
            agent: AgentConfig {
                xdp_mode: mode,
                ..AgentConfig::default()
            },
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
        let vip = lab.vip().to_string();
        far.run(lab.agent()?.binary(), ["realserver", "setup", "--vip", &vip])?;
        let end = Decapsulator::start(&far)?;
        lab.add_service("rr")?;
        Ok(Self { end, web, lab })
    }

    /// `ipvsadm -a` of the far server, by its address of a family, with these options.
    fn add(&self, outer: Family, options: &str) -> Result<()> {
        self.server("-a", outer, options)
    }

    fn server(&self, verb: &str, outer: Family, options: &str) -> Result<()> {
        let service = self.lab.service().to_string();
        let server = SocketAddr::new(outer.of([192, 168, 3, 220]), 80).to_string();
        let words = [verb, "-t", &service, "-r", &server];
        self.lab
            .ipvsadm(words.into_iter().chain(options.split_whitespace()))?;
        Ok(())
    }

    /// Every second connection goes to the far server.
    fn check_turns(&self) -> Result<()> {
        let report = Load::sequential(self.lab.vip(), 10).run(self.lab.client())?;
        ensure!(report.failures().is_empty(), "{:?}", report.failures());
        let far = report.answers().filter(|answer| *answer == "far").count();
        ensure!(far == 5, "{far} of 10 went through the tunnel");
        Ok(())
    }

    /// Full-sized packets do not fit, and the client is told: what it uploads arrives.
    fn check_upload(&self, name: &str) -> Result<()> {
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
    fn soon(&self, fault: &str, is_so: impl Fn() -> bool) -> Result<()> {
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

    /// How often the program gave this reason.
    fn count(&self, reason: &str) -> Result<u64> {
        let status: serde_json::Value = serde_json::from_str(&self.lab.cli(["status", "--json"])?)?;
        let reasons = status["reasons"].as_array().context("no reasons")?;
        let found = reasons.iter().find(|one| one["name"] == reason);
        found
            .and_then(|one| one["packets"].as_u64())
            .with_context(|| format!("no reason {reason}"))
    }
}

fn every_tunnel_of_every_family_serves_beside_direct_routing(mode: XdpMode, family: Family) -> Result<()> {
    let far = Far::new(mode, family)?;
    for outer in Family::ALL {
        for (index, (options, protocol)) in TUNNELS.into_iter().enumerate() {
            let what = || format!("{options} over {outer:?}");
            if index == 0 {
                far.add(outer, options)?;
            } else {
                far.server("-e", outer, options)?;
            }
            let protocol = protocol.unwrap_or(match family {
                Family::V4 => 4,
                Family::V6 => 41,
            });
            let before = far.end.taken(protocol);
            far.check_turns().with_context(what)?;
            ensure!(far.end.taken(protocol) > before, "{}: nothing came", what());
            if index < 2 {
                let before = far.count("too-big")?;
                far.check_upload(&format!("{outer:?}-{index}"))
                    .with_context(what)?;
                ensure!(
                    far.count("too-big")? > before,
                    "{}: the client was not told",
                    what()
                );
            }
        }
        far.server("-d", outer, "")?;
    }
    assert_eq!(far.count("rewrite-failed")?, 0);
    Ok(())
}

fn a_tunnel_follows_its_router(mode: XdpMode, family: Family) -> Result<()> {
    let far = Far::new(mode, family)?;
    far.add(family, "-i")?;
    far.check_turns()?;
    far.lab
        .topology()
        .set_mac("router", "eth1", [0x02, 0, 0, 0, 0, 0x77])?;
    // The real server beside would believe for half a minute that it is where it was.
    let rs1 = far.lab.real_servers()[0].netns();
    rs1.ip("neighbour flush dev eth0")?;
    far.soon("the router's new MAC address was not found", || {
        far.check_turns().is_ok()
    })?;
    // Without a way it gets nothing, and the status says so; the other one goes on.
    let network = format!("{}/{}", family.of([192, 168, 3, 0]), family.prefix_len());
    let director = far.lab.director();
    director.ip(&format!("route replace unreachable {network} metric 1"))?;
    director.ip(&format!("route del {network} via {}", family.router_inside()))?;
    let all_go_to_rs1 = || {
        let report = Load::sequential(far.lab.vip(), 4).run(far.lab.client());
        report.is_ok_and(|report| report.answers().all(|answer| answer == "rs1"))
    };
    far.soon("the lost way was not noticed", all_go_to_rs1)?;
    let status = far.lab.cli(["status"])?;
    ensure!(
        status.contains("its tunnel has no way: there is no route to it"),
        "{status}"
    );
    director.ip(&format!("route add {network} via {}", family.router_inside()))?;
    director.ip(&format!("route del unreachable {network} metric 1"))?;
    far.soon("the way that is back was not noticed", || {
        far.check_turns().is_ok()
    })
}
