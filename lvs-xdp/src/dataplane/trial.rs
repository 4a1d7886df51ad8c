//! The program on a frame that came from nowhere and goes nowhere: the kernel's BPF_PROG_TEST_RUN.

use std::path::Path;

use anyhow::Context as _;
use aya::programs::{ProgramFd, ProgramInfo, TestRun as _, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;

use super::{Dataplane, object::director, pins::newest_program};

/// What became of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// The program's answer: one of the `XDP_*` of linux/bpf.h.
    pub action: u32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// `struct xdp_md` of linux/bpf.h: what a trial can say about where its frame came from.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl Dataplane {
    /// Runs the program on a frame as if it had come in on interface `ingress`, on the real maps:
    /// connections are entered and packets counted, but nothing is sent.
    ///
    /// The frame's length is at least 14 bytes (the kernel's limit). What is longer than some 3,500 bytes (one page
    /// with its head- and tailroom) is in several buffers.
    ///
    /// # Errors
    ///
    /// Where the network namespace has no such interface, or the frame has another length.
    pub fn trial(&mut self, frame: &[u8], ingress: u32) -> anyhow::Result<Trial> {
        let context = Context {
            data: 0,
            data_end: u32::try_from(frame.len())?,
            data_meta: 0,
            ingress_ifindex: ingress,
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        // An answer may be longer than what it answers.
        let mut out = vec![0; frame.len() + 64];
        let result = director(&mut self.ebpf)?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(bytemuck::bytes_of(&context)),
                ..TestRunOptions::new()
            })
            .with_context(|| {
                format!(
                    "cannot try a frame of {} bytes on interface {ingress}",
                    frame.len()
                )
            })?;
        out.truncate(result.data_size_out as usize);
        Ok(Trial {
            action: result.return_value,
            frame: out,
        })
    }
}

/// The program that is pinned, for trials by the million: as many handles as there are threads.
#[derive(Debug)]
pub struct Trials(Xdp);

impl Trials {
    /// The program of the newest generation in a directory of pins, whoever has loaded it.
    ///
    /// # Errors
    ///
    /// Where there is none.
    pub fn open(pin_directory: &Path) -> anyhow::Result<Self> {
        let program = Xdp::from_pin(newest_program(pin_directory)?, XdpAttachType::Interface)
            .context("cannot open the pinned program")?;
        Ok(Self(program))
    }

    /// Runs the program on a frame as [`Dataplane::trial`] does, as if it came from the loopback interface;
    /// the program's answer. `out` takes the frame as it was left, and must have room for it.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses the frame.
    pub fn run(&self, frame: &[u8], out: &mut [u8]) -> anyhow::Result<u32> {
        let result = self.0.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(out),
            ..TestRunOptions::new()
        })?;
        Ok(result.return_value)
    }

    /// Instructions that the kernel's verifier has followed to accept it.
    ///
    /// # Errors
    ///
    /// Where the kernel does not say.
    pub fn verified_instructions(&self) -> anyhow::Result<u32> {
        self.info()?
            .verified_instruction_count()
            .context("the kernel does not say how many instructions it has verified")
    }

    /// What the kernel says of the program.
    ///
    /// # Errors
    ///
    /// Where it does not.
    pub fn info(&self) -> anyhow::Result<ProgramInfo> {
        Ok(self.0.info()?)
    }

    /// A handle of the program.
    ///
    /// # Errors
    ///
    /// Where there is no file descriptor left.
    pub fn program(&self) -> anyhow::Result<ProgramFd> {
        Ok(self.0.fd()?.try_clone()?)
    }
}
