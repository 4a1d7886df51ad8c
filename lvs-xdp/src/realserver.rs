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
//! What [`setup`] changed is kept in a small record ([`DEFAULT_STATE_FILE`]), by network namespace, so
//! that [`undo`] puts back what was there before and nothing else. Like the addresses and the sysctls
//! themselves, the record does not survive a reboot.

mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkUnspec,
    packet_route::{
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags},
    },
};
use serde::Serialize;
use tokio::task::JoinSet;

use record::{Namespace, Record};

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

/// A sysctl that direct routing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sysctl {
    /// Its path below `/proc/sys`.
    path: String,
    /// The value that is set.
    wanted: &'static str,
    /// Values that serve as well.
    accepted: &'static [&'static str],
}

impl Sysctl {
    /// Those for IPv4; `all` first, which counts for every interface at once.
    fn needed(interface: &str) -> Vec<Self> {
        // arp_ignore=2 asks in addition that the sender is in the same subnet. 3 and 8 are silent about
        // the real server's own address too.
        let settings: [(_, _, &[_]); 2] = [("arp_ignore", "1", &["1", "2"]), ("arp_announce", "2", &["2"])];
        let of = |interface: &str| {
            let path = |name| format!("net/ipv4/conf/{interface}/{name}");
            settings.map(|(name, wanted, accepted)| Self {
                path: path(name),
                wanted,
                accepted,
            })
        };
        let own = if interface == "all" {
            None
        } else {
            Some(of(interface))
        };
        [of("all")].into_iter().chain(own).flatten().collect()
    }

    fn file(path: &str) -> PathBuf {
        Path::new("/proc/sys").join(path)
    }

    fn read(path: &str) -> anyhow::Result<String> {
        let file = Self::file(path);
        let value = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(value.trim().to_owned())
    }

    fn write(path: &str, value: &str) -> anyhow::Result<()> {
        let file = Self::file(path);
        fs::write(&file, value).with_context(|| format!("cannot write {value} to {}", file.display()))
    }

    /// The name as sysctl(8) takes it, which exchanges dots and slashes.
    fn name(path: &str) -> String {
        path.chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect()
    }

    fn command(path: &str, value: &str) -> String {
        format!("sysctl -w {}={value}", Self::name(path))
    }
}

/// An address of an interface.
#[derive(Debug, Clone)]
struct Held {
    address: IpAddr,
    prefix_len: u8,
    if_index: u32,
    message: AddressMessage,
}

/// An interface.
#[derive(Debug, Clone)]
struct Interface {
    name: String,
    flags: LinkFlags,
}

/// This host's interfaces and addresses, and the way to change them.
struct Host {
    handle: Handle,
    interfaces: BTreeMap<u32, Interface>,
    addresses: Vec<Held>,
    /// The task of the connection; it ends with this.
    _connection: JoinSet<()>,
}

