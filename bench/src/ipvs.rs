//! `--ipvs`: instructions a packet, beside the kernel's own IPVS.
//!
//! Debian's kernel runs in a virtual machine with one processor whose clock counts instructions. Outside, the
//! benchmark boots it and prints what it has said; inside, the same program measures. The cables, the packets and the
//! services are those of `--wire`.

use std::{env, fmt::Write as _, fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::dataplane::{Mode, mac_text};
use lvs_xdp_tests::{
    netns::Netns,
    process::{output_fed, run as run_command},
    trial::mac_of,
    vm::{Machine, TESTED, exchange_directory, guest_exchange, last_words},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    cable::{Cable, END, Generator, servers_of, take_in_turns},
    floors::{Floors, OBJECT_VARIABLE},
    frames::{PORT, Template, virtual_address},
    packets::{SERVERS, SERVICES, server},
    report::machine,
    wire::{Figure, Row, director, floor, open, rounds},
};

/// How long the machine may take for all of it.
const LIMIT: Duration = Duration::from_secs(900);
/// Where the guest leaves its figures.
const REPORT: &str = "report.json";
/// A count of instructions does not depend on what fits a cache.
const CONNECTIONS: u32 = 1 << 12;
const FLOWS: u64 = 1 << 10;
/// Packets that a row gets in a round.
const PACKETS: u32 = 1 + (1 << 13);
const ROUNDS: u16 = 3;

/// Rows that others are seen against.
const DROPPED: &str = "dropped on arrival";
const NOTHING: &str = "XDP, do nothing";
const NATIVE: &str = "lvs-xdp, native";
const IPVS: &str = "IPVS, direct routing";

/// What the guest has found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Counted {
    kernel: String,
    rows: Vec<Count>,
}

/// Instructions a packet.
#[derive(Debug, Serialize, Deserialize)]
struct Count {
    row: String,
    median: f64,
    p10: f64,
    p90: f64,
    /// Of a hundred packets sent, so many came back.
    back: f64,
}

impl From<Figure> for Count {
    fn from(figure: Figure) -> Self {
        Self {
            row: figure.row.to_owned(),
            median: figure.median,
            p10: figure.p10,
            p90: figure.p90,
            back: figure.back,
        }
    }
}

/// Boots the machine and has this program measure in it; nothing if this is the machine.
///
/// # Errors
///
/// When the machine does not come up, or something in it cannot be measured.
pub(crate) fn run() -> Result<Option<Counted>> {
    if let Some(exchange) = guest_exchange() {
        let report = serde_json::to_string(&measure()?)?;
        fs::write(exchange.join(REPORT), report)?;
        return Ok(None);
    }
    let machine = Machine::find(TESTED)?.counting_instructions();
    let exchange = exchange_directory()?;
    let mut guest = Command::new(env::current_exe()?);
    guest.arg("--ipvs");
    guest.env(
        OBJECT_VARIABLE,
        env::var_os(OBJECT_VARIABLE).context("run `cargo xtask bench --ipvs`")?,
    );
    eprintln!("booting Linux {}, which takes some minutes", machine.release());
    machine.run(&guest, exchange.path(), LIMIT)?;
    let report = fs::read(exchange.path().join(REPORT))
        .with_context(|| format!("no figures came; {}", last_words(exchange.path())))?;
    Ok(Some(serde_json::from_slice(&report)?))
}

fn measure() -> Result<Counted> {
    let first = Template::tcp(PORT, 0).virtual_address;
    let mut generator = Generator::new(Floors::load(CONNECTIONS, SERVICES, first)?)?;
    let mut rows = vec![
        floor(&mut generator, DROPPED, "dropping", false)?,
        floor(&mut generator, NOTHING, "nothing", true)?,
        director(&mut generator, NATIVE, Mode::Native, CONNECTIONS)?,
        director(&mut generator, "lvs-xdp, generic", Mode::Generic, CONNECTIONS)?,
    ];
    for (name, label, prepare) in [
        ("plain forwarding", "forward", forward as fn(&Netns) -> Result<()>),
        (IPVS, "ipvs", balance),
    ] {
        let cable = generator.cable(label)?;
        stack(&cable)?;
        prepare(&cable.netns)?;
        rows.push(Row {
            name,
            cable,
            director: None,
            answers: true,
        });
    }
    for row in &rows {
        open(&mut generator, row, FLOWS)?;
    }
    let figures = rounds(&mut generator, &rows, &[FLOWS], PACKETS, ROUNDS)?;
    if let Some(row) = rows.iter().find(|row| row.name == IPVS) {
        // Each flow's first two, and each round's, the one that warms the caches included.
        let sent = 2 * FLOWS + u64::from(PACKETS) * u64::from(ROUNDS + 1);
        let balanced = balanced(&row.cable.netns)?;
        ensure!(
            balanced == sent,
            "of {sent} packets, IPVS has counted {balanced} as a service's"
        );
    }
    Ok(Counted {
        kernel: machine()?.0,
        rows: figures.into_iter().map(Count::from).collect(),
    })
}

