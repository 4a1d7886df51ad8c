//! The other end of a tunnel: devices that take packets out of others, and GUE's port.
//!
//! Each of the kernel's tunnel modules has one device that takes what no other one is for (`tunl0`, `sit0`,
//! `ip6tnl0`, `gre0`, `ip6gre0`). It is there once the module is loaded, and only has to be set up. What comes
//! out of it has a source that the host's routes lead elsewhere to, so the strict reverse path filter is taken
//! off it: 2, the loose one, holds whatever the value for all interfaces is, since the greater one counts. By the
//! loose one, too, the kernel refuses every IPv4 packet from a device without an IPv4 address
//! (`__fib_validate_source`), so the device gets one of the VIPs. `ip6tnl0` takes only IPv6 out of IPv6 unless told
//! otherwise.

use std::{io::Write, net::IpAddr, process::Command};

use anyhow::{Context as _, bail};
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::link::LinkFlags;

use super::{
    add_command,
    host::{Host, host_prefix},
    record::{Namespace, Record},
    step,
    sysctl::Sysctl,
};
use crate::api::types::TunnelKind;

const TUNL: &str = "tunl0";
const GRE: &str = "gre0";
const IP6GRE: &str = "ip6gre0";
/// What comes out of it is IPv6.
const SIT: &str = "sit0";
/// What comes out of it is what its mode says.
const IP6TNL: &str = "ip6tnl0";
/// The mode in which everything does.
const ANY: &str = "any";

/// The tunnel whose other end this host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelEnd {
    /// Its type.
    pub kind: TunnelKind,
    /// The port of GUE.
    pub port: Option<u16>,
    /// Whether the outer packets are IPv6, and not IPv4.
    pub is_ipv6: bool,
}

/// A tunnel device with the module that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    name: &'static str,
    module: &'static str,
}

impl TunnelEnd {
    /// The devices that packets to these VIPs come out of.
    fn devices(self, vips: &[IpAddr]) -> Vec<Device> {
        let device = |name, module| Device { name, module };
        match (self.kind, self.is_ipv6) {
            (TunnelKind::Gre, false) => vec![device(GRE, "ip_gre")],
            (TunnelKind::Gre, true) => vec![device(IP6GRE, "ip6_gre")],
            // What GUE carries goes on as IPIP.
            (TunnelKind::Ipip | TunnelKind::Gue, true) => vec![device(IP6TNL, "ip6_tunnel")],
            (TunnelKind::Ipip | TunnelKind::Gue, false) => {
                let v4 = vips.iter().any(IpAddr::is_ipv4).then(|| device(TUNL, "ipip"));
                let v6 = vips.iter().any(IpAddr::is_ipv6).then(|| device(SIT, "sit"));
                v4.into_iter().chain(v6).collect()
            }
        }
    }

    /// Whether IPv4 packets come out of a device.
    fn carries_ipv4(self, device: Device) -> bool {
        device.name != SIT
    }

    /// The words of `ip fou` that name GUE's port.
    fn fou(self) -> Option<String> {
        let port = self.port.filter(|_| self.kind == TunnelKind::Gue)?;
        let family = if self.is_ipv6 { " -6" } else { "" };
        Some(format!("port {port}{family}"))
    }
}

/// Whether a device is one of the kernel's own tunnel devices.
pub(super) fn is_tunnel(name: &str) -> bool {
    [TUNL, SIT, IP6TNL, GRE, IP6GRE].contains(&name)
}

fn reverse_path(device: &str) -> Sysctl {
    Sysctl {
        path: format!("net/ipv4/conf/{device}/rp_filter"),
        wanted: "2",
        accepted: &["2"],
    }
}

/// Runs a command of the words of `line`.
fn run(line: &str) -> anyhow::Result<String> {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap_or_default())
        .args(words)
        .output()
        .with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}", said.trim_end().replace('\n', "; "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `ip fou show` has this port.
fn has_fou(listed: &str, fou: &str) -> bool {
    let is_ipv6 = |words: &str| words.split_whitespace().any(|word| word == "-6");
    let port = |words: &str| {
        let mut words = words.split_whitespace().skip_while(|word| *word != "port");
        words.nth(1).map(str::to_owned)
    };
    listed
        .lines()
        .any(|line| port(line) == port(fou) && is_ipv6(line) == is_ipv6(fou))
}

