//! The doctor names what was broken, and nothing else.

mod director;

use std::{
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    ask::wait_for,
    family::Family,
    lab::{Lab, LabConfig},
    netns::Netns,
    over_both_families,
};
use serde_json::Value;

over_both_families!(what_is_broken_is_named);

fn lab(family: Family) -> Result<Lab> {
    let lab = Lab::start(LabConfig {
        agent: AgentConfig {
            xdp_mode: XdpMode::Native,
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    })?
    .over(family);
    lab.add_service("rr")?;
    assert_eq!(lab.fetch("/")?, "rs2\n");
    Ok(lab)
}

/// A code, and what it is about.
pub(crate) type Named = (String, String);

/// All that the doctor says, and its status.
pub(crate) fn examined(lab: &Lab, arguments: &[&str]) -> Result<(Vec<Value>, Option<i32>)> {
    let output = lab.cli_output([&["doctor", "--json"], arguments].concat())?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let findings = report["findings"].as_array().context("no findings")?;
    Ok((findings.clone(), output.status.code()))
}

pub(crate) fn text(finding: &Value, key: &str) -> String {
    finding[key].as_str().unwrap_or_default().to_owned()
}

/// What the doctor finds that is not as it should be: code and subject, notes left out; and its status.
pub(crate) fn found(lab: &Lab) -> Result<(Vec<Named>, Option<i32>)> {
    let (findings, status) = examined(lab, &[])?;
    let mut bad = Vec::new();
    for finding in &findings {
        let level = text(finding, "level");
        ensure!(
            level == "ok"
                || level == "note"
                || !text(finding, "why").is_empty() && !text(finding, "mend").is_empty(),
            "{finding}"
        );
        // A mode that was asked for is none of the doctor's business.
        if (level == "warning" || level == "broken") && text(finding, "code") != "mode" {
            bad.push((text(finding, "code"), text(finding, "subject")));
        }
    }
    Ok((bad, status))
}

/// Breaks something, asks the doctor, and mends it again: exactly that must be named.
fn broken(
    lab: &Lab,
    expected: &[(&str, String)],
    harm: impl FnOnce() -> Result<()>,
    mend: impl FnOnce() -> Result<()>,
) -> Result<()> {
    harm()?;
    let expected: Vec<_> = expected
        .iter()
        .map(|(code, subject)| ((*code).to_owned(), subject.clone()))
        .collect();
    let what = format!("the doctor to find {expected:?}");
    // The agent notices some of it only after a while.
    wait_for(&what, || Ok(found(lab)?.0 == expected)).with_context(|| format!("{:?}", found(lab)))?;
    assert_eq!(found(lab)?.1, Some(2));
    mend()?;
    wait_for("all to be well again", || Ok(found(lab)?.0.is_empty())).map(drop)
}

fn what_is_broken_is_named(family: Family) -> Result<()> {
    let lab = lab(family)?;
    let (bad, status) = found(&lab)?;
    assert_eq!(bad, []);
    assert_eq!(status, Some(0));

    let vip = lab.vip();
    let length = family.host_prefix_len();
    let rs1 = lab.real_servers()[0].netns();
    let at_rs1 = format!("TCP {} at {}", lab.service(), family.of([192, 168, 2, 220]));
    let setup = |host: &Netns| -> Result<()> {
        let vip = vip.to_string();
        host.run(lab.agent()?.binary(), ["realserver", "setup", "--vip", &vip])
            .map(drop)
    };

    // The VIP is not on lo.
    broken(
        &lab,
        &[("vip-missing", at_rs1.clone())],
        || rs1.ip(&format!("address del {vip}/{length} dev lo")).map(drop),
        || setup(rs1),
    )?;
    // It is on eth0, which answers for it: the classic one.
    broken(
        &lab,
        &[("vip-elsewhere", vip.to_string())],
        || {
            if family == Family::V4 {
                rs1.run("sysctl", ["-qw", "net.ipv4.conf.all.arp_ignore=0"])?;
            }
            rs1.ip(&format!("address add {vip}/{length} dev eth0 nodad"))
                .map(drop)
        },
        || {
            rs1.ip(&format!("address del {vip}/{length} dev eth0"))?;
            setup(rs1)
        },
    )?;
    // Its cable is cut.
    broken(
        &lab,
        &[("server-unreachable", at_rs1.clone())],
        || lab.topology().set_plugged("rs1", "eth0", false),
        || {
            lab.topology().set_plugged("rs1", "eth0", true)?;
            thread::sleep(Duration::from_millis(200));
            Ok(())
        },
    )?;
    // What comes for the web server is thrown away, and nothing else.
    let rule = |verb: &str| {
        let flag = family.flag();
        rs1.ip(&format!(
            "{flag} rule {verb} pref 1 to {vip} ipproto tcp dport 80 blackhole"
        ))
        .map(drop)
    };
    broken(
        &lab,
        &[("firewall", at_rs1.clone())],
        || {
            // The addresses of the host are looked up first, else.
            for verb in ["add pref 2", "del pref 0"] {
                rs1.ip(&format!("{} rule {verb} lookup local", family.flag()))?;
            }
            rule("add")
        },
        || rule("del"),
    )?;

    // Nobody listens on the port of another service; then somebody does, but not on the VIP.
    let other = SocketAddr::new(vip, 8081);
    let at_other = format!("TCP {other} at {}", family.of([192, 168, 2, 220]));
    let rip = SocketAddr::new(family.of([192, 168, 2, 220]), 8081);
    let add = || {
        lab.ipvsadm(["-A", "-t", &other.to_string()])?;
        lab.ipvsadm(["-a", "-t", &other.to_string(), "-r", &rip.to_string()])
            .map(drop)
    };
    let delete = || lab.ipvsadm(["-D", "-t", &other.to_string()]).map(drop);
    broken(&lab, &[("port-closed", at_other.clone())], add, delete)?;
    let listener = rs1.enter(|| TcpListener::bind(rip))??;
    broken(&lab, &[("listens-on-rip-only", at_other)], add, delete)?;
    drop(listener);

    // The director does not have the VIP, and nobody answers for it.
    let director = lab.director();
    broken(
        &lab,
        &[("vip-unanswered", vip.to_string())],
        || {
            director
                .ip(&format!("address del {vip}/{length} dev eth0"))
                .map(drop)
        },
        || {
            director
                .ip(&format!("address add {vip}/{length} dev eth0 {}", nodad(family)))
                .map(drop)
        },
    )
}

fn nodad(family: Family) -> &'static str {
    if family == Family::V4 { "" } else { "nodad" }
}
