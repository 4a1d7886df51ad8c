//! The interfaces that the program is on, and what it knows of them.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, bail};
use aya::programs::{
    ProgramError, XdpMode,
    links::{FdLink, LinkError},
};
use lvs_xdp_common::{abi::INTERFACE_ROWS, packet::Mac};

use super::{
    Dataplane,
    object::{director, is_busy, refused, why},
};
use crate::api::types::InterfaceStatus;

/// Where in the network driver's path the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel has made anything of the frame.
    Native,
    /// In the kernel's generic path: works with every driver, slower.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            _ => Err(()),
        }
    }
}

/// An interface with the program on it.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The interface.
    pub if_index: u32,
    /// Its name when it was attached.
    pub name: String,
    /// The mode.
    pub mode: Mode,
    /// Why it is generic, where native was tried and refused.
    pub reason: Option<String>,
}

impl Dataplane {
    /// Attaches the program to an interface; does nothing where it is attached already.
    ///
    /// # Errors
    ///
    /// The interface has another XDP program, or the mode that was asked for is refused.
    pub fn attach(&mut self, interface: &str, wanted: Option<Mode>) -> anyhow::Result<Attached> {
        let if_index = nix::net::if_::if_nametoindex(interface).map_err(|_| {
            anyhow::anyhow!("there is no interface `{interface}`: `ip link` lists those that there are")
        })?;
        if let Some(attached) = self.attached.get(&if_index) {
            if wanted.is_some_and(|mode| mode != attached.mode) {
                bail!(
                    "the program is attached to {interface} in {} mode: run `lvs-xdp unload` before changing the mode",
                    attached.mode
                );
            }
            return Ok(attached.clone());
        }
        let (mode, reason) = match wanted {
            Some(mode) => {
                self.try_attach(if_index, mode)
                    .map_err(|error| refused(interface, mode, &error))?;
                (mode, None)
            }
            None => match self.try_attach(if_index, Mode::Native) {
                Ok(()) => (Mode::Native, None),
                Err(error) if is_busy(&error) => return Err(refused(interface, Mode::Native, &error)),
                Err(error) => {
                    self.try_attach(if_index, Mode::Generic)
                        .map_err(|error| refused(interface, Mode::Generic, &error))?;
                    (Mode::Generic, Some(why(&error)))
                }
            },
        };
        let attached = Attached {
            if_index,
            name: interface.to_owned(),
            mode,
            reason,
        };
        self.attached.insert(if_index, attached.clone());
        self.allow_redirect(if_index)?;
        Ok(attached)
    }

    fn try_attach(&mut self, if_index: u32, mode: Mode) -> Result<(), ProgramError> {
        let path = self.pins.link(if_index, mode);
        let program = director(&mut self.ebpf).map_err(|_| ProgramError::NotLoaded)?;
        let id = program.attach_to_if_index(
            if_index,
            match mode {
                Mode::Native => XdpMode::Driver,
                Mode::Generic => XdpMode::Skb,
            },
        )?;
        let link: FdLink = program
            .take_link(id)?
            .try_into()
            .map_err(|_: LinkError| ProgramError::UnexpectedProgramType)?;
        link.pin(path).map_err(|error| match error {
            aya::pin::PinError::SyscallError(error) => ProgramError::SyscallError(error),
            _ => ProgramError::UnexpectedProgramType,
        })?;
        Ok(())
    }

    /// Lets frames be redirected out of an interface.
    pub fn allow_redirect(&mut self, if_index: u32) -> anyhow::Result<()> {
        self.redirect
            .insert(if_index, if_index, None, 0)
            .context("cannot enter an interface for redirection")
    }

    /// The interfaces that the program is attached to.
    pub fn attached(&self) -> impl Iterator<Item = &Attached> {
        self.attached.values()
    }

    /// Whether the program is attached to an interface.
    pub fn is_attached(&self, if_index: u32) -> bool {
        self.attached.contains_key(&if_index)
    }

    /// Forgets an interface that is gone, where the program was attached to it.
    pub fn detached(&mut self, if_index: u32) -> Option<Attached> {
        let attached = self.attached.remove(&if_index)?;
        // The link holds nothing any more, and another interface may get this index.
        let _ = std::fs::remove_file(self.pins.link(if_index, attached.mode));
        Some(attached)
    }

    /// Notes the name that an interface has now; the one that it had, where that is another one and the program
    /// is attached to it.
    pub fn renamed(&mut self, if_index: u32, name: &str) -> Option<String> {
        let attached = self.attached.get_mut(&if_index)?;
        (attached.name != name).then(|| std::mem::replace(&mut attached.name, name.to_owned()))
    }

    /// What the status says of them.
    pub fn interfaces(&self) -> Vec<InterfaceStatus> {
        self.attached()
            .map(|attached| InterfaceStatus {
                name: attached.name.clone(),
                index: attached.if_index,
                mode: attached.mode.to_string(),
                reason: attached.reason.clone(),
            })
            .collect()
    }

    /// Notes the MAC addresses under which the director takes frames of an interface.
    pub fn set_macs(&self, if_index: u32, macs: &[[u8; 6]]) {
        let row = &self.tables.interfaces[(if_index % INTERFACE_ROWS) as usize];
        // Unknown while it changes: then every frame is taken.
        row.if_index.store(0);
        let mut macs = macs.iter();
        for word in &row.macs {
            word.store(macs.next().map_or(0, |mac| Mac::from_octets(*mac).0));
        }
        if macs.next().is_none() {
            row.if_index.store(u64::from(if_index));
        }
    }
}

/// The index of an interface.
///
/// # Errors
///
/// Where there is no such interface.
pub fn interface_index(name: &str) -> anyhow::Result<u32> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|_| anyhow::anyhow!("there is no interface `{name}`: `ip link` lists those that there are"))
}

/// A MAC address as people write it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
