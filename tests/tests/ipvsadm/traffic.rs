//! What the lists say while connections are open, against what the client really sent.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lvs_xdp_tests::{
    lab::{Lab, LabConfig},
    netns::Netns,
};

use super::{fed, stdout};

/// Connections that are held open.
const OPEN: usize = 6;

/// Packets and IP octets that a host has sent.
fn sent(host: &Netns) -> Result<[u64; 2]> {
    let value = |file: &str, group: &str, name: &str| -> Result<u64> {
        let text = host.run("cat", [file])?;
        let mut lines = text.lines().filter(|line| line.starts_with(group));
        let (names, values) = lines
            .next()
            .zip(lines.next())
            .context("a line of names and one of values")?;
        let mut pairs = names.split_whitespace().zip(values.split_whitespace());
        let (_, value) = pairs
            .find(|(other, _)| *other == name)
            .context("no such counter")?;
        Ok(value.parse()?)
    };
    Ok([
        value("/proc/net/snmp", "Ip:", "OutRequests")?,
        value("/proc/net/netstat", "IpExt:", "OutOctets")?,
    ])
}

/// Asks a web server for its name, and keeps the connection.
fn ask(stream: &mut TcpStream, vip: SocketAddr) -> Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {vip}\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let read = stream.read(&mut piece)?;
        anyhow::ensure!(read > 0, "the server has closed the connection");
        answer.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        if body.len() >= length.context("a length")?.parse()? {
            return Ok(body.trim().to_owned());
        }
    }
}

/// The columns of each line of a list that has an address, by that address.
fn columns(list: &str) -> Result<BTreeMap<String, Vec<u64>>> {
    let lines = list.lines().skip(3).map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let name = words.next().context("an address")?.to_owned();
        Ok((name, words.filter_map(|word| word.parse().ok()).collect()))
    });
    lines.collect()
}

#[test]
fn lists_say_what_the_traffic_made() -> Result<()> {
    let lab = Lab::start(LabConfig {
        real_servers: 2,
        ..LabConfig::default()
    })?;
    // The reference case's three commands as they stand.
    for line in [
        "-A -t 192.168.2.100:80 -s rr",
        "-a -t 192.168.2.100:80 -r 192.168.2.220:80 -g",
        "-a -t 192.168.2.100:80 -r 192.168.2.210:80 -g",
    ] {
        assert_eq!(lab.ipvsadm(line.split_whitespace())?, "");
    }
    let list = |line: &str| lab.ipvsadm(line.split_whitespace());
    let vip = lab.service();
    let before = sent(lab.client())?;
    let mut open = lab.client().enter(|| -> Result<Vec<(TcpStream, String)>> {
        let connections = (0..OPEN).map(|_| {
            let mut stream = TcpStream::connect_timeout(&vip, Duration::from_secs(5))?;
            let name = ask(&mut stream, vip)?;
            Ok((stream, name))
        });
        connections.collect()
    })??;
    // The last acknowledgement is on its way.
    sleep(Duration::from_millis(300));
    let after = sent(lab.client())?;
    let [packets, bytes] = [0, 1].map(|at| after[at] - before[at]);

    assert_eq!(
        list("-L -n")?,
        "IP Virtual Server version 1.2.1 (size=4096)\n\
         Prot LocalAddress:Port Scheduler Flags\n\
         \x20 -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
         TCP  192.168.2.100:80 rr\n\
         \x20 -> 192.168.2.210:80             Route   1      3          0         \n\
         \x20 -> 192.168.2.220:80             Route   1      3          0         \n"
    );
    let stats = columns(&list("-L -n --stats --exact")?)?;
    let service = &stats["192.168.2.100:80"];
    assert_eq!(service, &[OPEN as u64, packets, 0, bytes, 0]);
    let [one, other] = ["192.168.2.210:80", "192.168.2.220:80"].map(|server| &stats[server]);
    assert_eq!((one[0], other[0]), (3, 3));
    let sum: Vec<_> = one.iter().zip(other).map(|(one, other)| one + other).collect();
    assert_eq!(&sum, service);

    // Prometheus reads the same.
    let metrics = lab.cli(["metrics"])?;
    let of_it = "local_address=\"192.168.2.100\",local_port=\"80\",local_mark=\"\",proto=\"TCP\"";
    for (name, labels, value) in [
        ("service_connections_total", "", OPEN as u64),
        ("service_incoming_packets_total", "", packets),
        ("service_incoming_bytes_total", "", bytes),
        (
            "backend_connections_active",
            ",remote_address=\"192.168.2.210\",remote_port=\"80\"",
            3,
        ),
        (
            "backend_incoming_packets_total",
            ",remote_address=\"192.168.2.210\",remote_port=\"80\"",
            one[1],
        ),
    ] {
        let line = format!("\nlvs_xdp_{name}{{{of_it}{labels}}} {value}\n");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }

    let entries = list("-L -n -c")?;
    let lines: Vec<Vec<&str>> = entries
        .lines()
        .skip(2)
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), OPEN, "{entries}");
    for (stream, name) in &open {
        let source = stream.local_addr()?.to_string();
        let line = lines
            .iter()
            .find(|line| line[3] == source)
            .context("a line for each")?;
        let address = if name.contains("rs1") {
            "192.168.2.220:80"
        } else {
            "192.168.2.210:80"
        };
        assert_eq!(
            [line[0], line[2], line[4], line[5]],
            ["TCP", "ESTABLISHED", "192.168.2.100:80", address]
        );
        assert!(
            ["15:00", "14:59", "14:58", "14:57"].contains(&line[1]),
            "{line:?}"
        );
    }

    // In two samples at the most, a quarter of the way; a sample may be some milliseconds early or late.
    let rates = rates(|| Ok(columns(&list("-L -n --rate")?)?["192.168.2.100:80"].clone()))?;
    let most = rates.iter().map(|rate| rate[3]).max().unwrap_or_default();
    assert!(
        (bytes / 8 / 2..=bytes / 8 + bytes / 40).contains(&most),
        "{bytes} bytes: {rates:?}"
    );
    let falling: Vec<_> = rates
        .iter()
        .map(|rate| rate[3])
        .skip_while(|rate| *rate != most)
        .collect();
    assert!(falling.len() >= 3, "{rates:?}");
    for pair in falling.windows(2) {
        assert!(pair[1].abs_diff(pair[0] * 3 / 4) <= pair[0] / 20 + 1, "{rates:?}");
    }
    assert!(rates.iter().all(|rate| rate[2] == 0 && rate[4] == 0));

    list("-Z -t 192.168.2.100:80")?;
    for line in ["-L -n --stats", "-L -n --rate"] {
        let zero = columns(&list(line)?)?;
        assert!(
            zero.values().flatten().all(|count| *count == 0),
            "{line}: {zero:?}"
        );
    }
    let before = sent(lab.client())?;
    for (stream, _) in &mut open {
        ask(stream, vip)?;
    }
    sleep(Duration::from_millis(300));
    let after = sent(lab.client())?;
    let stats = columns(&list("-L -n --stats -X")?)?;
    let expected = [0, after[0] - before[0], 0, after[1] - before[1], 0];
    assert_eq!(stats["192.168.2.100:80"], expected);
    let holds = |list: &str| assert_eq!(list.matches(" 3          0 ").count(), 2, "{list}");
    holds(&list("-L -n")?);

    // The table is replaced by itself: nobody notices, neither connections nor counters.
    let links = tempfile::tempdir()?;
    lab.cli([
        "install-ipvsadm".as_ref(),
        "--prefix".as_ref(),
        links.path().as_os_str(),
    ])?;
    let mut restore = lab.director().command(links.path().join("sbin/ipvsadm-restore"));
    restore.env("LVS_XDP_SOCKET", lab.agent()?.socket());
    let rules = list("-S -n --full")?;
    assert_eq!(stdout(fed(restore, &rules)?)?, "");
    assert_eq!(list("-S -n --full")?, rules);
    for (stream, name) in &mut open {
        assert_eq!(ask(stream, vip)?, *name);
    }
    holds(&list("-L -n")?);
    let stats = columns(&list("-L -n --stats -X")?)?;
    assert!(stats["192.168.2.100:80"][1] > expected[1], "{stats:?}");
    Ok(())
}

