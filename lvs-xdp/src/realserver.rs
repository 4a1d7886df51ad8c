//! What direct routing needs on a real server: the VIP on its loopback interface, and silence about it.
//!
//! A real server must take packets for the VIP and answer from it, but only the director may say on the
//! segment that it has the VIP. So, in this order:
//!
//! 1. `net.ipv4.conf.{all,lo}.arp_ignore=1`: the kernel answers an ARP request only for an address of the
//!    interface it came in by, so not for one of `lo`; `arp_announce=2`: it never asks from one
//!    either (a request from the VIP would tell everybody that the VIP is here). See ip-sysctl.rst of the
//!    kernel's documentation. Of `all` and the interface's own value the greater one counts.
//! 2. VIP/32 on the interface, by default `lo`.
//!
//! For IPv6 there is no sysctl to set: the kernel answers neighbour solicitations only for addresses of
//! the interface they came in by (`ndisc_recv_ns()`), so an address on `lo` is never advertised. It is
//! added without duplicate address detection, which would ask for it. On an interface that does
//! ARP or neighbour discovery itself all of this would be void, which is why such a one is refused.
//!
//! Where packets come through a tunnel, the devices that take them out of it come first ([`tunnel`]).
//!
//! What [`setup`] changed is kept in a small record ([`DEFAULT_STATE_FILE`]), by network namespace, so
//! that [`undo`] puts back what was there before and nothing else. Like the addresses and the sysctls
//! themselves, the record does not survive a reboot.

mod host;
mod record;
mod sysctl;
mod tunnel;

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{bail, ensure};
use rtnetlink::packet_route::link::LinkFlags;
use serde::Serialize;

pub(crate) use host::host_prefix;
use host::{Held, Host};
use record::{Namespace, Record};
use sysctl::{Sysctl, sysctl_value};
pub use tunnel::TunnelEnd;

/// Where [`setup`] keeps what it changed.
pub const DEFAULT_STATE_FILE: &str = "/run/lvs-xdp/realserver.json";

/// The interface that holds the VIPs, unless another one is asked for.
pub const DEFAULT_INTERFACE: &str = "lo";

/// What [`setup`] is to do.
#[derive(Debug, Clone)]
pub struct SetupOptions {
    /// The VIPs, at least one.
    pub vips: Vec<IpAddr>,
    /// The interface that gets them; see [`DEFAULT_INTERFACE`].
    pub interface: String,
    /// The tunnel by which packets come, where they do not come by direct routing.
    pub tunnel: Option<TunnelEnd>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Where to keep what was changed; see [`DEFAULT_STATE_FILE`].
    pub state_file: PathBuf,
}

/// What [`undo`] is to do.
#[derive(Debug, Clone)]
pub struct UndoOptions {
    /// The VIPs to remove; empty: all that [`setup`] added.
    pub vips: Vec<IpAddr>,
    /// The interface they are on, for those that [`setup`] did not add.
    pub interface: String,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Where [`setup`] kept what it changed.
    pub state_file: PathBuf,
}

/// What [`show`] is to show.
#[derive(Debug, Clone)]
pub struct ShowOptions {
    /// The VIPs to look for; empty: all that [`setup`] added, and any other /32 or /128 of the interface.
    pub vips: Vec<IpAddr>,
    /// The interface that is to hold them.
    pub interface: String,
    /// JSON instead of text.
    pub json: bool,
    /// Where [`setup`] kept what it changed.
    pub state_file: PathBuf,
}

/// Reads a VIP as typed.
///
/// # Errors
///
/// One line that says why it can be none.
pub fn parse_vip(text: &str) -> Result<IpAddr, String> {
    let address = text
        .parse()
        .map_err(|_| format!("`{text}` is no IP address: give the VIP as 192.0.2.1 or 2001:db8::1"))?;
    check_vip(address).map_err(|error| error.to_string())?;
    Ok(address)
}

fn check_vip(vip: IpAddr) -> anyhow::Result<()> {
    let fault = match vip {
        _ if vip.is_unspecified() => "it is the unspecified address",
        _ if vip.is_loopback() => "it is a loopback address",
        _ if vip.is_multicast() => "it is a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "it is the broadcast address",
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => "write it as an IPv4 address",
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            "it is link-local, which means another host on each segment"
        }
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(()),
    };
    bail!("{vip} cannot be a VIP: {fault}")
}