/// Lets the kernel's own stack have the packets of a cable, with a way to every real server and client.
fn stack(cable: &Cable) -> Result<()> {
    take_in_turns(cable)?;
    let netns = &cable.netns;
    for (sysctl, value) in [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.eth0.rp_filter", "0"),
        // Packets leave where they have come from, on purpose.
        ("net.ipv4.conf.all.send_redirects", "0"),
        ("net.ipv4.conf.eth0.send_redirects", "0"),
    ] {
        netns.sysctl(sysctl, value)?;
    }
    let mut commands = format!("address add {}/16 dev {END}\n", server(0xfffe - 1));
    commands.push_str(&format!("route add default dev {END}\n"));
    for number in 0..SERVERS {
        let server = server(number);
        let mac = mac_text(mac_of(server));
        let _ = writeln!(
            commands,
            "neighbour add {server} lladdr {mac} dev {END} nud permanent"
        );
    }
    let mut ip = Command::new("ip");
    ip.args(["-n", netns.name(), "-batch", "-"]);
    fed(ip, &commands)
}

/// Packets for services go to a real server, as any router sends them on.
fn forward(netns: &Netns) -> Result<()> {
    netns.ip(&format!(
        "route add {}/24 via {} dev {END}",
        virtual_address(0, false),
        server(0)
    ))?;
    Ok(())
}

/// IPVS has the services, by direct routing.
fn balance(netns: &Netns) -> Result<()> {
    let mut modules = Command::new("modprobe");
    modules.args(["-a", "ip_vs", "ip_vs_rr"]);
    run_command(modules)?;
    netns.ip(&format!(
        "route add local {}/24 dev lo",
        virtual_address(0, false)
    ))?;
    let mut rules = String::new();
    for service in 0..SERVICES {
        let address = virtual_address(service, false);
        let _ = writeln!(rules, "-A -t {address}:{PORT} -s rr");
        for number in servers_of(service) {
            let _ = writeln!(rules, "-a -t {address}:{PORT} -r {}:{PORT} -g", server(number));
        }
    }
    let mut ipvsadm = netns.command("ipvsadm");
    ipvsadm.arg("-R");
    fed(ipvsadm, &rules)
}

/// How many packets IPVS has taken for a service: a stack that had refused them would have answered each, too.
fn balanced(netns: &Netns) -> Result<u64> {
    // /proc/net is the first thread's. The file of the totals is some seconds behind.
    let stats = netns.enter(|| fs::read_to_string("/proc/thread-self/net/ip_vs_stats_percpu"))??;
    // A line for each processor: its number, connections, and packets in, all as hexadecimal numbers.
    let packets = stats.lines().filter_map(|line| {
        let mut words = line
            .split_whitespace()
            .map(|word| u64::from_str_radix(word, 16).ok());
        words.next()??;
        words.nth(1)?
    });
    Ok(packets.sum())
}

/// Runs a command with this on its standard input.
fn fed(command: Command, input: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = output_fed(command, input, LIMIT)?;
    ensure!(
        output.status.success(),
        "`{name}` failed, {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

impl Counted {
    fn median(&self, row: &str) -> f64 {
        let found = self.rows.iter().find(|count| count.row == row);
        found.map_or(f64::NAN, |count| count.median)
    }

    /// What a row costs from the director's ring to the sink: net of what brings a packet there.
    fn net(&self, row: &str) -> f64 {
        self.median(row) - self.median(DROPPED)
    }

    /// What a row costs more than an XDP program that sends every packet back.
    fn over_nothing(&self, row: &str) -> f64 {
        self.median(row) - self.median(NOTHING)
    }
}

/// The table.
pub(crate) fn text(counted: &Counted) -> String {
    let mut out = format!(
        "Linux {}, one processor that counts instructions: instructions a packet, {FLOWS} known flows of TCP\n\
         {:<22}{:>8}{:>16}{:>12}{:>14}{:>9}\n",
        counted.kernel, "", "all", "p10..p90", "director's", "over nothing", "% back"
    );
    for count in &counted.rows {
        let _ = writeln!(
            out,
            "{:<22}{:>8.0}{:>16}{:>12.0}{:>14.0}{:>9.2}",
            count.row,
            count.median,
            format!("{:.0}..{:.0}", count.p10, count.p90),
            counted.net(&count.row),
            counted.over_nothing(&count.row),
            count.back
        );
    }
    let _ = writeln!(
        out,
        "all: the generator and both ends of the cable included; director's: net of what is dropped on arrival, so \
         from the director's ring on, with sending it back and counting it\n\
         IPVS : lvs-xdp, native = {:.1} by all, {:.1} by the director's, {:.1} over nothing",
        counted.median(IPVS) / counted.median(NATIVE),
        counted.net(IPVS) / counted.net(NATIVE),
        counted.over_nothing(IPVS) / counted.over_nothing(NATIVE),
    );
    out
}

/// The figures as JSON.
///
/// # Errors
///
/// When a figure is no number.
pub(crate) fn document(counted: &Counted) -> Result<String> {
    Ok(serde_json::to_string_pretty(&json!({
        "kernel": counted.kernel,
        "flows": FLOWS,
        "rounds": ROUNDS,
        "figures": counted.rows,
        "ipvs_to_native": {
            "all": counted.median(IPVS) / counted.median(NATIVE),
            "director": counted.net(IPVS) / counted.net(NATIVE),
            "over_nothing": counted.over_nothing(IPVS) / counted.over_nothing(NATIVE),
        },
    }))?)
}
