//! What is not for a virtual service goes its way as if no program were there.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    agent::XdpMode,
    datagram::{Echo, ask, connected},
    family::Family,
    lab::{Lab, VIP},
    load::Load,
    packet::Capture,
};

use crate::{in_both_modes, in_both_modes_and_families, lab};

in_both_modes!(
    the_director_is_pinged,
    the_director_itself_refuses_a_port_without_a_service,
);
in_both_modes_and_families!(
    tcp_to_the_director_itself_works,
    udp_and_its_fragments_reach_the_director_itself,
);

/// A lab with a virtual service on TCP port 80, by which one request has gone.
fn forwarding(mode: XdpMode, family: Family) -> Result<Lab> {
    let lab = lab(mode, 2)?.over(family);
    lab.add_service("rr")?;
    assert_eq!(lab.fetch("/")?, "rs2\n");
    Ok(lab)
}

fn the_director_is_pinged(mode: XdpMode) -> Result<()> {
    let lab = forwarding(mode, Family::V4)?;
    let addresses = Family::ALL.map(|family| [family.director(), family.vip()]);
    for address in addresses.as_flattened() {
        // Whole ones and fragments.
        for size in ["56", "4000"] {
            let address = address.to_string();
            lab.client()
                .run("ping", ["-c", "3", "-i", "0.01", "-W", "2", "-s", size, &address])?;
        }
    }
    let shown = lab.director().ip("-json -6 address show dev eth0 scope link")?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    // What is not of this scope leaves an empty place in the list.
    let listed = shown[0]["addr_info"].as_array().into_iter().flatten();
    let address = listed
        .filter_map(|address| address["local"].as_str())
        .next()
        .context("the director has no link-local address")?;
    let router = lab.router();
    for size in ["56", "4000"] {
        let to = format!("{address}%eth1");
        router.run(
            "ping",
            ["-6", "-c", "3", "-i", "0.01", "-W", "2", "-s", size, &to],
        )?;
    }
    Ok(())
}

fn tcp_to_the_director_itself_works(mode: XdpMode, family: Family) -> Result<()> {
    const LENGTH: usize = 1 << 20;
    let lab = forwarding(mode, family)?;
    // The service's own port too, at an address that is no VIP.
    for port in [22, 80] {
        let address = SocketAddr::new(family.director(), port);
        let listener = lab.director().enter(|| TcpListener::bind(address))??;
        let server = thread::spawn(move || -> Result<()> {
            let (mut connection, _) = listener.accept()?;
            let mut text = vec![0; LENGTH];
            connection.read_exact(&mut text)?;
            Ok(connection.write_all(&text)?)
        });
        let limit = Duration::from_secs(5);
        let mut client = lab
            .client()
            .enter(|| TcpStream::connect_timeout(&address, limit))??;
        client.set_read_timeout(Some(limit))?;
        let sent: Vec<u8> = (0..=250).cycle().take(LENGTH).collect();
        client.write_all(&sent)?;
        let mut back = vec![0; LENGTH];
        client.read_exact(&mut back)?;
        assert!(back == sent, "what came back differs");
        server.join().ok().context("the server has panicked")??;
    }
    Ok(())
}

fn udp_and_its_fragments_reach_the_director_itself(mode: XdpMode, family: Family) -> Result<()> {
    let lab = forwarding(mode, family)?;
    // The VIP, at a port whose service is TCP's.
    let _echo = Echo::at(lab.director(), "director", lab.vip(), 80)?;
    let socket = connected(&lab, 80)?;
    let own = lab
        .director()
        .enter(|| UdpSocket::bind((family.director(), 53)))??;
    let client = lab.client().enter(|| UdpSocket::bind((family.client(), 0)))??;
    own.set_read_timeout(Some(Duration::from_secs(2)))?;
    for length in [1, 1400, 20_000] {
        let datagram: Vec<u8> = (0..=250).cycle().take(length).collect();
        assert!(ask(&socket, &datagram)? == [b"director", &datagram[..]].concat());
        client.send_to(&datagram, (family.director(), 53))?;
        let mut buffer = vec![0; 1 << 16];
        let received = own.recv(&mut buffer)?;
        assert!(buffer[..received] == datagram);
    }
    Ok(())
}

fn the_director_itself_refuses_a_port_without_a_service(mode: XdpMode) -> Result<()> {
    let lab = forwarding(mode, Family::V4)?;
    let capture = Capture::start(lab.director(), "eth0")?;
    let report = Load {
        target: SocketAddr::from((VIP, 81)),
        ..Load::sequential(VIP, 1)
    }
    .run(lab.client())?;
    assert!(
        report.failures()[0].1.contains("Connection refused"),
        "{report:?}"
    );
    thread::sleep(Duration::from_millis(50));
    // The SYN came up to the director's own stack, and the RST came down from it.
    let frames = capture.finish()?;
    let tcp: Vec<_> = frames
        .iter()
        .filter(|frame| frame.bytes.get(12..14) == Some(&[8, 0]) && frame.bytes[23] == 6)
        .map(|frame| (frame.outgoing, frame.bytes[47] & 0b0001_0110))
        .collect();
    assert_eq!(tcp, [(false, 0b0000_0010), (true, 0b0001_0100)]);
    Ok(())
}
