//! What is configured, over a reboot and over changes; and its connections.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    lab::{Lab, VIP, real_server_address},
    load::Load,
    process::{COMMAND_LIMIT, output},
    stream::OpenConnection,
};

use crate::{
    agent_config, clients::LOOP_RATE, counted_connections, destinations, lab, server, servers, services,
    wait_for,
};

#[test]
fn the_desired_state_survives_a_reboot() -> Result<()> {
    let mut lab = lab(3, "rr")?;
    for command in [
        "-A -u 192.168.2.100:53 -s sh -b sh-fallback,sh-port",
        "-A -t 192.168.2.100:443 -s wrr",
        "-a -t 192.168.2.100:443 -r 192.168.2.210:443 -g -w 3",
        "-a -t 192.168.2.100:443 -r 192.168.2.220:443 -g -w 0",
        "-a -t 192.168.2.100:443 -r 192.168.2.221:443 -g -w 2147483647",
        "-d -t 192.168.2.100:443 -r 192.168.2.210:443",
        "-a -t 192.168.2.100:443 -r 192.168.2.210:443 -g -w 7",
        "-E -t 192.168.2.100:443 -s fo",
    ] {
        lab.ipvsadm(command.split_whitespace())?;
    }
    let configured = |lab: &Lab| -> Result<Vec<_>> {
        Ok(services(lab)?
            .into_iter()
            .map(|service| {
                let servers: Vec<_> = service.servers.into_iter().map(|server| server.spec).collect();
                (service.spec, servers)
            })
            .collect())
    };
    let before = configured(&lab)?;
    assert_eq!(before.len(), 3);
    lab.fetch("/")?;
    let mut left = OpenConnection::new(&lab)?;

    // After a reboot the disk is all there is.
    lab.agent_mut()?.terminate()?;
    fs::remove_dir_all(lab.agent()?.pin_dir())?;
    wait_for("the program to be gone", || {
        Ok(!lab
            .director()
            .ip("-details link show dev eth0")?
            .contains("prog/xdp"))
    })?;
    lab.agent_mut()?.launch(&agent_config())?;

    assert_eq!(configured(&lab)?, before);
    assert_eq!(counted_connections(&lab)?, 0);
    let asked = Load::sequential(VIP, 6).run(lab.client())?;
    assert_eq!(asked.failures(), []);
    assert_eq!(asked.answers().collect::<Vec<_>>(), lab.round_robin_answers(6));
    // Its entry is gone with the maps: IPVS resets such a connection, or leaves it to the kernel.
    assert!(left.ask().is_err());
    Ok(())
}

#[test]
fn a_deleted_service_drops_what_is_open_and_revives_it() -> Result<()> {
    let lab = lab(2, "rr")?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");
    assert_eq!(server(&lab, 2)?.active, 1);

    lab.ipvsadm(["-D", "-t", "192.168.2.100:80"])?;
    assert_eq!(services(&lab)?, []);
    open.send()?;
    open.expect_silence(Duration::from_millis(1200))?;

    lab.add_service("rr")?;
    // The client's kernel repeats the request by itself.
    assert_eq!(open.receive()?, "rs2");
    assert_eq!(open.ask()?, "rs2");
    assert_eq!(server(&lab, 2)?.active, 1);
    let destination = destinations(&lab)?.remove(&open.client()?);
    assert_eq!(destination, Some(SocketAddr::from((real_server_address(2), 80))));
    Ok(())
}

#[test]
fn a_real_server_that_is_removed_and_added_again_keeps_its_connections() -> Result<()> {
    let lab = lab(2, "rr")?;
    let mut open = OpenConnection::new(&lab)?;
    assert_eq!(open.server, "rs2");
    let counted = server(&lab, 2)?.stats.connections;
    let rs2 = real_server_address(2).to_string();

    lab.ipvsadm(["-d", "-t", "192.168.2.100:80", "-r", &rs2])?;
    assert_eq!(servers(&lab)?.len(), 1);
    let alone = Load::sequential(VIP, 10).run(lab.client())?;
    assert_eq!(alone.counts().into_iter().collect::<Vec<_>>(), [("rs1", 10)]);

    lab.ipvsadm(["-a", "-t", "192.168.2.100:80", "-r", &rs2, "-g"])?;
    assert_eq!(open.ask()?, "rs2");
    let listed = server(&lab, 2)?;
    assert_eq!(listed.active, 1);
    assert!(listed.stats.connections >= counted, "{listed:?}");
    let table = lab.ipvsadm(["-L", "-n"])?;
    let line = table
        .lines()
        .find(|line| line.contains(&rs2))
        .context("rs2 is not listed")?;
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        ["->", "192.168.2.210:80", "Route", "1", "1", "0"]
    );
    Ok(())
}

#[test]
fn changes_made_at_once_are_all_made() -> Result<()> {
    const CHANGES: u16 = 10;
    let mut lab = lab(2, "rr")?;
    let load = Load::steady(VIP, LOOP_RATE, Duration::from_secs(2)).start(lab.client())?;
    let mut commands = Vec::new();
    for port in 8000..8000 + CHANGES {
        let service = format!("{VIP}:{port}");
        commands.push(lab.agent()?.client(["service", "add", "tcp", &service]));
    }
    for last in 100..100 + CHANGES {
        let server = format!("192.168.2.{}", last + 1);
        commands.push(lab.agent()?.client([
            "server",
            "add",
            "tcp",
            "192.168.2.100:80",
            &server,
            "--weight",
            "0",
        ]));
    }
    let running: Vec<_> = commands
        .into_iter()
        .map(|command| std::thread::spawn(|| output(command, COMMAND_LIMIT)))
        .collect();
    for thread in running {
        let ended = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        assert!(ended.status.success(), "{ended:?}");
    }
    let check = |lab: &Lab| -> Result<()> {
        let services = services(lab)?;
        assert_eq!(services.len(), usize::from(CHANGES) + 1);
        let ports: Vec<_> = services.iter().map(|service| service.spec.key.port()).collect();
        assert!(
            (8000..8000 + CHANGES).all(|port| ports.contains(&port)),
            "{ports:?}"
        );
        assert_eq!(servers(lab)?.len(), usize::from(CHANGES) + 2);
        Ok(())
    };
    check(&lab)?;
    assert_eq!(load.finish()?.failures(), []);
    // What was acknowledged was kept, too.
    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.launch(&agent_config())?;
    check(&lab)
}
