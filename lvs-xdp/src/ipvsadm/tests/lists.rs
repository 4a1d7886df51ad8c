//! What is listed, and how.

use super::*;
use crate::api::types::Protocol;

#[test]
fn ports_have_names_without_n() {
    let mut director = Memory::default();
    stdout_of(&mut director, "-A -t 10.0.0.1:www -s rr");
    stdout_of(&mut director, "-a -t 10.0.0.1:http -r 10.0.0.2:domain");
    stdout_of(
        &mut director,
        "-A -u [fd00::1]:domain -s mh -b mh-port,mh-fallback",
    );
    assert_eq!(
        stdout_of(&mut director, "-L"),
        "IP Virtual Server version 1.2.1 (size=4096)\n\
         Prot LocalAddress:Port Scheduler Flags\n\
         \x20 -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
         TCP  10.0.0.1:http rr\n\
         \x20 -> 10.0.0.2:http                Route   1      0          0         \n\
         UDP  [fd00::1]:domain mh (mh-fallback,mh-port)\n"
    );
}

#[test]
fn counters_and_the_schedulers_order_are_listed() {
    let mut director = Memory::default();
    stdout_of(&mut director, "-A -t 10.0.0.1:80 -s rr");
    stdout_of(&mut director, "-a -t 10.0.0.1:80 -r 10.0.0.2");
    stdout_of(&mut director, "-a -t 10.0.0.1:80 -r 10.0.0.3");
    director.services[0].stats = Stats {
        connections: 7,
        packets: 123_456_789,
        bytes: 98_765_432_100,
    };
    let server = &mut director.services[0].servers[0];
    (server.active, server.inactive) = (5, 1_000);
    server.stats = Stats {
        connections: 3,
        packets: 12_345_678,
        bytes: 1_000,
    };
    assert_eq!(
        stdout_of(&mut director, "-Ln --stats"),
        "IP Virtual Server version 1.2.1 (size=4096)\n\
         Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n\
         \x20 -> RemoteAddress:Port\n\
         TCP  10.0.0.1:80                         7  123456K        0   98765M        0\n\
         \x20 -> 10.0.0.2:80                         0        0        0        0        0\n\
         \x20 -> 10.0.0.3:80                         3 12345678        0     1000        0\n"
    );
    assert_eq!(
        stdout_of(&mut director, "-LnX --stats -t 10.0.0.1:80")
            .lines()
            .nth(2),
        Some("TCP  10.0.0.1:80                         7 123456789        0 98765432100        0")
    );
    let table = stdout_of(&mut director, "-Ln --nosort");
    let servers: Vec<_> = table.lines().skip(4).collect();
    assert_eq!(
        servers,
        [
            "  -> 10.0.0.3:80                  Route   1      5          1000      ",
            "  -> 10.0.0.2:80                  Route   1      0          0         "
        ]
    );
}

#[test]
fn hosts_have_names_without_n() {
    let named = Names::new(
        || "http 80/tcp\n".into(),
        |_| None,
        |address| (!address.is_multicast()).then(|| "a-host-with-a-long-name.example.net".to_owned()),
    );
    let mut director = Memory::default();
    for line in [
        "-A -t 10.0.0.1:80 -s rr",
        "-a -t 10.0.0.1:80 -r 10.0.0.2",
        "-A -t [fd00::1]:80 -s rr",
        "-A -t 224.0.0.1:80 -s rr",
    ] {
        stdout_of(&mut director, line);
    }
    let mut text = Vec::new();
    let words = ["-L".to_owned()];
    let status = run(
        Face::Ipvsadm,
        &words,
        &mut io::empty(),
        &mut director,
        &named,
        &mut text,
        &mut Vec::new(),
    );
    assert_eq!(status, 0);
    // 33 characters of a service and 28 of a real server, of IPv4 only.
    assert_eq!(
        String::from_utf8(text)
            .unwrap()
            .lines()
            .skip(3)
            .collect::<Vec<_>>(),
        [
            "TCP  224.0.0.1:http rr",
            "TCP  a-host-with-a-long-name.exam rr",
            "  -> a-host-with-a-long-name.exam Route   1      0          0         ",
            "TCP  [a-host-with-a-long-name.example.net]:http rr",
        ]
    );
}

