//! A map that is full.

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::AgentConfig,
    ask::status,
    lab::{Lab, LabConfig, VIP, real_server_address},
};

/// Rings are the only map that fills up before what the options count: each service of Maglev's hash has a large one.
#[test]
fn rings_without_room_refuse_a_change_and_harm_nothing() -> Result<()> {
    let lab = Lab::start(LabConfig {
        real_servers: 1,
        agent: AgentConfig {
            arguments: ["--services", "8"].map(String::from).into(),
            ..AgentConfig::default()
        },
        ..LabConfig::default()
    })?;
    lab.add_service("rr")?;
    let rip = real_server_address(1).to_string();
    let file = tempfile::NamedTempFile::new()?;
    // A service and its real server in one step: both or none.
    let mut text = lab.cli(["export"])?;
    let (mut before, mut refused) = (text.clone(), None);
    for port in 81..88 {
        text += &format!(
            "[[service]]\nprotocol = \"tcp\"\naddress = \"{VIP}\"\nport = {port}\nscheduler = \"mh\"\n\
             [[service.server]]\naddress = \"{rip}\"\n"
        );
        std::fs::write(file.path(), &text)?;
        let output = lab.cli_output(["apply".as_ref(), file.path().as_os_str()])?;
        if !output.status.success() {
            refused = Some(output);
            break;
        }
        before = lab.cli(["export"])?;
    }
    let refused = refused.context("there was room for everything")?;
    let said = String::from_utf8(refused.stderr)?;
    assert_eq!(
        (refused.status.code(), said.lines().count()),
        (Some(1), 1),
        "{said}"
    );
    assert!(
        said.contains("words of rings") && said.contains("--services"),
        "{said}"
    );
    assert_eq!(lab.cli(["export"])?, before);
    assert_eq!(lab.fetch("/")?, "rs1\n");
    let log = lab.agent()?.log()?;
    assert_eq!(log.matches("a change was not made").count(), 1, "{log}");

    // What one of them had is there for the next one.
    let rings = |lab: &Lab| -> Result<u64> {
        let tables = status(lab)?.tables.into_iter();
        let mut rings = tables.filter(|table| table.name == "rings");
        Ok(rings.next().context("no table of rings")?.used)
    };
    let full = rings(&lab)?;
    lab.cli(["service", "delete", "tcp", &format!("{VIP}:81")])?;
    std::fs::write(file.path(), &before)?;
    lab.cli(["apply".as_ref(), file.path().as_os_str()])?;
    assert_eq!(lab.cli(["export"])?, before);
    assert_eq!(rings(&lab)?, full);
    assert_eq!(lab.fetch("/")?, "rs1\n");
    Ok(())
}