impl Host {
    async fn read() -> anyhow::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let connection = JoinSet::from_iter([connection]);
        let links: Vec<_> = handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .context("cannot read the interfaces")?;
        let interfaces = links.into_iter().filter_map(|link| {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })?;
            Some((
                link.header.index,
                Interface {
                    name,
                    flags: link.header.flags,
                },
            ))
        });
        let interfaces = interfaces.collect();
        let messages: Vec<_> = handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .context("cannot read the addresses")?;
        let addresses = messages.into_iter().filter_map(|message| {
            let attribute = |local| {
                message
                    .attributes
                    .iter()
                    .find_map(move |attribute| match attribute {
                        AddressAttribute::Local(address) if local => Some(*address),
                        AddressAttribute::Address(address) if !local => Some(*address),
                        _ => None,
                    })
            };
            let address = attribute(true).or_else(|| attribute(false))?;
            let (prefix_len, if_index) = (message.header.prefix_len, message.header.index);
            Some(Held {
                address,
                prefix_len,
                if_index,
                message,
            })
        });
        let addresses = addresses.collect();
        Ok(Self {
            handle,
            interfaces,
            addresses,
            _connection: connection,
        })
    }

    /// The index of an interface that is fit to hold a VIP.
    fn interface_for_vips(&self, name: &str) -> anyhow::Result<u32> {
        let Some((index, interface)) = self
            .interfaces
            .iter()
            .find(|(_, interface)| interface.name == name)
        else {
            let names: Vec<_> = self
                .interfaces
                .values()
                .map(|interface| interface.name.as_str())
                .collect();
            bail!(
                "there is no interface {name}: use lo, or another of {}",
                names.join(" ")
            );
        };
        ensure!(
            interface.flags.intersects(LinkFlags::Loopback | LinkFlags::Noarp),
            "{name} answers ARP for its own addresses, so a VIP on it would draw the director's traffic: \
             use --interface lo"
        );
        Ok(*index)
    }

    fn interface_name(&self, if_index: u32) -> &str {
        self.interfaces
            .get(&if_index)
            .map_or("an unknown interface", |interface| interface.name.as_str())
    }

    /// Where a VIP is: on the interface (`true`) or nowhere (`false`).
    ///
    /// # Errors
    ///
    /// When it is where, or as, it must not be; the message says how to remove it.
    fn holds(&self, vip: IpAddr, if_index: u32) -> anyhow::Result<bool> {
        let mut found = false;
        for held in self.addresses.iter().filter(|held| held.address == vip) {
            let name = self.interface_name(held.if_index);
            let remove = format!("ip address del {vip}/{} dev {name}", held.prefix_len);
            ensure!(
                held.if_index == if_index,
                "{vip} is on {name}, where it is announced: remove it first: {remove}"
            );
            ensure!(
                held.prefix_len == host_prefix(vip),
                "{vip} is on {name} with the prefix length {}, which makes its whole network local: \
                 remove it first: {remove}",
                held.prefix_len
            );
            found = true;
        }
        Ok(found)
    }

    async fn add(&self, vip: IpAddr, if_index: u32) -> anyhow::Result<()> {
        let mut request = self.handle.address().add(if_index, vip, host_prefix(vip));
        if vip.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(netlink_error).with_context(|| {
            let hint = if vip.is_ipv6() {
                " (is IPv6 disabled there?)"
            } else {
                ""
            };
            format!("cannot add {vip} to {}{hint}", self.interface_name(if_index))
        })
    }

    async fn remove(&self, held: &Held) -> anyhow::Result<()> {
        let request = self.handle.address().del(held.message.clone());
        request.execute().await.map_err(netlink_error).with_context(|| {
            format!(
                "cannot remove {} from {}",
                held.address,
                self.interface_name(held.if_index)
            )
        })
    }

    async fn set_up(&self, if_index: u32) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(if_index).up().build();
        let request = self.handle.link().set(message);
        request
            .execute()
            .await
            .map_err(netlink_error)
            .with_context(|| format!("cannot set {} up", self.interface_name(if_index)))
    }
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn netlink_error(error: rtnetlink::Error) -> anyhow::Error {
    match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io().into(),
        error => error.into(),
    }
}

fn add_command(vip: IpAddr, interface: &str) -> String {
    let nodad = if vip.is_ipv6() { " nodad" } else { "" };
    format!("ip address add {vip}/{} dev {interface}{nodad}", host_prefix(vip))
}

fn require_root() -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this changes the host's network settings: run it as root"
    );
    Ok(())
}

/// Writes one step: the command that does the same, and what became of it.
fn step(out: &mut impl Write, command: &str, outcome: impl fmt::Display) -> io::Result<()> {
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
pub async fn setup(options: &SetupOptions, out: &mut impl Write) -> anyhow::Result<()> {
    let SetupOptions {
        vips,
        interface,
        dry_run,
        state_file,
    } = options;
    let vips: BTreeSet<_> = vips.iter().copied().collect();
    let vips = Vec::from_iter(vips);
    ensure!(!vips.is_empty(), "no VIP was given: use --vip ADDRESS");
    vips.iter().try_for_each(|vip| check_vip(*vip))?;
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

    let mut record = None;
    if !dry_run {
        require_root()?;
        record = Some(Record::lock(state_file)?);
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
/// One line when the caller is not root, or a step fails; the steps before it stay done.
pub async fn undo(options: &UndoOptions, out: &mut impl Write) -> anyhow::Result<()> {
    let UndoOptions {
        vips,
        interface,
        dry_run,
        state_file,
    } = options;
    let mut record = None;
    let mut left = if *dry_run {
        Record::read(state_file)?
    } else {
        require_root()?;
        record.insert(Record::lock(state_file)?).namespace().clone()
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
    Ok(())
}

/// What [`setup`] writes to a sysctl.
fn sysctl_value(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next()?;
    Sysctl::needed("all")
        .into_iter()
        .find(|sysctl| sysctl.path.ends_with(name))
        .map(|sysctl| sysctl.wanted)
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
pub async fn show(options: &ShowOptions, out: &mut impl Write) -> anyhow::Result<bool> {
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