/// Prepares this host as the end of a tunnel. Without a record it only says what would be done.
///
/// # Errors
///
/// When a module is not there, or a step fails: those before it stay, and [`undo`] takes them back.
pub(super) async fn prepare(
    end: TunnelEnd,
    vips: &[IpAddr],
    record: &mut Option<Record>,
    out: &mut (impl Write + ?Sized),
) -> anyhow::Result<()> {
    for device in end.devices(vips) {
        let Device { name, module } = device;
        let load = format!("modprobe {module}");
        match (if_nametoindex(name), record.is_some()) {
            (Ok(_), _) => step(out, &load, "already so")?,
            (Err(_), false) => step(out, &load, "to do")?,
            (Err(_), true) => {
                run(&load)?;
                if_nametoindex(name).with_context(|| {
                    format!("{module} is loaded, but this network namespace has no {name}: see net.core.fb_tunnels_only_for_init_net")
                })?;
                step(out, &load, "done")?;
            }
        }
        let host = Host::read().await?;
        let found = host.interfaces.values().find(|found| found.name == name);
        let is_up = found.is_some_and(|found| found.flags.contains(LinkFlags::Up));
        let set_up = format!("ip link set {name} up");
        if is_up {
            step(out, &set_up, "already so")?;
        } else if let Some(record) = record {
            record.namespace().devices.insert(name.to_owned());
            record.save()?;
            run(&set_up)?;
            step(out, &set_up, "done, was down")?;
        } else {
            step(out, &set_up, "to do")?;
        }
        let Sysctl {
            path,
            wanted,
            accepted,
        } = reverse_path(name);
        let held = found.is_some_and(|_| host.has_ipv4(name));
        let value = if found.is_some() {
            Sysctl::read(&path)?
        } else {
            String::new()
        };
        let command = Sysctl::command(&path, wanted);
        if accepted.contains(&value.as_str()) {
            step(out, &command, "already so")?;
        } else if let Some(record) = record {
            record.namespace().sysctls.insert(path.clone(), value.clone());
            record.save()?;
            Sysctl::write(&path, wanted)?;
            step(out, &command, format_args!("done, was {value}"))?;
        } else {
            step(out, &command, "to do")?;
        }
        if name == IP6TNL {
            take_everything(vips, record, out)?;
        }
        let vip = vips.iter().find(|vip| vip.is_ipv4());
        if let Some(vip) = vip.filter(|_| end.carries_ipv4(device)) {
            let command = add_command(*vip, name);
            if held {
                step(out, &format!("ip address show dev {name}"), "has an IPv4 address")?;
            } else if let Some(record) = record {
                record.namespace().held.insert(name.to_owned(), *vip);
                record.save()?;
                run(&command)?;
                step(out, &command, "done")?;
            } else {
                step(out, &command, "to do")?;
            }
        }
    }
    let Some(fou) = end.fou() else { return Ok(()) };
    let add = format!("ip fou add {fou} gue");
    let Some(record) = record else {
        step(out, &add, "to do")?;
        return Ok(());
    };
    let modules = if end.is_ipv6 {
        "modprobe -a fou fou6"
    } else {
        "modprobe fou"
    };
    run(modules)?;
    if has_fou(&run("ip fou show")?, &fou) {
        step(out, &add, "already so")?;
        return Ok(());
    }
    record.namespace().ports.insert(fou);
    record.save()?;
    run(&add)?;
    step(out, &add, "done")?;
    Ok(())
}

/// Has `ip6tnl0` take out IPv4 packets, too, where there are IPv4 VIPs.
fn take_everything(
    vips: &[IpAddr],
    record: &mut Option<Record>,
    out: &mut (impl Write + ?Sized),
) -> anyhow::Result<()> {
    if !vips.iter().any(IpAddr::is_ipv4) {
        return Ok(());
    }
    let command = change_mode(IP6TNL, ANY);
    let Some(record) = record else {
        step(out, &command, "to do")?;
        return Ok(());
    };
    let mode = mode(&run(&format!("ip -6 tunnel show {IP6TNL}"))?)?;
    if mode == ANY {
        step(out, &command, "already so")?;
        return Ok(());
    }
    record
        .namespace()
        .modes
        .insert(IP6TNL.to_owned(), mode.to_owned());
    record.save()?;
    run(&command)?;
    step(out, &command, format_args!("done, was {mode}"))?;
    Ok(())
}

