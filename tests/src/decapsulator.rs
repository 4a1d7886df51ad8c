//! The other end of a tunnel, for kernels that have none: takes packets out of others, and hands them to the
//! host as if they had come in by an interface.
//!
//! What a kernel checks is checked: the checksum of UDP by the socket itself, that of GRE here.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{family::Family, netns::Netns};

/// The port on which GUE is taken.
pub const GUE_PORT: u16 = 6080;

/// How long a socket waits before it looks whether all is over.
const PATIENCE: Duration = Duration::from_millis(50);

const IPIP: i32 = 4;
const IPV6: i32 = 41;
const GRE: i32 = 47;
const UDP: i32 = 17;

/// Takes IPIP, GUE and GRE over IPv4 and IPv6 until it is dropped.
#[derive(Debug)]
pub struct Decapsulator {
    stop: Arc<AtomicBool>,
    /// Packets taken out, by outer protocol.
    taken: Arc<[AtomicU64; 256]>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Decapsulator {
    /// Starts it on a host, which gets an interface `inner`.
    ///
    /// # Errors
    ///
    /// When a socket or the interface cannot be made.
    pub fn start(netns: &Netns) -> Result<Self> {
        let inner = Arc::new(netns.enter(|| interface("inner"))??);
        netns.ip("link set inner up")?;
        let stop = Arc::new(AtomicBool::new(false));
        let taken = Arc::new([const { AtomicU64::new(0) }; 256]);
        let mut threads = Vec::new();
        for family in Family::ALL {
            for protocol in [IPIP, IPV6, GRE, UDP] {
                let socket = netns.enter(|| open(family, protocol))??;
                let (inner, stop, taken) = (Arc::clone(&inner), Arc::clone(&stop), Arc::clone(&taken));
                threads.push(std::thread::spawn(move || {
                    take(&socket, family, protocol, &inner, &stop, &taken)
                }));
            }
        }
        Ok(Self { stop, taken, threads })
    }

    /// How many packets were taken out of those of an IP protocol.
    pub fn taken(&self, protocol: u8) -> u64 {
        self.taken[usize::from(protocol)].load(Ordering::Relaxed)
    }
}

impl Drop for Decapsulator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("the other end of the tunnel: {error:#}"),
                Err(_) => eprintln!("the other end of the tunnel has panicked"),
            }
        }
    }
}

/// A TUN interface (tuntap.rst of the kernel's documentation); it goes with the file.
fn interface(name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun")?;
    // SAFETY: an ifreq of zeroes is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).context("the flags of a TUN interface")?;
    // SAFETY: the request lives until the call returns.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    ensure!(
        status == 0,
        "making the interface {name}: {}",
        io::Error::last_os_error()
    );
    Ok(file)
}

fn open(family: Family, protocol: i32) -> Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let is_udp = protocol == UDP;
    let kind = if is_udp { Type::DGRAM } else { Type::RAW };
    let socket = Socket::new(domain, kind, Some(Protocol::from(protocol)))
        .with_context(|| format!("a socket for protocol {protocol}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_recv_buffer_size(8 << 20)?;
    if is_udp {
        let any = family.of([0, 0, 0, 0]);
        let any = if any.is_ipv4() {
            any
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
            accept_no_checksum(&socket)?;
        }
        socket.bind(&SockAddr::from(std::net::SocketAddr::new(any, GUE_PORT)))?;
    }
    Ok(socket)
}

/// UDP over IPv6 without a checksum is taken, as fou does (RFC 6935; `UDP_NO_CHECK6_RX`).
fn accept_no_checksum(socket: &Socket) -> Result<()> {
    let yes: libc::c_int = 1;
    // SAFETY: the value is a live c_int of the length given.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_UDP,
            libc::UDP_NO_CHECK6_RX,
            (&raw const yes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    ensure!(status == 0, "UDP_NO_CHECK6_RX: {}", io::Error::last_os_error());
    Ok(())
}

fn take(
    mut socket: &Socket,
    family: Family,
    protocol: i32,
    mut inner: &File,
    stop: &AtomicBool,
    taken: &[AtomicU64; 256],
) -> Result<()> {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error).context("receiving"),
        };
        let mut packet = &buffer[..length];
        // A raw socket of IPv4 sees the outer header, too.
        if family == Family::V4 && protocol != UDP {
            packet = &packet[usize::from(packet[0] & 0xf) * 4..];
        }
        let Some(packet) = unwrap(protocol, packet) else {
            continue;
        };
        inner.write_all(packet).context("handing a packet to the host")?;
        if let Some(count) = usize::try_from(protocol).ok().and_then(|index| taken.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// The packet behind the header that is between; `None` where there is something wrong with that.
fn unwrap(protocol: i32, packet: &[u8]) -> Option<&[u8]> {
    let (inner, version) = match protocol {
        IPIP => (packet, 4),
        IPV6 => (packet, 6),
        UDP => {
            let (header, inner) = packet.split_first_chunk::<4>()?;
            let version = match header {
                [0, 4, 0, 0] => 4,
                [0, 41, 0, 0] => 6,
                _ => return None,
            };
            (inner, version)
        }
        _ => {
            let (header, inner) = packet.split_first_chunk::<4>()?;
            let version = if header[2..] == [8, 0] { 4 } else { 6 };
            match header[..2] {
                [0, 0] => (inner, version),
                [0x80, 0] if is_sound(packet) => (inner.get(4..)?, version),
                _ => return None,
            }
        }
    };
    (inner.first()? >> 4 == version).then_some(inner)
}

/// Whether the checksum over these octets, which is among them, is right (RFC 1071).
fn is_sound(octets: &[u8]) -> bool {
    let sum: u64 = octets
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    sum != 0 && sum.is_multiple_of(0xffff)
}
