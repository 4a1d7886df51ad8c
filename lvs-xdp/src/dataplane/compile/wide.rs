//! Services that take packets of other ports than their own, for which the program looks only where there are some.

use lvs_xdp_common::{
    abi::{Control, Kind, control_flag},
    flow::FTP_PORT,
};

use crate::api::types::{Protocol, ServiceKey};

/// How many there are of each sort.
#[derive(Debug, Default)]
pub(super) struct Wide {
    all_ports: u32,
    ftp: u32,
}

/// The flag that a service needs; 0 for most.
fn flag(key: &ServiceKey) -> u64 {
    match key {
        ServiceKey::Endpoint { port: 0, .. } => control_flag::ALL_PORTS,
        ServiceKey::Endpoint {
            protocol: Protocol::Tcp,
            port: FTP_PORT,
            ..
        } => control_flag::FTP,
        _ => 0,
    }
}

fn is_live(kind: Kind) -> bool {
    !matches!(kind, Kind::Absent | Kind::Tombstone)
}

impl Wide {
    fn count(&mut self, key: &ServiceKey) -> Option<&mut u32> {
        match flag(key) {
            control_flag::ALL_PORTS => Some(&mut self.all_ports),
            control_flag::FTP => Some(&mut self.ftp),
            _ => None,
        }
    }

    /// Takes in what has become of a service.
    pub(super) fn note(&mut self, key: &ServiceKey, before: Kind, after: Kind) {
        let Some(count) = self.count(key) else { return };
        *count += u32::from(is_live(after));
        *count -= u32::from(is_live(before));
    }

    /// Says so to the program: of those that are counted, and of those that are about to be.
    pub(super) fn announce(&self, control: &Control, next: impl Iterator<Item = (ServiceKey, Kind)>) {
        let counted = [
            (self.all_ports, control_flag::ALL_PORTS),
            (self.ftp, control_flag::FTP),
        ];
        let counted = counted.into_iter().filter(|(count, _)| *count > 0);
        let next = next.filter(|(_, kind)| is_live(*kind));
        let wanted = counted
            .map(|(_, flag)| flag)
            .chain(next.map(|(key, _)| flag(&key)))
            .fold(0, |all, flag| all | flag);
        let others = control.flags.load() & !(control_flag::ALL_PORTS | control_flag::FTP);
        control.flags.store(others | wanted);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn the_program_looks_while_there_is_one() {
        let control = Control::default();
        control.flags.store(control_flag::MARKS);
        let mut wide = Wide::default();
        let key = |port| ServiceKey::new(Protocol::Tcp, IpAddr::from([192, 0, 2, 1]), port);
        let (all, ftp, web) = (key(0), key(FTP_PORT), key(80));
        let flags = |wide: &Wide, next: &[(ServiceKey, Kind)]| {
            wide.announce(&control, next.iter().copied());
            control.flags.load() & !control_flag::MARKS
        };
        assert_eq!(flags(&wide, &[(web, Kind::Rr)]), 0);
        assert_eq!(flags(&wide, &[(all, Kind::Rr)]), control_flag::ALL_PORTS);
        assert_eq!(flags(&wide, &[(all, Kind::Tombstone)]), 0);
        for key in [all, ftp, web] {
            wide.note(&key, Kind::Absent, Kind::Rr);
        }
        wide.note(&ftp, Kind::Rr, Kind::Wlc);
        assert_eq!(flags(&wide, &[]), control_flag::ALL_PORTS | control_flag::FTP);
        wide.note(&all, Kind::Rr, Kind::Tombstone);
        assert_eq!(flags(&wide, &[]), control_flag::FTP);
        wide.note(&all, Kind::Tombstone, Kind::Rr);
        wide.note(&ftp, Kind::Wlc, Kind::Tombstone);
        wide.note(&ftp, Kind::Tombstone, Kind::Absent);
        assert_eq!(flags(&wide, &[]), control_flag::ALL_PORTS);
        assert_ne!(control.flags.load() & control_flag::MARKS, 0, "others stay");
    }
}
