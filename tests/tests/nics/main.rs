//! Interfaces of every kind, and packets that do not fit them: several network cards, cards that come and go, VLAN
//! tags, jumbo frames, fragments, path MTU; and servers that are the director itself.

mod fragments;
mod interfaces;
mod jumbo;
mod local;
mod pmtu;
mod tags;

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    lab::{Lab, LabConfig},
    process::run,
    web::WebServer,
};
pub(crate) use lvs_xdp_tests::{in_both_modes, in_both_modes_and_families};

/// A lab of so many real servers without an agent, for one that forwards in the mode, and in no other.
pub(crate) fn hosts(mode: XdpMode, real_servers: usize) -> Result<Lab> {
    Lab::hosts(LabConfig {
        real_servers,
        agent: AgentConfig {
            xdp_mode: mode,
            ..AgentConfig::default()
        },
        binary: None,
    })
}

/// Uploads the big file from the client to whoever's turn it is, and looks at what has come to `web`.
pub(crate) fn upload(lab: &Lab, web: &WebServer) -> Result<()> {
    let mut upload = lab.curl();
    upload
        .args(["--max-time", "60", "--upload-file"])
        .arg(lab.big_file());
    upload.arg(lab.url("/upload/copy"));
    run(upload)?;
    let uploaded = web
        .uploaded("copy")
        .with_context(|| format!("{} has not kept the upload", web.name()))?;
    assert!(
        std::fs::read(uploaded)? == std::fs::read(lab.big_file())?,
        "the upload differs"
    );
    Ok(())
}

/// Downloads the big file to the client from whoever's turn it is, within so many seconds; whether it is whole.
pub(crate) fn download(lab: &Lab, seconds: u32) -> Result<bool> {
    let copy = lab.big_file().with_extension("download");
    let mut download = lab.curl();
    download
        .args(["--max-time", &seconds.to_string(), "--output"])
        .arg(&copy);
    download.arg(lab.url("/big"));
    Ok(run(download).is_ok() && std::fs::read(copy)? == std::fs::read(lab.big_file())?)
}

/// How many lines of the agent's log have this in them.
pub(crate) fn logged(lab: &Lab, text: &str) -> Result<usize> {
    let log = lab.agent()?.log()?;
    Ok(log.lines().filter(|line| line.contains(text)).count())
}
