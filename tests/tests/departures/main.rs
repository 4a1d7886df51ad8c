//! Who goes, who stays and who is turned away: removal, draining, persistence, thresholds, slow start, the
//! list of connections and the settings, as clients see them.

mod drain;
mod entries;
mod persistence;
mod refused;
mod removal;
mod settings;
mod slow_start;
mod thresholds;

pub(crate) use lvs_xdp_tests::in_both_modes;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::api::types::ServerState;
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    ask::{servers, wait_for},
    lab::{Lab, LabConfig, VIP, real_server_address},
    load::Load,
    stream::Ended,
};

/// The arguments that name the service of the reference case to `lvs-xdp`.
pub(crate) const SERVICE: [&str; 2] = ["tcp", "192.168.2.100:80"];
/// The same to ipvsadm.
pub(crate) const IPVSADM_SERVICE: [&str; 2] = ["-t", "192.168.2.100:80"];
/// curl's exit status when nobody answers at the address.
pub(crate) const CURL_REFUSED: i32 = 7;
/// curl's exit status when the time is over.
pub(crate) const CURL_TIMEOUT: i32 = 28;
/// curl's exit status when the connection breaks while it receives.
pub(crate) const CURL_BROKEN: i32 = 56;

pub(crate) fn agent_config(mode: XdpMode) -> AgentConfig {
    AgentConfig {
        xdp_mode: mode,
        ..AgentConfig::default()
    }
}

/// A lab without a service, in which a client that reads slowly is noticed at once: little fits in between.
pub(crate) fn empty_lab(mode: XdpMode, real_servers: usize) -> Result<Lab> {
    let lab = Lab::start(LabConfig {
        real_servers,
        agent: agent_config(mode),
        binary: None,
    })?;
    lab.client().sysctl("net.ipv4.tcp_rmem", "4096 65536 131072")?;
    Ok(lab)
}

/// A lab with the service of the reference case, its options as `lvs-xdp service add` takes them, and its
/// real servers resolved.
pub(crate) fn lab(mode: XdpMode, real_servers: usize, options: &[&str]) -> Result<Lab> {
    let lab = empty_lab(mode, real_servers)?;
    cli(&lab, &["service", "add"], options)?;
    for number in 1..=real_servers {
        add_server(&lab, number, &[])?;
    }
    wait_until_ready(&lab)?;
    Ok(lab)
}

pub(crate) fn wait_until_ready(lab: &Lab) -> Result<()> {
    wait_for("real servers that answer", || {
        let mut servers = servers(lab)?.into_iter();
        Ok(servers.all(|server| server.state == ServerState::Ready))
    })?;
    Ok(())
}

/// `lvs-xdp VERB tcp 192.168.2.100:80 ARGUMENTS`.
pub(crate) fn cli(lab: &Lab, verb: &[&str], arguments: &[&str]) -> Result<String> {
    lab.cli([verb, &SERVICE, arguments].concat())
}

/// `lvs-xdp server add` of a real server, with options.
pub(crate) fn add_server(lab: &Lab, number: usize, options: &[&str]) -> Result<()> {
    let address = real_server_address(number).to_string();
    cli(lab, &["server", "add"], &[&[address.as_str()], options].concat())?;
    Ok(())
}

/// `lvs-xdp server VERB` of a real server that is there, with options.
pub(crate) fn change_server(lab: &Lab, verb: &str, number: usize, options: &[&str]) -> Result<String> {
    let address = real_server_address(number).to_string();
    cli(lab, &["server", verb], &[&[address.as_str()], options].concat())
}

/// Shortens how long a connection that the client has closed is remembered.
pub(crate) fn forget_closed_after(lab: &Lab, seconds: u32) -> Result<()> {
    lab.ipvsadm(["--set", "0", &seconds.to_string(), "0"])?;
    Ok(())
}

/// Makes requests one after the other; who answered how many. All must be answered.
pub(crate) fn ask_around(lab: &Lab, requests: usize) -> Result<BTreeMap<String, usize>> {
    let report = Load::sequential(VIP, requests).run(lab.client())?;
    ensure!(report.failures().is_empty(), "{:?}", report.failures());
    let counts = report.counts().into_iter();
    Ok(counts.map(|(name, count)| (name.to_owned(), count)).collect())
}

/// What [`ask_around`] returns where one real server has answered all.
pub(crate) fn only(name: &str, requests: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(name.to_owned(), requests)])
}

/// The numbers that the list of `ipvsadm -L -n`, with more options, has of a real server, weight first.
pub(crate) fn listed(lab: &Lab, number: usize, options: &[&str]) -> Result<Vec<u64>> {
    let table = lab.ipvsadm([&["-L", "-n"], options].concat())?;
    let address = format!("{}:80 ", real_server_address(number));
    let line = (table.lines().find(|line| line.contains(&address)))
        .with_context(|| format!("{address}is not in the list:\n{table}"))?;
    let words = line.split_whitespace().skip(2);
    let numbers = words.filter(|word| *word != "Route").map(str::parse);
    Ok(numbers.collect::<Result<_, _>>()?)
}

/// curl was told, by a reset, and within `limit` of the call that waited for its end.
pub(crate) fn assert_reset(ended: &Ended, limit: Duration) {
    assert_eq!(ended.status, Some(CURL_BROKEN), "{}", ended.message);
    assert!(
        ended.message.contains("Connection reset by peer"),
        "{}",
        ended.message
    );
    assert!(ended.waited < limit, "{:?}", ended.waited);
}
