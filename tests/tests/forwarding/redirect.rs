//! A real server behind another interface of the director than the one that clients come in by.

use std::fs;

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::XdpMode,
    lab::{Lab, VIP},
    load::Load,
    process::run,
    web::WebServer,
};

use crate::{config, in_both_modes};

in_both_modes!(
    a_server_behind_an_attached_interface_is_reached,
    a_server_behind_an_interface_without_the_program_is_reached,
);

/// The reference case with one more segment, between the director's and the router's other interfaces, and a
/// real server `far` on it; and its web server.
fn lab(mode: XdpMode) -> Result<(WebServer, Lab)> {
    let mut lab = Lab::hosts(config(mode, 1))?;
    let topology = lab.topology_mut();
    topology.add_switch("beside")?;
    topology.connect("router", "eth2", "beside", &["192.168.3.1/24"])?;
    topology.connect("director", "eth1", "beside", &["192.168.3.200/24"])?;
    topology.add_host("far")?;
    topology.connect("far", "eth0", "beside", &["192.168.3.220/24"])?;
    let far = topology.host("far").clone();
    far.ip("route add default via 192.168.3.1")?;
    let web = WebServer::start(&far, "far", &lab.big_file())?;
    lab.prepare_real_servers()?;
    Ok((web, lab))
}

/// Half of the connections go to each segment, and large files arrive.
fn check(lab: &Lab, web: &WebServer) -> Result<()> {
    let vip = VIP.to_string();
    web.netns()
        .run(lab.agent()?.binary(), ["realserver", "setup", "--vip", &vip])?;
    lab.add_service("rr")?;
    lab.ipvsadm(["-a", "-t", &format!("{VIP}:80"), "-r", "192.168.3.220:80", "-g"])?;
    let report = Load::sequential(VIP, 100).run(lab.client())?;
    assert_eq!(report.failures(), []);
    let answers: Vec<_> = report.answers().collect();
    assert_eq!(answers, ["far", "rs1"].repeat(50));
    // The far one's turn again: full-sized frames through the redirect.
    let mut upload = lab.curl();
    upload
        .args(["--max-time", "60", "--upload-file"])
        .arg(lab.big_file());
    upload.arg(format!("http://{VIP}/upload/copy"));
    run(upload)?;
    let uploaded = web.uploaded("copy").context("far has not kept the upload")?;
    assert!(
        fs::read(uploaded)? == fs::read(lab.big_file())?,
        "the upload differs"
    );
    Ok(())
}

fn a_server_behind_an_attached_interface_is_reached(mode: XdpMode) -> Result<()> {
    let (web, mut lab) = lab(mode)?;
    lab.start_agent_on(&["eth0", "eth1"])?;
    check(&lab, &web)
}

fn a_server_behind_an_interface_without_the_program_is_reached(mode: XdpMode) -> Result<()> {
    let (web, mut lab) = lab(mode)?;
    if mode == XdpMode::Native {
        // A veth takes redirected frames where its other end runs NAPI.
        lab.topology_mut().attach_xdp_pass("director", "eth1")?;
    }
    lab.start_agent()?;
    check(&lab, &web)
}
