//! The reference case as an operator tries it: curl, elinks, large files, many clients at once.

use std::fs;

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::XdpMode,
    family::Family,
    lab::{BIG_SIZE, VIP, real_server_address},
    load::Load,
    process::run,
};

use crate::{in_both_modes_and_families, lab};

in_both_modes_and_families!(
    real_servers_answer_in_turns,
    large_files_arrive_intact_both_ways,
    five_hundred_connections_at_once_succeed,
);

fn real_servers_answer_in_turns(mode: XdpMode, family: Family) -> Result<()> {
    let lab = lab(mode, 2)?.over(family);
    lab.add_service("rr")?;
    let answers = (0..4).map(|_| lab.fetch("/")).collect::<Result<String>>()?;
    assert_eq!(answers, "rs2\nrs1\nrs2\nrs1\n");

    let mut elinks = lab.client().command("elinks");
    // Its files go where nobody misses them.
    let home = tempfile::tempdir()?;
    elinks.env("HOME", home.path()).args(["--dump", &lab.url("")]);
    assert_eq!(run(elinks)?.trim(), "rs2");
    Ok(())
}

fn large_files_arrive_intact_both_ways(mode: XdpMode, family: Family) -> Result<()> {
    let lab = lab(mode, 2)?.over(family);
    lab.add_service("rr")?;
    let big = fs::read(lab.big_file())?;
    assert_eq!(u64::try_from(big.len())?, BIG_SIZE);
    let directory = tempfile::tempdir()?;
    let downloaded = directory.path().join("downloaded");

    let mut download = lab.curl();
    download.args(["--max-time", "60", "--output"]).arg(&downloaded);
    download.arg(lab.url("/big"));
    run(download)?;
    assert!(fs::read(&downloaded)? == big, "the download differs");

    let mut upload = lab.curl();
    upload
        .args(["--max-time", "60", "--upload-file"])
        .arg(lab.big_file());
    upload.arg(lab.url("/upload/copy"));
    run(upload)?;
    // The second connection is rs1's.
    assert_eq!(lab.real_servers()[1].uploaded("copy"), None);
    let uploaded = lab.real_servers()[0]
        .uploaded("copy")
        .context("rs1 has not kept the upload")?;
    assert!(fs::read(uploaded)? == big, "the upload differs");
    Ok(())
}

fn five_hundred_connections_at_once_succeed(mode: XdpMode, family: Family) -> Result<()> {
    let lab = lab(mode, 2)?.over(family);
    lab.add_service("rr")?;
    let report = Load::at_once(lab.vip(), 500).run(lab.client())?;
    assert_eq!(report.failures(), []);
    assert_eq!(
        report.counts().into_iter().collect::<Vec<_>>(),
        [("rs1", 250), ("rs2", 250)]
    );
    Ok(())
}

#[test]
fn real_servers_are_as_setup_left_them() -> Result<()> {
    let lab = lab(XdpMode::Generic, 1)?;
    let rs1 = lab.topology().host("rs1");
    let shown = rs1.run(lab.agent()?.binary(), ["realserver", "show"])?;
    assert!(shown.contains(&VIP.to_string()), "{shown}");
    let json = rs1.run(lab.agent()?.binary(), ["realserver", "show", "--json"])?;
    assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");

    // The sysctls do what they are there for: nobody but the director has the VIP's MAC.
    let router = lab.router();
    router.run("ping", ["-c", "1", "-W", "2", &VIP.to_string()])?;
    router.run(
        "ping",
        ["-c", "1", "-W", "2", &real_server_address(1).to_string()],
    )?;
    let neighbour = router.ip(&format!("neighbour show {VIP} dev eth1"))?;
    assert!(neighbour.contains("lladdr 02:00:c0:a8:02:c8"), "{neighbour}");

    // Without them `show` says so, and fails.
    rs1.sysctl("net.ipv4.conf.all.arp_ignore", "0")?;
    let refused = rs1.run(lab.agent()?.binary(), ["realserver", "show"]);
    let error = refused.err().context("`realserver show` has not failed")?;
    assert!(format!("{error:#}").contains("realserver setup"), "{error:#}");
    Ok(())
}
