//! Virtual services over UDP.

use std::{
    io,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use lvs_xdp_tests::{
    agent::XdpMode,
    lab::{CLIENT, Lab, VIP, real_server_address, real_server_name},
    netns::Netns,
};

use crate::{in_both_modes, lab};

in_both_modes!(a_flow_stays_and_new_flows_go_round);

/// Answers each datagram with the host's name and what came; ends when dropped.
pub(crate) struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn start(netns: &Netns, name: &str, port: u16) -> Result<Self> {
        // A socket stays in the namespace it was made in. On the VIP alone: answers leave from there.
        let socket = netns.enter(|| UdpSocket::bind((VIP, port)))??;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let name = name.as_bytes().to_owned();
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let answer = [&name, &buffer[..length]].concat();
                    // The test sees an answer that is missing.
                    let _: io::Result<usize> = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("an echo server has panicked");
        }
    }
}

/// A client's socket, connected to a port of the VIP.
pub(crate) fn connected(lab: &Lab, port: u16) -> Result<UdpSocket> {
    let socket = lab.client().enter(|| UdpSocket::bind((CLIENT, 0)))??;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect((VIP, port))?;
    Ok(socket)
}

/// Sends a datagram and returns what is answered.
pub(crate) fn ask(socket: &UdpSocket, text: &[u8]) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    socket.send(text)?;
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn a_flow_stays_and_new_flows_go_round(mode: XdpMode) -> Result<()> {
    let lab = lab(mode, 3)?;
    lab.ipvsadm(["-A", "-u", &format!("{VIP}:7"), "-s", "rr"])?;
    let mut servers = Vec::new();
    for number in 1..=3 {
        let (name, address) = (real_server_name(number), real_server_address(number));
        servers.push(Echo::start(lab.topology().host(&name), &name, 7)?);
        let server = format!("{address}:7");
        lab.ipvsadm(["-a", "-u", &format!("{VIP}:7"), "-r", &server, "-g"])?;
    }
    let sockets = (0..6).map(|_| connected(&lab, 7)).collect::<Result<Vec<_>>>()?;
    // Round by round, so that each flow's next datagram comes after other flows' first ones.
    for round in 0..4 {
        for (socket, server) in sockets.iter().zip(["rs3", "rs2", "rs1"].into_iter().cycle()) {
            let answer = ask(socket, format!(" hears {round}").as_bytes())?;
            assert_eq!(
                String::from_utf8_lossy(&answer),
                format!("{server} hears {round}")
            );
        }
    }
    let listed = lab.ipvsadm(["-L", "-n", "-u", &format!("{VIP}:7")])?;
    for number in 1..=3 {
        // As IPVS has it: a UDP flow is inactive.
        let address = real_server_address(number);
        let columns = listed.lines().find(|line| line.contains(&format!("{address}:7")));
        let columns: Vec<_> = columns.unwrap_or_default().split_whitespace().collect();
        assert_eq!(columns[2..], ["Route", "1", "0", "2"], "{listed}");
    }
    Ok(())
}
