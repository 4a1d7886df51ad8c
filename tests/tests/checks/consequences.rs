//! What follows from who is up: the fallback, removal, and what outlives the agent.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use lvs_xdp::api::types::{
    Change, Check, CheckState, CheckTarget, Fallback, ForwardingMethod, InitialState, OnFailure, Removal,
    ServerCheck, ServerKey, ServerSpec, ServiceSpec,
};
use lvs_xdp_tests::{
    agent::{AgentConfig, XdpMode},
    ask::{LIMIT, server, services, wait_for},
    lab::{Lab, LabConfig},
    load::Load,
    stream::OpenConnection,
};
use nix::sys::signal::Signal;

use crate::{
    add_server, check, client, empty_lab, http, key, outages::signal, serve, service, status, wait_for_state,
};

/// Who answers so many requests, one after the other; all have to be answered.
fn answers(lab: &Lab, requests: usize) -> Result<Vec<String>> {
    let report = Load::sequential(lab.vip(), requests).run(lab.client())?;
    ensure!(report.failures().is_empty(), "{:?}", report.failures());
    Ok(report.answers().map(str::to_owned).collect())
}

fn has_fallen_back(lab: &Lab) -> Result<bool> {
    Ok(services(lab)?[0].has_fallen_back)
}

/// The third server is the fallback.
fn below_the_quorum_the_fallback_takes_all(mode: XdpMode) -> Result<()> {
    let lab = Lab::start(LabConfig {
        real_servers: 3,
        agent: AgentConfig {
            xdp_mode: mode,
            ..AgentConfig::default()
        },
        binary: None,
    })?;
    let service = ServiceSpec {
        quorum: 2,
        fallback: Some(Fallback {
            address: lab.family().real_server(3),
            method: ForwardingMethod::Dr,
        }),
        ..service(&lab, check(http(), CheckTarget::Vip))
    };
    serve(&lab, service)?;
    wait_for("the real servers' return", || Ok(!has_fallen_back(&lab)?))?;
    assert_eq!(answers(&lab, 4)?, ["rs2", "rs1", "rs2", "rs1"]);
    signal(&lab, Signal::SIGSTOP)?;
    wait_for("the fallback", || has_fallen_back(&lab))?;
    let shown = lab.cli(["service", "list"])?;
    ensure!(
        shown.contains("quorum=2 fallback=192.168.2.221 (in use)"),
        "{shown}"
    );
    assert_eq!(answers(&lab, 3)?, ["rs3", "rs3", "rs3"]);
    // What is configured and saved knows nothing of it.
    let saved = lab.ipvsadm(["-S", "-n"])?;
    ensure!(
        !saved.contains("-w 0") && !saved.contains("192.168.2.221"),
        "{saved}"
    );
    signal(&lab, Signal::SIGCONT)?;
    wait_for("the real servers' return", || Ok(!has_fallen_back(&lab)?))?;
    assert!(!answers(&lab, 6)?.contains(&"rs3".to_owned()));
    Ok(())
}

/// A server that is taken out of the list: its connections go by the service's removal policy.
fn a_server_that_is_down_may_be_removed(mode: XdpMode) -> Result<()> {
    let lab = empty_lab(mode)?;
    let check = Check {
        on_failure: OnFailure::Remove,
        ..check(http(), CheckTarget::Vip)
    };
    serve(
        &lab,
        ServiceSpec {
            removal: Some(Removal::Reset),
            ..service(&lab, check)
        },
    )?;
    let mut open = [OpenConnection::new(&lab)?, OpenConnection::new(&lab)?];
    let names = [open[0].ask()?, open[1].ask()?];
    signal(&lab, Signal::SIGSTOP)?;
    wait_for_state(&lab, 1, CheckState::Down, LIMIT)?;
    // It is listed as before, and so are its connections.
    assert_eq!(server(&lab, 1)?.spec.weight, 1);
    assert_eq!(answers(&lab, 2)?, ["rs2", "rs2"]);
    for (connection, name) in open.iter_mut().zip(names) {
        let answer = connection.ask();
        ensure!(answer.is_ok() == (name == "rs2"), "{name}: {answer:?}");
    }
    signal(&lab, Signal::SIGCONT)?;
    wait_for_state(&lab, 1, CheckState::Up, LIMIT)?;
    assert!(answers(&lab, 4)?.contains(&"rs1".to_owned()));
    Ok(())
}

