//! An XDP program that passes everything, for the far end of a cable.
//!
//! What a native XDP program on a veth sends by XDP_TX reaches the ring of the cable's other end,
//! but is only flushed there at once if that end runs NAPI, which it does when it has an XDP program
//! itself (drivers/net/veth.c). The same holds for the target of a redirect.
//!
//! The program is two instructions, so it is loaded with bpf(2) as it stands.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;

use crate::netns::Netns;

// Numbers of the kernel's interface, include/uapi/linux/bpf.h and if_link.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_PASS: u64 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// Frames of several buffers are welcome, as jumbo frames are.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOV_IMMEDIATE: u64 = 0xb7;
/// `BPF_JMP | BPF_EXIT`.
const EXIT: u64 = 0x95;

/// `r0 = XDP_PASS; exit`; the opcode is the lowest byte, the immediate the upper half.
const PROGRAM: [u64; 2] = [(XDP_PASS << 32) | MOV_IMMEDIATE, EXIT];

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// A pass-everything program on an interface, in native mode; detached when dropped.
#[derive(Debug)]
pub struct XdpPass {
    _link: OwnedFd,
    _program: OwnedFd,
    _netns: Netns,
}

impl XdpPass {
    /// Attaches it to `interface` of `netns`.
    ///
    /// # Errors
    ///
    /// When there is no such interface or the kernel refuses the program.
    pub fn attach(netns: &Netns, interface: &str) -> Result<Self> {
        // An interface's index is looked up in the namespace of the thread that asks.
        let (program, link) = netns
            .enter(|| {
                let index = if_nametoindex(interface).context("looking for the interface")?;
                let program = load().context("loading the program")?;
                let link = link(&program, index).context("attaching it in native mode")?;
                anyhow::Ok((program, link))
            })?
            .with_context(|| format!("passing by XDP on {interface} of {}", netns.name()))?;
        Ok(Self {
            _link: link,
            _program: program,
            _netns: netns.clone(),
        })
    }
}

fn load() -> Result<OwnedFd> {
    let attributes = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: PROGRAM.len().try_into()?,
        insns: PROGRAM.as_ptr().expose_provenance() as u64,
        license: c"MIT".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: BPF_F_XDP_HAS_FRAGS,
    };
    // SAFETY: the attributes are those of BPF_PROG_LOAD, and both pointers are to statics.
    unsafe { bpf(BPF_PROG_LOAD, &attributes) }
}

fn link(program: &OwnedFd, index: u32) -> Result<OwnedFd> {
    let attributes = LinkCreate {
        prog_fd: program.as_raw_fd().try_into()?,
        target_ifindex: index,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    // SAFETY: the attributes are those of BPF_LINK_CREATE, and hold no pointers.
    unsafe { bpf(BPF_LINK_CREATE, &attributes) }
}

/// bpf(2), for commands that return a file descriptor.
///
/// # Safety
///
/// `T` must be the head of the `union bpf_attr` of `command`, and its pointers valid for the call.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: the size is that of the attributes; the caller answers for what they hold.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    ensure!(fd >= 0, io::Error::last_os_error());
    // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd.try_into()?) })
}