fn add_command(vip: IpAddr, interface: &str) -> String {
    let nodad = if vip.is_ipv6() { " nodad" } else { "" };
    format!("ip address add {vip}/{} dev {interface}{nodad}", host_prefix(vip))
}

/// The record, for a caller who may change what it is about.
fn lock(state_file: &Path) -> anyhow::Result<Record> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this changes the host's network settings: run it as root"
    );
    Record::lock(state_file)
}

/// Writes one step: the command that does the same, and what became of it.
fn step(out: &mut (impl Write + ?Sized), command: &str, outcome: impl fmt::Display) -> io::Result<()> {
    writeln!(out, "{command:<52} # {outcome}")
}

/// The sysctls that these VIPs need.
fn sysctls(vips: &[IpAddr], interface: &str) -> Vec<Sysctl> {
    if vips.iter().any(IpAddr::is_ipv4) {
        Sysctl::needed(interface)
    } else {
        Vec::new()
    }
}

/// Prepares this host as a real server: the sysctls first, then each VIP. What is already as it should
/// be is left alone. Each step is written to `out` as the command that does the same. An interface
/// that is down is set up, and left so by [`undo`].
///
/// # Errors
///
/// One line, with nothing changed, when a VIP or the interface cannot serve, a VIP is on another interface
/// or has a whole network's prefix length, or the caller is not root. When a step itself fails,
/// those before it stay, and [`undo`] takes them back.
pub async fn setup(options: &SetupOptions, out: &mut (impl Write + ?Sized)) -> anyhow::Result<()> {
    let SetupOptions {
        vips,
        interface,
        tunnel,
        dry_run,
        state_file,
    } = options;
    let vips: BTreeSet<_> = vips.iter().copied().collect();
    let vips = Vec::from_iter(vips);
    ensure!(!vips.is_empty(), "no VIP was given: use --vip ADDRESS");
    vips.iter().try_for_each(|vip| check_vip(*vip))?;
    // Before anything is looked at: two at once must not take each other's changes for what was there.
    let mut record = if *dry_run { None } else { Some(lock(state_file)?) };
    let host = Host::read().await?;
    let if_index = host.interface_for_vips(interface)?;
    let held = vips
        .iter()
        .map(|vip| host.holds(*vip, if_index))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let sysctls = sysctls(&vips, interface);
    let values = sysctls
        .iter()
        .map(|sysctl| Sysctl::read(&sysctl.path))
        .collect::<anyhow::Result<Vec<_>>>()?;

    if let Some(end) = tunnel {
        tunnel::prepare(*end, &vips, &mut record, out).await?;
    }
    for (
        Sysctl {
            path,
            wanted,
            accepted,
        },
        value,
    ) in sysctls.iter().zip(&values)
    {
        if accepted.contains(&value.as_str()) {
            step(out, &Sysctl::command(path, value), "already so")?;
        } else if let Some(record) = &mut record {
            // Kept before it is done: an interrupted setup can be undone too.
            record.namespace().sysctls.insert(path.clone(), value.clone());
            record.save()?;
            Sysctl::write(path, wanted)?;
            step(
                out,
                &Sysctl::command(path, wanted),
                format_args!("done, was {value}"),
            )?;
        } else {
            step(
                out,
                &Sysctl::command(path, wanted),
                format_args!("to do, is {value}"),
            )?;
        }
    }
    if !host
        .interfaces
        .get(&if_index)
        .is_some_and(|found| found.flags.contains(LinkFlags::Up))
    {
        if !dry_run {
            host.set_up(if_index).await?;
        }
        let outcome = if *dry_run {
            "to do, is down"
        } else {
            "done, was down"
        };
        step(out, &format!("ip link set {interface} up"), outcome)?;
    }
    for (vip, held) in vips.iter().zip(held) {
        let command = add_command(*vip, interface);
        if held {
            step(out, &command, "already so")?;
        } else if let Some(record) = &mut record {
            record.namespace().addresses.insert(*vip, interface.clone());
            record.save()?;
            host.add(*vip, if_index).await?;
            step(out, &command, "done")?;
        } else {
            step(out, &command, "to do")?;
        }
    }
    Ok(())
}

