//! Real servers whose cards are replaced, that go, and that come back.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Result;
use lvs_xdp::api::types::ServerState;
use lvs_xdp_tests::{
    family::Family,
    lab::{BIG_SIZE, Lab},
    load::Load,
    over_both_families,
};

use crate::{LIMIT, agent_config, lab_over, server, status, wait_for};

over_both_families!(
    a_transfer_goes_on_when_the_real_servers_card_is_replaced,
    a_real_server_that_is_gone_gets_nothing_until_it_is_back,
);

/// Downloads the big file at some 12 MB/s; returns it and the longest time that nothing came.
fn paced_download(lab: &Lab) -> JoinHandle<Result<(Vec<u8>, Duration)>> {
    let service = lab.service();
    lab.client().spawn_thread(move || {
        let mut stream = TcpStream::connect_timeout(&service, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET /big HTTP/1.0\r\n\r\n")?;
        let mut received = Vec::new();
        let mut stall = Duration::ZERO;
        let mut chunk = vec![0; 16 << 10];
        loop {
            let started = Instant::now();
            let length = stream.read(&mut chunk)?;
            stall = stall.max(started.elapsed());
            if length == 0 {
                return Ok((received, stall));
            }
            received.extend_from_slice(&chunk[..length]);
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

fn a_transfer_goes_on_when_the_real_servers_card_is_replaced(family: Family) -> Result<()> {
    let lab = lab_over(family, 1, "rr")?;
    let mac = [0x02, 0x01, 0x02, 0x03, 0x04, 0x05];
    let download = paced_download(&lab);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!download.is_finished());
    lab.topology().set_mac("rs1", "eth0", mac)?;
    let noticed = wait_for("the new MAC address", || {
        Ok(server(&lab, 1)?.mac.as_deref() == Some("02:01:02:03:04:05"))
    })?;
    let (received, stall) = download
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    eprintln!("another MAC address: noticed after {noticed:?}, nothing came for {stall:?}");
    let (_, body) = received.split_at(received.len() - usize::try_from(BIG_SIZE)?);
    assert!(body == fs::read(lab.big_file())?, "the download differs");
    // About a second, and what TCP waits on top before it tries again; not the kernel's 30 s and more.
    assert!(noticed < Duration::from_secs(4), "{noticed:?}");
    assert!(stall < Duration::from_secs(8), "{stall:?}");
    Ok(())
}

fn a_real_server_that_is_gone_gets_nothing_until_it_is_back(family: Family) -> Result<()> {
    let mut lab = lab_over(family, 2, "rr")?;
    let both = Load::sequential(lab.vip(), 10).run(lab.client())?;
    assert_eq!(
        both.counts().into_iter().collect::<Vec<_>>(),
        [("rs1", 5), ("rs2", 5)]
    );

    lab.topology().set_plugged("rs2", "eth0", false)?;
    let noticed = wait_for("rs2 to be unreachable", || {
        Ok(server(&lab, 2)?.state == ServerState::Unreachable)
    })?;
    eprintln!("a real server that is gone was noticed after {noticed:?}");
    let alone = Load::sequential(lab.vip(), 100).run(lab.client())?;
    assert_eq!(alone.failures(), []);
    assert_eq!(alone.counts().into_iter().collect::<Vec<_>>(), [("rs1", 100)]);
    let warnings = status(&lab)?.warnings;
    assert!(
        (warnings.iter()).any(|line| line.contains(&family.real_server(2).to_string())),
        "{warnings:?}"
    );

    // An agent that has just started does not try it again at the clients' cost.
    lab.agent_mut()?.kill()?;
    lab.agent_mut()?.launch(&agent_config())?;
    let alone = Load::sequential(lab.vip(), 100).run(lab.client())?;
    assert_eq!(alone.failures(), []);
    assert_eq!(alone.counts().into_iter().collect::<Vec<_>>(), [("rs1", 100)]);

    lab.topology().set_plugged("rs2", "eth0", true)?;
    let back = wait_for("rs2 to be back", || {
        Ok(server(&lab, 2)?.state == ServerState::Ready)
    })?;
    eprintln!("a real server that is back was noticed after {back:?}");
    let both = Load::sequential(lab.vip(), 10).run(lab.client())?;
    assert_eq!(
        both.counts().into_iter().collect::<Vec<_>>(),
        [("rs1", 5), ("rs2", 5)]
    );
    Ok(())
}
