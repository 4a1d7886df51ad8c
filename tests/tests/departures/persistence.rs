//! Clients that are kept with their real server.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::Result;
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    ask::{connections, server, wait_for},
    lab::{CLIENT, Lab, VIP},
    load::Load,
    stream::OpenConnection,
};

use crate::{agent_config, ask_around, forget_closed_after, lab, listed, only};

/// PersistConn, ActiveConn and InActConn of rs1 and rs2, as `ipvsadm -L -n --persistent-conn` has them.
fn counts(lab: &Lab) -> Result<[Vec<u64>; 2]> {
    let of = |number| Ok::<_, anyhow::Error>(listed(lab, number, &["--persistent-conn"])?[1..].to_vec());
    Ok([of(1)?, of(2)?])
}

/// States of the persistence templates: entries without a client's port.
fn templates(lab: &Lab) -> Result<Vec<(String, String)>> {
    let all = connections(lab, &[])?.into_iter();
    let templates = all.filter(|connection| connection.client.port() == 0);
    Ok(templates
        .map(|template| (template.state, template.client.ip().to_string()))
        .collect())
}

#[test]
fn a_client_stays_over_another_agent_and_other_tables() -> Result<()> {
    const CONNECTIONS: usize = 50;
    let assured = [("ASSURED".to_owned(), CLIENT.to_string())];
    let mut lab = lab(XdpMode::Native, 2, &["--scheduler", "rr", "--persistent=300"])?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");
    assert_eq!(ask_around(&lab, CONNECTIONS)?, only("rs2", CONNECTIONS));
    assert_eq!(templates(&lab)?, assured);
    let closed = CONNECTIONS as u64;
    let expected = [vec![0, 0, 0], vec![1, 1, closed]];
    wait_for("closed connections", || Ok(counts(&lab)? == expected))?;
    let list = lab.ipvsadm(["-L", "-n", "-c"])?;
    let row = list.lines().find(|line| line.contains("192.168.1.200:0 "));
    let row: Vec<_> = row.unwrap_or_default().split_whitespace().collect();
    assert_eq!(row.first(), Some(&"TCP"), "{list}");
    assert_eq!(
        row[2..],
        [
            "ASSURED",
            "192.168.1.200:0",
            "192.168.2.100:80",
            "192.168.2.210:80"
        ]
    );

    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.launch(&agent_config(XdpMode::Native))?;
    assert_eq!(counts(&lab)?, expected);
    assert_eq!(ask_around(&lab, 1)?, only("rs2", 1));

    // Tables of another size: every entry is moved, and with it which template it belongs to.
    let larger = AgentConfig {
        connections: Some(1 << 17),
        ..agent_config(XdpMode::Native)
    };
    lab.agent_mut()?.terminate()?;
    lab.agent_mut()?.launch(&larger)?;
    assert_eq!(counts(&lab)?, [vec![0, 0, 0], vec![1, 1, closed + 1]]);
    assert_eq!(templates(&lab)?, assured);
    assert_eq!(open.ask()?, "rs2");
    assert_eq!(ask_around(&lab, 10)?, only("rs2", 10));

    // When all that it controls has gone, nothing is left of it but the template itself.
    lab.cli(["connections", "flush", "--state", "FIN_WAIT"])?;
    lab.cli(["connections", "flush", "--state", "ESTABLISHED"])?;
    assert_eq!(counts(&lab)?, [vec![0, 0, 0], vec![1, 0, 0]]);
    Ok(())
}

#[test]
fn a_template_ends_when_nobody_uses_it() -> Result<()> {
    let lab = lab(XdpMode::Native, 2, &["--scheduler", "rr", "--persistent=4"])?;
    forget_closed_after(&lab, 1)?;
    assert_eq!(ask_around(&lab, 3)?, only("rs2", 3));
    // In use, its time starts again.
    for _ in 0..2 {
        thread::sleep(Duration::from_secs(2));
        assert_eq!(ask_around(&lab, 1)?, only("rs2", 1));
    }
    assert_eq!(server(&lab, 2)?.persistent, 1);
    let after = wait_for("the template to end", || Ok(server(&lab, 2)?.persistent == 0))?;
    assert!(after > Duration::from_secs(2), "{after:?}");
    assert_eq!(templates(&lab)?, []);
    assert_eq!(ask_around(&lab, 2)?, only("rs1", 2));
    Ok(())
}

#[test]
fn a_template_lives_as_long_as_what_it_controls() -> Result<()> {
    let mut lab = lab(XdpMode::Native, 2, &["--scheduler", "rr", "--persistent=2"])?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");
    let sleep = || thread::sleep(Duration::from_secs(4));
    sleep();
    assert_eq!(server(&lab, 2)?.persistent, 1);
    assert_eq!(ask_around(&lab, 2)?, only("rs2", 2));
    // The same when both have moved to a smaller table.
    let smaller = AgentConfig {
        connections: Some(1 << 12),
        ..agent_config(XdpMode::Native)
    };
    lab.agent_mut()?.terminate()?;
    // Its time is over while nobody is there to give it more.
    sleep();
    lab.agent_mut()?.launch(&smaller)?;
    sleep();
    assert_eq!(server(&lab, 2)?.persistent, 1);
    assert_eq!(open.ask()?, "rs2");
    assert_eq!(ask_around(&lab, 2)?, only("rs2", 2));
    Ok(())
}

#[test]
fn clients_of_one_network_stay_together() -> Result<()> {
    let options = ["--scheduler", "rr", "--persistent", "--netmask", "255.255.255.0"];
    let lab = lab(XdpMode::Native, 2, &options)?;
    for last in 201..=204 {
        lab.client()
            .ip(&format!("address add 192.168.1.{last}/24 dev eth0"))?;
    }
    let load = Load {
        sources: (200..=204)
            .map(|last| SocketAddr::from(([192, 168, 1, last], 30_000)))
            .collect(),
        ..Load::sequential(VIP, 5)
    };
    let report = load.run(lab.client())?;
    assert_eq!(report.failures(), []);
    assert_eq!(report.counts().into_iter().collect::<Vec<_>>(), [("rs2", 5)]);
    assert_eq!(
        templates(&lab)?,
        [("ASSURED".to_owned(), "192.168.1.0".to_owned())]
    );
    // A client that has only said SYN has not proved to be there; its network has.
    assert_eq!(counts(&lab)?[1][0], 1);
    Ok(())
}