/// Takes back what [`setup`] did: the VIPs first, then, when none of those it added is left, the sysctls
/// that it changed. A sysctl that somebody else has set since is left alone.
///
/// # Errors
///
/// One line when an address can be no VIP or the caller is not root, with nothing changed; or when a step
/// fails: those before it stay done.
pub async fn undo(options: &UndoOptions, out: &mut (impl Write + ?Sized)) -> anyhow::Result<()> {
    let UndoOptions {
        vips,
        interface,
        dry_run,
        state_file,
    } = options;
    // Not that `--vip ::1` takes the loopback address away.
    vips.iter().try_for_each(|vip| check_vip(*vip))?;
    let mut record = None;
    let mut left = if *dry_run {
        Record::read(state_file)?
    } else {
        record.insert(lock(state_file)?).namespace().clone()
    };
    let vips: BTreeSet<IpAddr> = if vips.is_empty() {
        left.addresses.keys().copied().collect()
    } else {
        vips.iter().copied().collect()
    };
    if vips.is_empty() && left == Namespace::default() {
        writeln!(out, "# nothing to undo: no setup is on record")?;
        return Ok(());
    }
    let host = Host::read().await?;
    for vip in vips {
        let name = left.addresses.remove(&vip).unwrap_or_else(|| interface.clone());
        let command = format!("ip address del {vip}/{} dev {name}", host_prefix(vip));
        let held = host.addresses.iter().find(|held| {
            let Held {
                address,
                prefix_len,
                if_index,
                message: _,
            } = held;
            *address == vip && *prefix_len == host_prefix(vip) && host.interface_name(*if_index) == name
        });
        match (held, &mut record) {
            (None, _) => step(out, &command, "already so")?,
            (Some(_), None) => step(out, &command, "to do")?,
            (Some(held), Some(_)) => {
                host.remove(held).await?;
                step(out, &command, "done")?;
            }
        }
        if let Some(record) = &mut record {
            record.namespace().addresses.remove(&vip);
            record.save()?;
        }
    }
    if !left.addresses.is_empty() {
        let rest: Vec<_> = left.addresses.keys().map(IpAddr::to_string).collect();
        writeln!(out, "# the sysctls stay, for {}", rest.join(" "))?;
        return Ok(());
    }
    for (path, previous) in &left.sysctls {
        let value = Sysctl::read(path)?;
        let command = Sysctl::command(path, previous);
        let ours = sysctl_value(path).is_none_or(|wanted| value == wanted);
        match (ours, &mut record) {
            _ if value == *previous => step(out, &command, "already so")?,
            (false, _) => step(
                out,
                &command,
                format_args!("left alone: somebody has set it to {value}"),
            )?,
            (true, None) => step(out, &command, format_args!("to do, is {value}"))?,
            (true, Some(_)) => {
                Sysctl::write(path, previous)?;
                step(out, &command, format_args!("done, was {value}"))?;
            }
        }
        if let Some(record) = &mut record {
            record.namespace().sysctls.remove(path);
            record.save()?;
        }
    }
    tunnel::undo(&left, &mut record, out)
}

/// One thing that direct routing needs, and whether it is so.
#[derive(Debug, Serialize)]
struct Point {
    /// What it is about: a sysctl's name, or a VIP.
    name: String,
    ok: bool,
    /// What was found, for people.
    found: String,
    /// The command that puts it right, where there is one.
    command: Option<String>,
}

/// What `show --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    interface: String,
    points: Vec<Point>,
}

