//! UDP datagrams that are larger than the MTU.

use std::{net::UdpSocket, time::Duration};

use anyhow::Result;
use lvs_xdp_tests::{
    agent::XdpMode,
    ask::packets,
    datagram::{Echo, ask, connected},
    family::Family,
    lab::{CLIENT, Lab, VIP},
    packet::inject,
};

use crate::{hosts, in_both_modes, in_both_modes_and_families};

in_both_modes_and_families!(a_large_datagram_arrives_whole_at_one_server);
in_both_modes!(fragments_follow_the_first_one_in_any_order);

const PORT: u16 = 7;

/// A lab whose two real servers echo datagrams to port 7 of the VIP, and their echo servers.
fn lab(mode: XdpMode, family: Family) -> Result<(Vec<Echo>, Lab)> {
    let mut lab = hosts(mode, 2)?.over(family);
    lab.prepare_real_servers()?;
    lab.start_agent()?;
    let typed = |address| match family {
        Family::V4 => format!("{address}:{PORT}"),
        Family::V6 => format!("[{address}]:{PORT}"),
    };
    let service = typed(lab.vip());
    lab.cli(["service", "add", "udp", &service, "--scheduler", "rr"])?;
    let mut echoes = Vec::new();
    for number in 1..=2 {
        lab.cli([
            "server",
            "add",
            "udp",
            &service,
            &typed(family.real_server(number)),
        ])?;
        let server = &lab.real_servers()[number - 1];
        echoes.push(Echo::at(server.netns(), server.name(), lab.vip(), PORT)?);
    }
    Ok((echoes, lab))
}

fn text(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

fn a_large_datagram_arrives_whole_at_one_server(mode: XdpMode, family: Family) -> Result<()> {
    let (_echoes, lab) = lab(mode, family)?;
    let mut expected = 0;
    for server in ["rs2", "rs1"].repeat(4) {
        let socket = connected(&lab, PORT)?;
        for length in [8000, 1400, 60_000] {
            let text = text(length);
            let answer = ask(&socket, &text)?;
            assert!(
                answer == [server.as_bytes(), &text].concat(),
                "{length} bytes from {server}"
            );
        }
        // Of 8,008 and 60,008 bytes, all fragments but the first.
        expected += [8008, 60_008]
            .map(|length: u64| (length - 1) / room(family))
            .iter()
            .sum::<u64>();
    }
    assert_eq!(packets(&lab, "fragment")?, expected);
    Ok(())
}

/// Bytes of the datagram that a fragment has room for.
fn room(family: Family) -> u64 {
    match family {
        Family::V4 => 1480,
        // A header of 40 bytes and one of 8; in units of 8.
        Family::V6 => 1448,
    }
}

/// The frames, to the router, of a datagram to the VIP in fragments of 1,000 bytes.
fn fragments(lab: &Lab, source_port: u16, identification: u16, text: &[u8]) -> Result<Vec<Vec<u8>>> {
    const ROOM: usize = 1000;
    let mut datagram = [source_port, PORT].map(u16::to_be_bytes).concat();
    datagram.extend(u16::try_from(8 + text.len())?.to_be_bytes());
    // Without a checksum, which IPv4 allows.
    datagram.extend([0, 0]);
    datagram.extend(text);
    let macs = [
        lab.topology().mac("router", "eth0")?,
        lab.topology().mac("client", "eth0")?,
    ]
    .concat();
    let parts = datagram.chunks(ROOM).enumerate();
    let frames = parts.map(|(index, part)| {
        let is_last = (index + 1) * ROOM >= datagram.len();
        let mut header = etherparse::Ipv4Header::new(
            u16::try_from(part.len())?,
            64,
            etherparse::IpNumber::UDP,
            CLIENT.octets(),
            VIP.octets(),
        )?;
        header.identification = identification;
        header.more_fragments = !is_last;
        header.fragment_offset = etherparse::IpFragOffset::try_new(u16::try_from(index * ROOM / 8)?)?;
        header.header_checksum = header.calc_header_checksum();
        let mut frame = [&macs[..], &[8, 0]].concat();
        header.write(&mut frame)?;
        frame.extend(part);
        Ok(frame)
    });
    frames.collect()
}

/// Sends frames from the client's card, and waits for the echo of what they carry.
fn echoed(lab: &Lab, socket: &UdpSocket, frames: &[Vec<u8>]) -> Result<Option<Vec<u8>>> {
    for frame in frames {
        inject(lab.client(), "eth0", frame)?;
    }
    let mut answer = vec![0; 1 << 16];
    Ok(socket.recv(&mut answer).ok().map(|length| {
        answer.truncate(length);
        answer
    }))
}

fn fragments_follow_the_first_one_in_any_order(mode: XdpMode) -> Result<()> {
    let (_echoes, lab) = lab(mode, Family::V4)?;
    let text = text(4900);
    let mut fragments_sent = 0;
    for (identification, order) in (1..).zip([[0, 1, 2, 3, 4], [0, 4, 3, 2, 1], [0, 2, 4, 1, 3]]) {
        let socket = connected(&lab, PORT)?;
        let frames = fragments(&lab, socket.local_addr()?.port(), identification, &text)?;
        assert_eq!(frames.len(), 5);
        let frames = order.map(|index: usize| frames[index].clone());
        let answer = echoed(&lab, &socket, &frames)?.unwrap_or_default();
        assert!(answer.ends_with(&text) && answer.starts_with(b"rs"), "{order:?}");
        fragments_sent += 4;
        assert_eq!(packets(&lab, "fragment")?, fragments_sent, "{order:?}");
    }

    // One that comes before the first: nobody knows where to, so that the datagram is lost; and it is counted.
    assert_eq!(packets(&lab, "fragment-unknown")?, 0);
    let socket = connected(&lab, PORT)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let frames = fragments(&lab, socket.local_addr()?.port(), 9, &text)?;
    let frames = [1, 0, 2, 3, 4].map(|index: usize| frames[index].clone());
    assert_eq!(echoed(&lab, &socket, &frames)?, None);
    assert_eq!(packets(&lab, "fragment")?, fragments_sent + 3);
    assert_eq!(packets(&lab, "fragment-unknown")?, 1);
    Ok(())
}
