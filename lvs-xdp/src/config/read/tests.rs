use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::config::write;

fn faults(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

const WHOLE: &str = r#"
# A comment, and every kind of table.
[settings]
expire_nodest_conn = 1

[timeouts]
tcp = 600

[[mark]]
mark = 1
protocol = "tcp"
addresses = ["192.168.2.100/32"]
ports = ["80", "443"]

[[service]]
mark = 1
scheduler = "rr"

[[service]]
protocol = "tcp"
address = "192.168.2.101"
port = 80
scheduler = "mh"
flags = ["port"]
persistence = { timeout = 360, mask = "255.255.255.0" }
removal = "reset"
slow_start = 30
settings = { sloppy_tcp = 1 }
check = { interval = "1s", probe = { type = "http", path = "/health" } }

[[service.server]]
address = "192.168.2.210"
check = { fall = 5 }

[[service.server]]
address = "192.168.2.220"
port = 80
weight = 5
method = { tunnel = { type = "gue", port = 6080, checksum = "on" } }
upper_threshold = 100

[[service.server]]
address = "192.168.2.230"
weight = 0
drain = { deadline = 4102444800 }
"#;

#[test]
fn a_file_is_written_as_it_is_read() {
    let (configuration, model) = read(WHOLE).unwrap();
    assert_eq!(model.services().size(), 2);
    let server = |host: u8| {
        configuration.service[1]
            .server
            .iter()
            .find(|server| server.key.address == IpAddr::from([192, 168, 2, host]))
            .unwrap()
    };
    assert_eq!((server(210).weight, server(210).key.port), (1, 80));
    let written = write(&configuration).unwrap();
    insta::assert_snapshot!(written);
    assert_eq!(read(&written).unwrap(), (configuration, model));
}

#[test]
fn what_is_quoted_moves_no_cursor() {
    for text in [
        "\"a\\n\\u001b[2J\" = 1\n",
        "[settings]\n\"a\\n\\u001b[2J\" = 1\n",
        "[[service]]\nprotocol = \"\\u001b\"\naddress = \"192.0.2.1\"\nport = 80\n",
        "[[service]]\nprotocol = \"tcp\"\naddress = \"192.0.2.1\"\nport = 80\n\
         check = { probe = { type = \"http\", path = \"a\\nb\" } }\n",
    ] {
        let message = faults(text);
        assert!(!message.contains(char::is_control), "{message:?}");
        assert!(
            message.contains(r"\n") || message.contains(r"\u{1b}"),
            "{message}"
        );
    }
}

#[test]
fn an_empty_file_is_an_empty_table() {
    assert_eq!(read("").unwrap(), (Configuration::default(), Model::default()));
}

#[test]
fn every_fault_is_named_with_its_place() {
    insta::assert_snapshot!(faults(
        r#"
[setings]
x = 1
[settings]
sloppy = 1
sloppy_tcp = "yes"
[timeouts]
tcp = 99999999
[[mark]]
mark = 1
addresses = ["192.168.2.100"]
ports = ["90-80"]
[[service]]
protocol = "icmp"
address = "192.168.2"
port = 70000
scheduler = "wlcc"
flags = ["port", "prot"]
persistence = { timeout = 360, netmask = "255.255.255.0" }
[[service]]
protocol = "tcp"
address = "192.168.2.100"
port = 80
[[service.server]]
adress = "192.168.2.210"
[[service.server]]
address = "192.168.2.210"
wieght = 1
[[service.server]]
address = "192.168.2.211"
weight = 1.5
method = { tunnel = { type = "ipip", port = 6080 } }
[[service.server]]
address = "192.168.2.212"
weight = 4294967295
drain = 2026-01-01
[[service]]
protocol = "tcp"
address = "192.168.2.103"
port = 80
check = { intervall = "1s", timeout = "soon", probe = { type = "tcp", path = "/" } }
"#
    ));
}

#[test]
fn what_makes_no_sense_is_named_with_its_place() {
    insta::assert_snapshot!(faults(
        r#"
[settings]
conn_reuse_mode = 7
[timeouts]
tcp = 99999999
[[mark]]
mark = 0
addresses = ["192.168.2.100/32"]
[[mark]]
mark = 1
addresses = []
[[service]]
protocol = "tcp"
address = "192.168.2.100"
port = 80
persistence = { timeout = 0 }
[[service]]
protocol = "tcp"
address = "192.168.2.101"
port = 80
one_packet = true
[[service]]
protocol = "tcp"
address = "192.168.2.102"
port = 80
[[service.server]]
address = "192.168.2.210"
port = 81
[[service.server]]
address = "192.168.2.211"
weight = 2147483648
[[service.server]]
address = "192.168.2.212"
[[service.server]]
address = "192.168.2.212"
[[service.server]]
address = "224.0.0.1"
[[service]]
protocol = "tcp"
address = "192.168.2.102"
port = 80
"#
    ));
}

#[test]
fn a_service_has_one_name() {
    for (text, message) in [
        (
            "scheduler = 'rr'",
            "a service has no name: write `protocol`, `address` and `port`, or `mark`",
        ),
        ("protocol = 'tcp'\nport = 80", "a service has no `address`"),
        (
            "protocol = 'tcp'\nport = 80\naddress = '192.0.2.1'\nmark = 1",
            "not both",
        ),
        (
            "protocol = 'tcp'\nport = 80\naddress = '192.0.2.1'\nipv6 = true",
            "`ipv6` is for the service of a mark",
        ),
    ] {
        let told = faults(&format!("\n[[service]]\n{text}\n"));
        assert!(
            told.starts_with("line 2, column 1: ") && told.contains(message),
            "{told}"
        );
    }
}

#[test]
fn what_is_no_toml_is_named_with_its_place() {
    insta::assert_snapshot!(faults(
        "[settings\nsloppy_tcp = 1\n[[service]]\nprotocol = tcp\nport = 80\nport = 81\n"
    ));
}

proptest! {
    #[test]
    fn no_text_is_too_odd(text in "\\PC*") {
        let _ = read(&text);
    }

    #[test]
    fn a_damaged_file_has_faults_at_its_places(at in 0..WHOLE.len(), with in "[ -~\n]{0,3}") {
        prop_assume!(WHOLE.is_char_boundary(at));
        let text = format!("{}{with}{}", &WHOLE[..at], &WHOLE[at + 1..]);
        if let Err(Faults(faults)) = read(&text) {
            prop_assert!(!faults.is_empty());
            for Fault { line, column, message } in faults {
                prop_assert!(line >= 1 && line <= text.lines().count() + 1, "{line} {message}");
                prop_assert!(column >= 1 && !message.is_empty() && !message.contains('\n'));
            }
        }
    }
}
