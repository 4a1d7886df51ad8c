//! Clients and servers over UDP.

use std::{
    io,
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use crate::{
    lab::{Lab, VIP},
    netns::Netns,
};

/// Answers each datagram with the host's name and what came; ends when dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts answering on `port` of the IPv4 VIP in `netns`.
    ///
    /// # Errors
    ///
    /// As [`Echo::at`].
    pub fn start(netns: &Netns, name: &str, port: u16) -> Result<Self> {
        Self::at(netns, name, VIP, port)
    }

    /// Starts answering on `port` of an address in `netns`.
    ///
    /// # Errors
    ///
    /// When the host does not have the address, or the port is taken.
    pub fn at(netns: &Netns, name: &str, address: impl Into<IpAddr>, port: u16) -> Result<Self> {
        let address = address.into();
        // A socket stays in the namespace it was made in. On this address alone: answers leave from there.
        let socket = netns.enter(|| UdpSocket::bind((address, port)))??;
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

/// A client's socket, connected to a port of the VIP; it waits 2 s for an answer.
///
/// # Errors
///
/// When the client cannot be entered.
pub fn connected(lab: &Lab, port: u16) -> Result<UdpSocket> {
    let socket = lab
        .client()
        .enter(|| UdpSocket::bind((lab.family().client(), 0)))??;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect((lab.vip(), port))?;
    Ok(socket)
}

/// Sends a datagram and returns what is answered.
///
/// # Errors
///
/// When nothing is, or the director says by ICMP that nobody is there.
pub fn ask(socket: &UdpSocket, text: &[u8]) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    socket.send(text)?;
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}