/// Writes whether each thing that direct routing needs on a real server is as it should be, and
/// says whether all are. Nothing is changed; root is not needed.
///
/// # Errors
///
/// When the kernel's settings or the record cannot be read, or there is no such interface.
pub async fn show(options: &ShowOptions, out: &mut (impl Write + ?Sized)) -> anyhow::Result<bool> {
    let ShowOptions {
        vips,
        interface,
        json,
        state_file,
    } = options;
    vips.iter().try_for_each(|vip| check_vip(*vip))?;
    let host = Host::read().await?;
    let if_index = host.interface_for_vips(interface)?;
    let vips: BTreeSet<IpAddr> = if vips.is_empty() {
        let on_interface = host.addresses.iter().filter(|held| {
            let Held {
                address,
                prefix_len,
                if_index: of,
                message: _,
            } = held;
            *of == if_index && *prefix_len == host_prefix(*address) && check_vip(*address).is_ok()
        });
        let recorded = Record::read(state_file)?.addresses.into_keys();
        recorded.chain(on_interface.map(|held| held.address)).collect()
    } else {
        vips.iter().copied().collect()
    };
    let vips = Vec::from_iter(vips);

    let mut points = Vec::new();
    // Without a VIP it is not known which family will be needed: IPv4's settings do no harm.
    let needed = if vips.is_empty() {
        Sysctl::needed(interface)
    } else {
        sysctls(&vips, interface)
    };
    for Sysctl {
        path,
        wanted,
        accepted,
    } in needed
    {
        let value = Sysctl::read(&path)?;
        let ok = accepted.contains(&value.as_str());
        let command = (!ok).then(|| Sysctl::command(&path, wanted));
        points.push(Point {
            name: Sysctl::name(&path),
            ok,
            found: value,
            command,
        });
    }
    for vip in &vips {
        let (ok, found, command) = match host.holds(*vip, if_index) {
            Ok(true) => (true, format!("on {interface}"), None),
            Ok(false) => (
                false,
                format!("not on {interface}"),
                Some(add_command(*vip, interface)),
            ),
            Err(error) => (false, error.to_string(), None),
        };
        points.push(Point {
            name: vip.to_string(),
            ok,
            found,
            command,
        });
    }
    if vips.is_empty() {
        let command = format!("lvs-xdp realserver setup --vip VIP --interface {interface}");
        let found = format!("none on {interface}");
        points.push(Point {
            name: "VIP".into(),
            ok: false,
            found,
            command: Some(command),
        });
    }

    let report = Report {
        ok: points.iter().all(|point| point.ok),
        interface: interface.clone(),
        points,
    };
    if *json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
        return Ok(report.ok);
    }
    for Point {
        name,
        ok,
        found,
        command,
    } in &report.points
    {
        let state = if *ok { "ok" } else { "missing" };
        write!(out, "{state:<8} {name}: {found}")?;
        match command {
            Some(command) => writeln!(out, "  # {command}")?,
            None => writeln!(out)?,
        }
    }
    Ok(report.ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_vip_is_refused_in_one_line() {
        for (text, part) in [
            ("192.168.2", "no IP address"),
            ("192.168.2.100/32", "no IP address"),
            ("www.example.org", "no IP address"),
            ("0.0.0.0", "unspecified"),
            ("127.0.0.1", "loopback"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("::1", "loopback"),
            ("ff02::1", "multicast"),
            ("fe80::1", "link-local"),
            ("::ffff:192.0.2.1", "as an IPv4 address"),
        ] {
            let error = parse_vip(text).expect_err(text);
            assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
        }
        for text in ["192.168.2.100", "2001:db8::100", "10.0.0.1"] {
            assert_eq!(parse_vip(text).map(|vip| vip.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn the_sysctls_of_all_interfaces_come_first() {
        let commands: Vec<_> = Sysctl::needed("lo")
            .iter()
            .map(|s| Sysctl::command(&s.path, s.wanted))
            .collect();
        assert_eq!(
            commands,
            [
                "sysctl -w net.ipv4.conf.all.arp_ignore=1",
                "sysctl -w net.ipv4.conf.all.arp_announce=2",
                "sysctl -w net.ipv4.conf.lo.arp_ignore=1",
                "sysctl -w net.ipv4.conf.lo.arp_announce=2",
            ]
        );
        assert_eq!(sysctls(&["2001:db8::1".parse().expect("an address")], "lo"), []);
    }

    #[test]
    fn the_name_of_an_interface_may_have_a_dot() {
        assert_eq!(
            Sysctl::name("net/ipv4/conf/dummy0.7/arp_ignore"),
            "net.ipv4.conf.dummy0/7.arp_ignore"
        );
        assert_eq!(sysctl_value("net/ipv4/conf/dummy0.7/arp_announce"), Some("2"));
    }
}