/// At no moment does a server that was down get traffic from the next agent, nor one that was up get none.
fn what_is_known_outlives_the_agent(mode: XdpMode, on_failure: OnFailure) -> Result<()> {
    let mut lab = empty_lab(mode)?;
    let check = Check {
        on_failure,
        // The next agent must not take this for what it knows.
        initial: InitialState::Up,
        ..check(http(), CheckTarget::Vip)
    };
    serve(&lab, service(&lab, check))?;
    signal(&lab, Signal::SIGSTOP)?;
    wait_for_state(&lab, 1, CheckState::Down, LIMIT)?;
    let load = Load::steady(lab.vip(), 100, Duration::from_secs(30)).start(lab.client())?;
    for _ in 0..3 {
        lab.agent_mut()?.kill()?;
        thread::sleep(Duration::from_millis(200));
        let config = lab.config().agent.clone();
        lab.agent_mut()?.launch(&config)?;
        assert_eq!(status(&lab, 1)?.state, CheckState::Down);
        assert_eq!(status(&lab, 2)?.state, CheckState::Up);
        thread::sleep(Duration::from_millis(700));
    }
    let report = load.stop()?;
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    assert_eq!(report.counts().into_keys().collect::<Vec<_>>(), ["rs2"]);
    signal(&lab, Signal::SIGCONT)?;
    wait_for_state(&lab, 1, CheckState::Up, LIMIT)?;
    Ok(())
}

#[test]
fn what_is_known_outlives_an_agent_that_is_killed() -> Result<()> {
    what_is_known_outlives_the_agent(XdpMode::Native, OnFailure::Quiesce)
}

#[test]
fn who_was_removed_stays_so_when_the_agent_is_killed() -> Result<()> {
    what_is_known_outlives_the_agent(XdpMode::Native, OnFailure::Remove)
}

/// A new server gets nothing before its first good result; a check that is new to a server takes nothing from it.
#[test]
fn the_first_state_is_that_of_who_serves() -> Result<()> {
    let lab = empty_lab(XdpMode::Native)?;
    signal(&lab, Signal::SIGSTOP)?;
    let spec = service(&lab, check(http(), CheckTarget::Vip));
    let changes = vec![
        Change::AddService {
            service: spec.clone(),
        },
        add_server(&lab, 1),
        add_server(&lab, 2),
    ];
    client(&lab)?.change(changes)?;
    wait_for_state(&lab, 2, CheckState::Up, LIMIT)?;
    assert_eq!(answers(&lab, 4)?, ["rs2"; 4]);
    assert_eq!(status(&lab, 1)?.state, CheckState::Down);
    // Without its check it counts as up, and so it does with one of its own, until that says otherwise.
    let address = lab.family().real_server(1);
    let edit = |check| Change::EditServer {
        service: key(&lab),
        server: ServerSpec {
            check: Some(Box::new(check)),
            ..ServerSpec::new(ServerKey { address, port: 80 }, 1)
        },
    };
    let off = ServerCheck {
        off: true,
        ..ServerCheck::default()
    };
    client(&lab)?.change(vec![edit(off)])?;
    assert!(status(&lab, 1).is_err());
    wait_for("its weight", || Ok(server(&lab, 1)?.effective_weight == 1))?;
    let slower = ServerCheck {
        fall: Some(2),
        ..ServerCheck::default()
    };
    client(&lab)?.change(vec![edit(slower)])?;
    assert_eq!(status(&lab, 1)?.state, CheckState::Up);
    wait_for_state(&lab, 1, CheckState::Down, LIMIT)?;
    assert_eq!(status(&lab, 1)?.in_a_row, 2);
    Ok(())
}

lvs_xdp_tests::in_both_modes!(
    below_the_quorum_the_fallback_takes_all,
    a_server_that_is_down_may_be_removed,
);
