//! Frames as they are on the wire: seen on an interface, and put on it.

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use crate::netns::Netns;

/// Room for the largest frame, one the kernel has merged included.
const FRAME_LIMIT: usize = 0x1_0000 + 64;
/// Room for frames that were not read yet. The kernel doubles it, and counts its own overhead too.
const RECEIVE_BUFFER: libc::c_int = 32 << 20;
/// How often a capture looks whether it is to end.
const TICK: Duration = Duration::from_millis(20);

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// All of it from the destination MAC on, without the frame check sequence; a VLAN tag is where it was on the wire.
    pub bytes: Vec<u8>,
    /// It left by the interface, rather than came in.
    pub outgoing: bool,
    /// Its transport checksum was to be filled in by hardware that a veth does not have
    /// (`TP_STATUS_CSUMNOTREADY`): what the bytes say in its place means nothing.
    pub checksum_pending: bool,
}

/// A running capture of every frame on an interface.
///
/// It sees what a tcpdump would: on the director, not what native XDP sends on.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Result<Vec<Frame>>>,
}

impl Capture {
    /// Starts capturing; frames from now on are seen.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = netns
            .enter(|| open(interface))?
            .with_context(|| format!("capturing on {interface} of {}", netns.name()))?;
        socket.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = std::thread::spawn(move || read_until(&socket, &stopped));
        Ok(Self { stop, reader })
    }

    /// Ends the capture and returns what it has seen, in order.
    ///
    /// # Errors
    ///
    /// When reading failed, or the kernel had to leave frames out because they came too fast: a
    /// capture that is not complete proves nothing.
    ///
    /// # Panics
    ///
    /// When the reading thread did.
    pub fn finish(self) -> Result<Vec<Frame>> {
        self.stop.store(true, Ordering::Relaxed);
        self.reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// The frames seen on an interface during `window`.
///
/// # Errors
///
/// As [`Capture::start`] and [`Capture::finish`].
pub fn capture_for(netns: &Netns, interface: &str, window: Duration) -> Result<Vec<Frame>> {
    let capture = Capture::start(netns, interface)?;
    std::thread::sleep(window);
    capture.finish()
}

/// Sends a whole frame out by an interface, as it is.
///
/// # Errors
///
/// When there is no such interface, or the frame is shorter than an Ethernet header or longer than the MTU allows.
pub fn inject(netns: &Netns, interface: &str, frame: &[u8]) -> Result<()> {
    let sent = netns.enter(|| anyhow::Ok(open(interface)?.send(frame)?))?;
    let sent = sent.with_context(|| format!("sending a frame on {interface} of {}", netns.name()))?;
    ensure!(
        sent == frame.len(),
        "only {sent} of {} bytes were sent",
        frame.len()
    );
    Ok(())
}

/// A packet socket on `interface` of the calling thread's namespace.
fn open(interface: &str) -> Result<Socket> {
    let index = if_nametoindex(interface).context("looking for the interface")?;
    // Without a protocol the socket sees nothing, until bind sets one: frames of other interfaces never get in.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    // By force: net.core.rmem_max allows some 200 kB.
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a sockaddr_ll fits into the storage, and all its bit patterns are valid.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET.try_into()?;
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    address.sll_ifindex = index.try_into()?;
    // SAFETY: the storage holds a sockaddr_ll with the family set.
    let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>().try_into()?) };
    socket.bind(&address)?;
    Ok(socket)
}

fn read_until(socket: &Socket, stop: &AtomicBool) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; FRAME_LIMIT];
    loop {
        // Read before receiving: everything that came before the stop is still taken.
        let last_round = stop.load(Ordering::Relaxed);
        let flags = if last_round { libc::MSG_DONTWAIT } else { 0 };
        match receive(socket, &mut buffer, flags) {
            Ok(frame) => frames.push(frame),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if last_round {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receiving frames"),
        }
    }
    let missed = missed(socket).context("asking for lost frames")?;
    ensure!(
        missed == 0,
        "the kernel left {missed} frames out of the capture: they came too fast"
    );
    Ok(frames)
}

/// A buffer for control messages, aligned as their headers.
#[repr(C, align(8))]
struct ControlBuffer([u8; 128]);

fn receive(socket: &Socket, buffer: &mut [u8], flags: libc::c_int) -> io::Result<Frame> {
    let mut sender = MaybeUninit::<libc::sockaddr_ll>::zeroed();
    let mut control = ControlBuffer([0; 128]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: an msghdr of zeroes is a valid one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = sender.as_mut_ptr().cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: the message's three buffers live until the call returns, with the lengths given.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let length = usize::try_from(length).map_err(|_negative| io::Error::last_os_error())?;
    // SAFETY: zeroed, then written by the kernel; every bit pattern is a valid sockaddr_ll.
    let sender = unsafe { sender.assume_init() };
    let mut frame = Frame {
        bytes: buffer[..length].to_vec(),
        outgoing: sender.sll_pkttype == libc::PACKET_OUTGOING,
        checksum_pending: false,
    };
    if let Some(auxiliary) = auxiliary_data(&message) {
        frame.checksum_pending = auxiliary.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0;
        if auxiliary.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
            restore_vlan_tag(&mut frame.bytes, &auxiliary);
        }
    }
    Ok(frame)
}

/// What the kernel says about a frame beside its bytes (packet(7), `PACKET_AUXDATA`).
fn auxiliary_data(message: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: recvmsg has filled the message in, and its control buffer is alive.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    if header.cmsg_level != libc::SOL_PACKET || header.cmsg_type != libc::PACKET_AUXDATA {
        return None;
    }
    // SAFETY: a message of this level and type carries a tpacket_auxdata.
    Some(unsafe {
        libc::CMSG_DATA(header)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned()
    })
}

/// Puts back the outer VLAN tag, which the kernel takes out of a frame before anybody can see it.
fn restore_vlan_tag(bytes: &mut Vec<u8>, auxiliary: &libc::tpacket_auxdata) {
    const MAC_ADDRESSES: usize = 12;
    let tag: Vec<u8> = auxiliary
        .tp_vlan_tpid
        .to_be_bytes()
        .into_iter()
        .chain(auxiliary.tp_vlan_tci.to_be_bytes())
        .collect();
    bytes.splice(MAC_ADDRESSES..MAC_ADDRESSES, tag);
}

fn set_option(
    socket: &Socket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is a live c_int of the length given.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// How many frames had no room in the socket's buffer.
fn missed(socket: &Socket) -> io::Result<u32> {
    let mut statistics = MaybeUninit::<libc::tpacket_stats>::zeroed();
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the buffer is a live tpacket_stats of the length given.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            statistics.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, then written by the kernel.
    Ok(unsafe { statistics.assume_init() }.tp_drops)
}
