//! A real server behind another interface of the director than the one that clients come in by.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{agent::XdpMode, family::Family, lab::Lab, load::Load, process::run, web::WebServer};

use crate::{config, in_both_modes_and_families};

in_both_modes_and_families!(
    a_server_behind_an_attached_interface_is_reached,
    a_server_behind_an_interface_without_the_program_is_reached,
);

/// The reference case with one more segment, between the director's and the router's other interfaces, and a
/// real server `far` on it; and its web server.
fn lab(mode: XdpMode, family: Family) -> Result<(WebServer, Lab)> {
    let mut lab = Lab::hosts(config(mode, 1))?.over(family);
    let topology = lab.topology_mut();
    topology.add_switch("beside")?;
    let on_it = |host| format!("{}/{}", family.of([192, 168, 3, host]), family.prefix_len());
    topology.connect("router", "eth2", "beside", &[&on_it(1)])?;
    topology.connect("director", "eth1", "beside", &[&on_it(200)])?;
    topology.add_host("far")?;
    topology.connect("far", "eth0", "beside", &[&on_it(220)])?;
    let far = topology.host("far").clone();
    far.ip(&format!("route add default via {}", family.of([192, 168, 3, 1])))?;
    let web = WebServer::start(&far, "far", &lab.big_file())?;
    lab.prepare_real_servers()?;
    Ok((web, lab))
}

/// Half of the connections go to each segment, and large files arrive.
fn check(lab: &Lab, web: &WebServer) -> Result<()> {
    let vip = lab.vip().to_string();
    web.netns()
        .run(lab.agent()?.binary(), ["realserver", "setup", "--vip", &vip])?;
    lab.add_service("rr")?;
    let service = lab.service().to_string();
    let far = SocketAddr::new(lab.family().of([192, 168, 3, 220]), 80).to_string();
    lab.ipvsadm(["-a", "-t", &service, "-r", &far, "-g"])?;
    let report = Load::sequential(lab.vip(), 100).run(lab.client())?;
    assert_eq!(report.failures(), []);
    let answers: Vec<_> = report.answers().collect();
    assert_eq!(answers, ["far", "rs1"].repeat(50));
    // The far one's turn again: full-sized frames through the redirect.
    let mut upload = lab.curl();
    upload
        .args(["--max-time", "60", "--upload-file"])
        .arg(lab.big_file());
    upload.arg(lab.url("/upload/copy"));
    run(upload)?;
    let uploaded = web.uploaded("copy").context("far has not kept the upload")?;
    assert!(
        fs::read(uploaded)? == fs::read(lab.big_file())?,
        "the upload differs"
    );
    Ok(())
}

fn a_server_behind_an_attached_interface_is_reached(mode: XdpMode, family: Family) -> Result<()> {
    let (web, mut lab) = lab(mode, family)?;
    lab.start_agent_on(&["eth0", "eth1"])?;
    check(&lab, &web)
}

fn a_server_behind_an_interface_without_the_program_is_reached(mode: XdpMode, family: Family) -> Result<()> {
    let (web, mut lab) = lab(mode, family)?;
    if mode == XdpMode::Native {
        // A veth takes redirected frames where its other end runs NAPI.
        lab.topology_mut().attach_xdp_pass("director", "eth1")?;
    }
    lab.start_agent()?;
    check(&lab, &web)
}
