//! The object file: loading it, and saying in one line why the kernel refuses something.

use std::path::Path;

use super::{
    Mode, Options,
    pins::{LinkPin, mount_if_missing},
    tables::OTHER_MAPS,
};
use anyhow::{Context as _, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, MapError},
    programs::{
        ProgramError, Xdp,
        links::{FdLink, PinnedLink},
    },
};

/// The object file; empty where the program could not be built (see build.rs).
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/director"));

/// The object file that is in this binary; empty where the program could not be built.
pub fn object_file() -> &'static [u8] {
    OBJECT
}

/// Refuses a kernel, or a sandbox on it, in which there is no BPF; makes nothing that stays, but for the
/// BPF file system, which is mounted where nobody has.
///
/// # Errors
///
/// Where bpf(2) is refused, or there is no BPF file system for the pins.
pub fn require_bpf(pin_directory: &Path) -> anyhow::Result<()> {
    if let Err(error) = Array::<MapData, u32>::create(1, 0) {
        let MapError::CreateError { io_error, .. } = error else {
            bail!("cannot make a BPF map: {}", chain(&error));
        };
        match io_error.raw_os_error() {
            Some(libc::ENOSYS) => bail!(
                "this kernel has no BPF: lvs-xdp needs Linux 6.1 or newer with CONFIG_BPF_SYSCALL ({io_error})"
            ),
            Some(libc::EPERM | libc::EACCES) => bail!(
                "BPF is refused to this process: give it CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN, and in a                  container let its seccomp profile allow bpf(2) ({io_error})"
            ),
            _ => bail!("cannot make a BPF map: {io_error}"),
        }
    }
    mount_if_missing(pin_directory)
}

pub(super) fn director(ebpf: &mut Ebpf) -> anyhow::Result<&mut Xdp> {
    Ok(ebpf
        .program_mut("director")
        .context("the object has no program `director`")?
        .try_into()?)
}

pub(super) fn running_program(links: &[LinkPin]) -> anyhow::Result<Option<u32>> {
    for pin in links {
        let link = FdLink::from(PinnedLink::from_pin(&pin.path).with_context(|| {
            format!(
                "{} is no link of lvs-xdp: remove it, or name another --pin-dir",
                pin.path.display()
            )
        })?);
        let id = link.info()?.program_id();
        if id != 0 {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

pub(super) fn load(directory: &Path, options: &Options) -> anyhow::Result<Ebpf> {
    let shapes = options.capacity.shapes();
    let log = u32::from(options.log_packets);
    let mut loader = EbpfLoader::new();
    loader.override_global("LOG_PACKETS", &log, true);
    for shape in &shapes {
        loader.map_max_entries(shape.name, shape.entries);
        loader.map_pin_path(shape.name, directory.join(shape.name));
    }
    for name in OTHER_MAPS {
        loader.map_pin_path(name, directory.join(name));
    }
    loader.load(OBJECT).map_err(|error| {
        anyhow::anyhow!(
            "cannot make the maps: {}; is BPF in this kernel, and is there memory for the tables?",
            chain(&error)
        )
    })
}

pub(super) fn load_program(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<()> {
    let program: &mut Xdp = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program `{name}`"))?
        .try_into()?;
    program.load().map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            tracing::debug!("the verifier on `{name}`:\n{verifier_log}");
            anyhow::anyhow!(
                "the kernel refuses the program `{name}`: {io_error} (Linux 6.1 or newer is needed; --log-level debug shows the verifier's words)"
            )
        }
        other => anyhow::anyhow!("cannot load the program `{name}`: {}", chain(&other)),
    })
}

pub(super) fn is_busy(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else {
        return false;
    };
    matches!(error.io_error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// Whether an attachment's interface has gone.
pub(super) fn is_unlinked(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else {
        return false;
    };
    error.io_error.raw_os_error() == Some(libc::ENOLINK)
}

pub(super) fn why(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            "the driver has no native XDP".to_owned()
        }
        ProgramError::SyscallError(error) => match error.io_error.raw_os_error() {
            // What drivers say to a frame size that they cannot take; their words are in the kernel's log, at best.
            Some(libc::EINVAL | libc::ERANGE) => format!(
                "{}: the driver may have no native XDP for frames as large as its MTU; try a smaller one",
                error.io_error
            ),
            _ => error.io_error.to_string(),
        },
        other => chain(other),
    }
}

pub(super) fn refused(interface: &str, mode: Mode, error: &ProgramError) -> anyhow::Error {
    if is_busy(error) {
        anyhow::anyhow!(
            "{interface} has another XDP program: `ip link show {interface}` tells which; remove it before lvs-xdp is attached"
        )
    } else {
        anyhow::anyhow!("cannot attach to {interface} in {mode} mode: {}", why(error))
    }
}

/// An error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::io;

    use aya::sys::SyscallError;

    use super::*;

    fn error(number: i32) -> ProgramError {
        ProgramError::SyscallError(SyscallError {
            call: "bpf_link_create",
            io_error: io::Error::from_raw_os_error(number),
        })
    }

    #[test]
    fn what_drivers_refuse_is_said_with_its_likely_cause() {
        for (number, expected) in [
            (libc::EOPNOTSUPP, "the driver has no native XDP"),
            (
                libc::EINVAL,
                "Invalid argument (os error 22): the driver may have no native XDP for frames as large as its MTU; \
                 try a smaller one",
            ),
            (libc::ENOMEM, "Cannot allocate memory (os error 12)"),
        ] {
            assert_eq!(why(&error(number)), expected);
        }
        let refused = refused("eth0", Mode::Native, &error(libc::ERANGE)).to_string();
        assert!(
            refused.starts_with("cannot attach to eth0 in native mode: "),
            "{refused}"
        );
        assert!(refused.ends_with("try a smaller one"), "{refused}");
        assert!(is_busy(&error(libc::EBUSY)) && !is_busy(&error(libc::ENOLINK)));
        assert!(is_unlinked(&error(libc::ENOLINK)) && !is_unlinked(&error(libc::EBUSY)));
    }
}