fn change_mode(device: &str, mode: &str) -> String {
    format!("ip -6 tunnel change {device} mode {mode}")
}

/// The mode of a device, as `ip -6 tunnel show` says it: `ip6tnl0: ipv6/ipv6 remote :: ...`.
fn mode(shown: &str) -> anyhow::Result<&'static str> {
    match shown.split_whitespace().nth(1) {
        Some("any/ipv6") => Ok(ANY),
        Some("ipv6/ipv6") => Ok("ip6ip6"),
        Some("ip/ipv6") => Ok("ipip6"),
        _ => bail!(
            "cannot read the mode of {IP6TNL} from `ip -6 tunnel show`: {}",
            shown.trim_end()
        ),
    }
}

/// Takes back what [`prepare`] did and `left` names, but for the sysctls.
///
/// # Errors
///
/// When a step fails: those before it stay done.
pub(super) fn undo(
    left: &Namespace,
    record: &mut Option<Record>,
    out: &mut (impl Write + ?Sized),
) -> anyhow::Result<()> {
    let mut take_back = |command: String, forget: &dyn Fn(&mut Namespace)| -> anyhow::Result<()> {
        let Some(record) = record else {
            step(out, &command, "to do")?;
            return Ok(());
        };
        run(&command)?;
        forget(record.namespace());
        record.save()?;
        step(out, &command, "done")?;
        Ok(())
    };
    for fou in &left.ports {
        take_back(format!("ip fou del {fou}"), &|namespace| {
            namespace.ports.remove(fou);
        })?;
    }
    for (device, vip) in &left.held {
        take_back(
            format!("ip address del {vip}/{} dev {device}", host_prefix(*vip)),
            &|namespace| {
                namespace.held.remove(device);
            },
        )?;
    }
    for (device, mode) in &left.modes {
        take_back(change_mode(device, mode), &|namespace| {
            namespace.modes.remove(device);
        })?;
    }
    for device in &left.devices {
        take_back(format!("ip link set {device} down"), &|namespace| {
            namespace.devices.remove(device);
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_those_that_the_vips_come_out_of() {
        let [v4, v6]: [IpAddr; 2] =
            ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("an address"));
        let names = |kind, is_ipv6, vips: &[IpAddr]| -> Vec<_> {
            let end = TunnelEnd {
                kind,
                port: None,
                is_ipv6,
            };
            end.devices(vips).into_iter().map(|device| device.name).collect()
        };
        assert_eq!(names(TunnelKind::Ipip, false, &[v4]), ["tunl0"]);
        assert_eq!(names(TunnelKind::Gue, false, &[v4, v6]), ["tunl0", "sit0"]);
        assert_eq!(names(TunnelKind::Ipip, true, &[v4, v6]), ["ip6tnl0"]);
        assert_eq!(names(TunnelKind::Gre, false, &[v6]), ["gre0"]);
        assert_eq!(names(TunnelKind::Gre, true, &[v4]), ["ip6gre0"]);
    }

    #[test]
    fn a_mode_is_read_from_what_ip_shows() {
        let shown = "ip6tnl0: ipv6/ipv6 remote :: local :: encaplimit 0 hoplimit 0 tclass 0x00\n";
        assert_eq!(mode(shown).ok(), Some("ip6ip6"));
        assert_eq!(mode("ip6tnl0: any/ipv6 remote ::").ok(), Some("any"));
        assert!(mode("").is_err());
    }

    #[test]
    fn a_port_is_found_among_others_of_its_family() {
        let listed = "port 6080 gue\nport 5555 ipproto 4\nport 7000 gue -6 \n";
        for (fou, expected) in [
            ("port 6080", true),
            ("port 6080 -6", false),
            ("port 7000 -6", true),
            ("port 7000", false),
            ("port 608", false),
        ] {
            assert_eq!(has_fou(listed, fou), expected, "{fou}");
        }
    }
}