/// A director with a service of everything that a line can show, and connections.
fn busy() -> Memory {
    let mut director = Memory::default();
    for line in [
        "-A -t 10.0.0.1:80 -s sh -b sh-port -p 300 -M 255.255.255.0",
        "-a -t 10.0.0.1:80 -r 10.0.0.2 -w 3 -x 10 -y 5",
        "-A -u 10.0.0.1:53 -s lblcr -p -o",
        "-A --sctp-service [fd00::1]:5000 -s mh -b mh-port,mh-fallback -p 60 -M 64",
        "-a --sctp-service [fd00::1]:5000 -r fd00::2 -x 2147483647",
    ] {
        assert_eq!(stdout_of(&mut director, line), "", "{line}");
    }
    let server = &mut director.services[0].servers[0];
    (server.active, server.inactive, server.persistent) = (5, 1_000, 7);
    let rates = Rates {
        connections: 17,
        packets: 123_456_789,
        bytes: 9_876_543_210,
    };
    (server.rates, director.services[0].rates) = (rates, rates);
    let entry =
        |protocol, expires, state: &str, [client, virtual_address, destination]: [&str; 3]| Connection {
            protocol: Some(protocol),
            expires,
            state: state.to_owned(),
            client: client.parse().unwrap(),
            virtual_address: virtual_address.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
    let (web, rs) = ("10.9.0.104:80", "10.9.0.13:80");
    director.connections = vec![
        entry(Protocol::Tcp, 897, "ESTABLISHED", ["192.168.0.1:50000", web, rs]),
        entry(Protocol::Tcp, 298, "NONE", ["10.9.1.1:0", web, rs]),
        entry(
            Protocol::Udp,
            9,
            "UDP",
            ["10.9.1.1:53", "10.9.0.104:53", "10.9.0.13:53"],
        ),
        entry(
            Protocol::Sctp,
            2_678_400,
            "ASSURED",
            ["[fd00::1234:5678]:0", "[fd00::1]:80", "[fd00::2]:80"],
        ),
    ];
    director
}

#[test]
fn a_services_settings_stand_behind_it() {
    let titles = "Prot LocalAddress:Port Scheduler Flags\n\
         \x20 -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n";
    assert_eq!(
        stdout_of(&mut busy(), "-Ln"),
        format!(
            "IP Virtual Server version 1.2.1 (size=4096)\n{titles}\
             TCP  10.0.0.1:80 sh (sh-port) persistent 300 mask 255.255.255.0\n\
             \x20 -> 10.0.0.2:80                  Route   3      5          1000      \n\
             UDP  10.0.0.1:53 lblcr persistent 360 ops\n\
             SCTP [fd00::1]:5000 mh (mh-fallback,mh-port) persistent 60 mask 64\n\
             \x20 -> [fd00::2]:5000               Route   1      0          0         \n"
        )
    );
}

#[test]
fn other_columns_take_the_place_of_the_weight() {
    let of_web = |line: &str| stdout_of(&mut busy(), &format!("-Ln {line} -t 10.0.0.1:80"));
    let service = "TCP  10.0.0.1:80 sh (sh-port) persistent 300 mask 255.255.255.0";
    let thresholds = format!(
        "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn \n\
         \x20 -> RemoteAddress:Port\n{service}\n\
         \x20 -> 10.0.0.2:80                  10         5          5          1000      \n"
    );
    let persistent = format!(
        "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn \n\
         \x20 -> RemoteAddress:Port\n{service}\n\
         \x20 -> 10.0.0.2:80                  3         7           5          1000      \n"
    );
    let tunnels = format!(
        "Prot LocalAddress:Port Scheduler Flags\n\
         \x20 -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn\n{service}\n\
         \x20 -> 10.0.0.2:80                  Route   n/a           3      5          1000      \n"
    );
    assert_eq!(of_web("--thresholds"), thresholds);
    assert_eq!(of_web("--persistent-conn"), persistent);
    assert_eq!(of_web("--tun-info"), tunnels);
    assert_eq!(
        of_web("--rate --thresholds"),
        "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS\n\
         \x20 -> RemoteAddress:Port\n\
         TCP  10.0.0.1:80                        17  123456K        0    9876M        0\n\
         \x20 -> 10.0.0.2:80                        17 123456789        0    9876M        0\n"
    );
    assert_eq!(
        of_web("--rate -X").lines().nth(3),
        Some("  -> 10.0.0.2:80                        17 123456789        0 9876543210        0")
    );
    // Of several the first in ipvsadm's order counts, not the first on the line.
    assert_eq!(of_web("--tun-info --persistent-conn --thresholds"), thresholds);
    assert_eq!(of_web("--tun-info --persistent-conn"), persistent);
    assert_eq!(of_web("--thresholds --rate --stats"), of_web("--stats"));
}

/// As seen of the real one; but what `-S` writes is taken back here.
#[test]
fn marks_are_signed_numbers_in_lists() {
    let mut director = Memory::default();
    stdout_of(&mut director, "-A -f 7 -s rr");
    stdout_of(&mut director, "-A -f 4294967295 -6 -s rr");
    stdout_of(&mut director, "-a -f 7 -r 10.0.0.2:80 -w 2147483647");
    assert_eq!(
        stdout_of(&mut director, "-L").lines().skip(3).collect::<Vec<_>>(),
        [
            "FWM  -1 IPv6 rr",
            "FWM  7 rr",
            "  -> 10.0.0.2:80                  Route   2147483647 0          0         ",
        ]
    );
    assert!(stdout_of(&mut director, "-S").starts_with("-A -f 4294967295 -6 -s rr\n"));
}

/// As recorded of the real one (the session `forwarding-methods`, without its masqueraded server).
#[test]
fn tunnels_are_listed_and_saved_as_by_ipvsadm() {
    let mut director = Memory::default();
    for line in [
        "-A -t 10.0.0.1:80 -s rr",
        "-a -t 10.0.0.1:80 -r 10.0.0.2:80 -g",
        "-a -t 10.0.0.1:80 -r 10.0.0.3:80 -i",
        "-a -t 10.0.0.1:80 -r 10.0.0.6:8080 -i",
        "-a -t 10.0.0.1:80 -r 10.0.0.7 -i --tun-type gue --tun-port 6080",
        "-a -t 10.0.0.1:80 -r 10.0.0.8 -i --tun-type gre",
        "-a -t 10.0.0.1:80 -r 10.0.0.9 -i --tun-type gre --tun-csum",
        "-a -t 10.0.0.1:80 -r [fd00::9]:80 -i --tun-type gue --tun-port 1 --tun-remcsum",
    ] {
        assert_eq!(stdout_of(&mut director, line), "", "{line}");
    }
    assert_eq!(
        stdout_of(&mut director, "-L -n --tun-info -t 10.0.0.1:80"),
        "Prot LocalAddress:Port Scheduler Flags\n\
         \x20 -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn\n\
         TCP  10.0.0.1:80 rr\n\
         \x20 -> [fd00::9]:80                 Tunnel  gue:1:r+c     1      0          0         \n\
         \x20 -> 10.0.0.2:80                  Route   n/a           1      0          0         \n\
         \x20 -> 10.0.0.3:80                  Tunnel  ipip          1      0          0         \n\
         \x20 -> 10.0.0.6:80                  Tunnel  ipip          1      0          0         \n\
         \x20 -> 10.0.0.7:80                  Tunnel  gue:6080:-c   1      0          0         \n\
         \x20 -> 10.0.0.8:80                  Tunnel  gre:-c        1      0          0         \n\
         \x20 -> 10.0.0.9:80                  Tunnel  gre:+c        1      0          0         \n"
    );
    assert_eq!(
        stdout_of(&mut director, "-S -n"),
        "-A -t 10.0.0.1:80 -s rr\n\
         -a -t 10.0.0.1:80 -r [fd00::9]:80 -i -w 1 --tun-type gue --tun-port 1 --tun-remcsum\n\
         -a -t 10.0.0.1:80 -r 10.0.0.2:80 -g -w 1\n\
         -a -t 10.0.0.1:80 -r 10.0.0.3:80 -i -w 1 --tun-type ipip\n\
         -a -t 10.0.0.1:80 -r 10.0.0.6:80 -i -w 1 --tun-type ipip\n\
         -a -t 10.0.0.1:80 -r 10.0.0.7:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum\n\
         -a -t 10.0.0.1:80 -r 10.0.0.8:80 -i -w 1 --tun-type gre --tun-nocsum\n\
         -a -t 10.0.0.1:80 -r 10.0.0.9:80 -i -w 1 --tun-type gre --tun-csum\n"
    );
}

#[test]
fn connections_are_listed_in_the_agents_order() {
    let mut director = busy();
    assert_eq!(
        stdout_of(&mut director, "-L -c -n"),
        "IPVS connection entries\n\
         pro expire state       source             virtual            destination\n\
         TCP 14:57  ESTABLISHED 192.168.0.1:50000  10.9.0.104:80      10.9.0.13:80\n\
         TCP 04:58  NONE        10.9.1.1:0         10.9.0.104:80      10.9.0.13:80\n\
         UDP 00:09  UDP         10.9.1.1:53        10.9.0.104:53      10.9.0.13:53\n\
         SCTP 44640:00 ASSURED     [fd00::1234:5678]:0 [fd00::1]:80       [fd00::2]:80\n"
    );
    assert_eq!(
        stdout_of(&mut director, "-Lc --persistent-conn").lines().nth(1),
        Some(
            "pro expire state       source             virtual            destination        pe name          pe_data"
        )
    );
    assert_eq!(
        stdout_of(&mut director, "-Lc --persistent-conn").lines().nth(3),
        Some("TCP 04:58  NONE        10.9.1.1:0         10.9.0.104:http    10.9.0.13:http")
    );
}

#[test]
fn rules_are_saved_in_ipvsadms_words() {
    let mut director = busy();
    assert_eq!(
        stdout_of(&mut director, "-S -n"),
        "-A -t 10.0.0.1:80 -s sh -p 300 -M 255.255.255.0 -b sh-port\n\
         -a -t 10.0.0.1:80 -r 10.0.0.2:80 -g -w 3\n\
         -A -u 10.0.0.1:53 -s lblcr -p 360 -o\n\
         -A --sctp-service [fd00::1]:5000 -s mh -p 60 -M 64 -b mh-fallback,mh-port\n\
         -a --sctp-service [fd00::1]:5000 -r [fd00::2]:5000 -g -w 1\n"
    );
    assert_eq!(
        stdout_of(&mut director, "-S").lines().nth(1),
        Some("-a -t 10.0.0.1:http -r 10.0.0.2:http -g -w 3")
    );
}

#[test]
fn what_was_saved_makes_the_same_services() {
    let mut director = busy();
    let (rules, list) = (
        stdout_of(&mut director, "-S -n"),
        stdout_of(&mut director, "-Ln --tun-info"),
    );
    let mut other = Memory::default();
    for rule in rules.lines() {
        stdout_of(&mut other, rule);
    }
    assert_eq!(stdout_of(&mut other, "-S -n"), rules);
    // The connections are not saved.
    let server = &mut director.services[0].servers[0];
    (server.active, server.inactive) = (0, 0);
    assert_ne!(list, stdout_of(&mut director, "-Ln --tun-info"));
    assert_eq!(
        stdout_of(&mut other, "-Ln --tun-info"),
        stdout_of(&mut director, "-Ln --tun-info")
    );
}