/// The different rates that are seen one after the other in eight seconds.
fn rates(read: impl Fn() -> Result<Vec<u64>>) -> Result<Vec<Vec<u64>>> {
    let start = Instant::now();
    let mut rates: Vec<Vec<u64>> = Vec::new();
    while start.elapsed() < Duration::from_secs(8) {
        let rate = read()?;
        if rates.last() != Some(&rate) {
            rates.push(rate);
        }
        sleep(Duration::from_millis(200));
    }
    Ok(rates)
}

#[test]
fn a_stateless_service_serves_and_keeps_nothing() -> Result<()> {
    let lab = Lab::start(LabConfig {
        real_servers: 2,
        ..LabConfig::default()
    })?;
    let service = ["tcp", "192.168.2.100:80"];
    let add = [
        "service",
        "add",
        service[0],
        service[1],
        "--stateless",
        "--scheduler",
    ];
    let refused = lab.cli_output(add.iter().chain(&["rr"]))?;
    assert!(!refused.status.success());
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("use mh, sh or dh"), "{words}");
    lab.cli(add.iter().chain(&["mh"]))?;
    for server in ["192.168.2.220", "192.168.2.210"] {
        lab.cli(["server", "add", service[0], service[1], server])?;
    }
    // One client is always at one server.
    let first = lab.fetch("/")?;
    for _ in 0..5 {
        assert_eq!(lab.fetch("/")?, first);
    }
    let entries = lab.ipvsadm(["-L", "-n", "-c"])?;
    assert_eq!(entries.lines().count(), 2, "{entries}");
    let saved = lab.ipvsadm(["-S", "-n", "--full"])?;
    assert!(saved.contains("-s mh --stateless\n"), "{saved}");
    let metrics = lab.cli(["metrics"])?;
    let packets = metrics
        .lines()
        .find_map(|line| {
            line.strip_prefix("lvs_xdp_packets_total{verdict=\"forward\",reason=\"stateless\"} ")
        })
        .context("a count of them")?;
    assert!(packets.parse::<u64>()? >= 6 * 5, "{packets}");

    // With connections again, it serves as any other.
    lab.cli(["service", "edit", service[0], service[1], "--no-stateless"])?;
    assert_eq!(lab.fetch("/")?, first);
    let entries = lab.ipvsadm(["-L", "-n", "-c"])?;
    assert_eq!(entries.lines().count(), 3, "{entries}");
    Ok(())
}
