//! Sockets that are connected to a real server's own address and whose packets go to a virtual one: see
//! [`lvs_xdp_common::steer`].
//!
//! The two programs are on the interfaces towards the real servers as long as there is something to lead, by links that
//! end with the agent: nobody else has a use for them.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        tc::{SchedClassifierLink, qdisc_add_clsact, qdisc_detach_program},
    },
};
use lvs_xdp_common::{
    abi::name,
    packet::IpProto,
    steer::{Key, Row, key, row},
};

use super::{Dataplane, rows::address};
use crate::api::types::Protocol;

/// The programs, and what each of them is attached to.
const PROGRAMS: [(&str, TcAttachType); 2] = [
    ("steer_out", TcAttachType::Egress),
    ("steer_in", TcAttachType::Ingress),
];

/// The interfaces with both programs.
pub(super) type Steered = BTreeMap<u32, Vec<SchedClassifierLink>>;

/// The table of such sockets.
#[derive(Clone)]
pub struct Steering(Arc<Mutex<HashMap<MapData, Key, Row>>>);

impl fmt::Debug for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steering").finish_non_exhaustive()
    }
}

/// One such socket, as long as this lives. The socket should end first.
#[derive(Debug)]
pub struct Lead {
    steering: Steering,
    key: Key,
}

impl Steering {
    /// Has the packets of a socket, which is bound to `local` and will be connected to `rip`, go to `vip`.
    ///
    /// # Errors
    ///
    /// Where the table has no room for another one.
    pub fn lead(
        &self,
        local: SocketAddr,
        protocol: Protocol,
        rip: IpAddr,
        vip: IpAddr,
    ) -> anyhow::Result<Lead> {
        let key = key(address(local.ip()), local.port(), IpProto(protocol.number()));
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(key, row(address(rip), address(vip)), 0)
            .context("no room for another socket in the table of health checks")?;
        Ok(Lead {
            steering: self.clone(),
            key,
        })
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut map = self.steering.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is not there leads nobody.
        let _ = map.remove(&self.key);
    }
}

impl Dataplane {
    /// The table of sockets whose packets are led.
    ///
    /// # Errors
    ///
    /// Where it was taken before.
    pub fn steering(&mut self) -> anyhow::Result<Steering> {
        let map = self
            .ebpf
            .take_map(name::STEERED)
            .context("the table of health checks was taken before")?;
        Ok(Steering(Arc::new(Mutex::new(HashMap::try_from(map)?))))
    }

    /// Leads packets on these interfaces, by index and name, and on no others; the indexes of those where it is so.
    ///
    /// # Errors
    ///
    /// The first one where it could not be done, and why. The others are done.
    pub fn steer_on(&mut self, interfaces: &BTreeMap<u32, String>) -> (Vec<u32>, anyhow::Result<()>) {
        self.steered
            .retain(|if_index, _| interfaces.contains_key(if_index));
        let mut result = Ok(());
        for (&if_index, name) in interfaces {
            if self.steered.contains_key(&if_index) {
                continue;
            }
            match attach(&mut self.ebpf, name) {
                Ok(links) => drop(self.steered.insert(if_index, links)),
                Err(error) if result.is_ok() => {
                    result = Err(error.context(format!("health checks cannot leave by {name}")));
                }
                Err(_) => {}
            }
        }
        (self.steered.keys().copied().collect(), result)
    }
}

fn attach(ebpf: &mut Ebpf, interface: &str) -> anyhow::Result<Vec<SchedClassifierLink>> {
    let mut links = Vec::new();
    for (name, place) in PROGRAMS {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .with_context(|| format!("the object has no program `{name}`"))?
            .try_into()?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(error).context(format!("the kernel refuses the program `{name}`")),
        }
        // Before Linux 6.6 what an agent that was killed has attached stays. There is none to be found with most.
        let _ = qdisc_detach_program(interface, place, name);
        let id = program.attach(interface, place).or_else(|_| {
            // The older way wants a place first, which may be there.
            let _ = qdisc_add_clsact(interface);
            program.attach(interface, place)
        })?;
        links.push(program.take_link(id)?);
    }
    Ok(links)
}
