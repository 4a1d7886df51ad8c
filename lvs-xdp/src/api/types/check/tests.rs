use std::path::PathBuf;

use proptest::{collection::vec, option, prelude::*};
use serde_json::Value;

use super::*;
use crate::api::types::{
    DnsProbe, DnsRecord, ExecProbe, HttpProbe, PassiveProbe, Statuses, TlsOptions, UdpProbe,
};

#[test]
fn spans_and_statuses_are_read_as_they_are_written() {
    for (text, expected) in [
        ("10ms", Ok("10ms")),
        ("1500ms", Ok("1s 500ms")),
        ("1day", Ok("1day")),
        ("9ms", Err("out of range")),
        ("1day 1ms", Err("out of range")),
        ("1ms 1us", Err("no whole number of milliseconds")),
        ("2", Err("is no time")),
        ("", Err("is no time")),
    ] {
        let seen = text.parse::<Span>().map(|span| span.to_string());
        match (&seen, expected) {
            (Ok(seen), Ok(expected)) => assert_eq!(seen, expected),
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            _ => panic!("{text}: {seen:?}"),
        }
    }
    for text in ["200", "200-399", "100-599"] {
        assert_eq!(text.parse::<Statuses>().unwrap().to_string(), text);
    }
    for bad in ["", "20", "2000", "99", "600", "300-200", "2xx", "200-", "+20"] {
        assert!(bad.parse::<Statuses>().is_err(), "{bad}");
    }
    let range: Statuses = "200-204".parse().unwrap();
    assert!(range.contains(200) && range.contains(204) && !range.contains(205));
}

#[test]
fn octets_are_two_digits_each() {
    let probe = |send: &str, send_hex: &str| UdpProbe {
        send: send.to_owned(),
        send_hex: send_hex.to_owned(),
        ..UdpProbe::default()
    };
    assert_eq!(probe("ping", "").octets(), Ok(b"ping".to_vec()));
    assert_eq!(probe("", "00fFa1").octets(), Ok(vec![0, 0xff, 0xa1]));
    for (send, send_hex) in [
        ("", "0"),
        ("", "0g"),
        ("", "+1"),
        ("", "00 1"),
        ("", "é"),
        ("x", "00"),
    ] {
        assert!(probe(send, send_hex).octets().is_err(), "{send} {send_hex}");
    }
}

#[test]
fn what_is_not_known_is_refused() {
    for text in [
        r#"{ "probe": { "type": "tcp", "path": "/" } }"#,
        r#"{ "probe": { "type": "http", "paht": "/" } }"#,
        r#"{ "probe": { "type": "icmp" } }"#,
        r#"{ "probe": { "type": "tcp" }, "intervall": "1s" }"#,
        r#"{ "probe": { "type": "tcp" }, "interval": 1 }"#,
        r#"{ "interval": "1s" }"#,
    ] {
        assert!(serde_json::from_str::<Check>(text).is_err(), "{text}");
    }
    let short: Check = serde_json::from_str(r#"{ "probe": { "type": "tcp" } }"#).unwrap();
    assert_eq!(short, Check::new(Probe::Tcp {}));
}

fn any_probe() -> impl Strategy<Value = Probe> {
    let text = "[a-z]{1,8}";
    let tls = (any::<bool>(), option::of(text), option::of(text)).prop_map(|(verify, server_name, ca)| {
        TlsOptions {
            verify,
            server_name,
            ca: ca.map(PathBuf::from),
        }
    });
    let status = (100u16..=599).prop_map(|status| status.to_string().parse().unwrap());
    let http = (
        option::of(text),
        vec(status, 0..3),
        option::of(text),
        option::of(tls),
    )
        .prop_map(|(host, status, contains, tls)| HttpProbe {
            host,
            status,
            contains,
            tls,
            ..HttpProbe::default()
        });
    let udp = (text, option::of(text), any::<bool>()).prop_map(|(send, contains, answer)| UdpProbe {
        send,
        contains,
        answer,
        ..UdpProbe::default()
    });
    let dns =
        (text, 0..DnsRecord::ALL.len(), option::of(any::<[u8; 4]>())).prop_map(|(name, record, address)| {
            DnsProbe {
                name,
                record: DnsRecord::ALL[record],
                address: address.map(IpAddr::from),
            }
        });
    prop_oneof![
        Just(Probe::Tcp {}),
        http.prop_map(Probe::Http),
        udp.prop_map(Probe::Udp),
        dns.prop_map(Probe::Dns),
        vec(text, 1..4).prop_map(|command| Probe::Exec(ExecProbe { command })),
        (10u64..90_000_000, any::<u32>(), 1u32..100).prop_map(|(window, connections, share)| {
            Probe::Passive(PassiveProbe {
                window: Span::from_millis(window),
                connections,
                share,
                ..PassiveProbe::default()
            })
        }),
    ]
}

/// Whether a configuration file can have it: TOML knows no null and no integer beyond 63 bits.
fn fits_toml(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Number(number) => number.is_i64(),
        Value::Array(values) => values.iter().all(fits_toml),
        Value::Object(fields) => fields.values().all(fits_toml),
        Value::Bool(_) | Value::String(_) => true,
    }
}

proptest! {
    #[test]
    fn a_check_is_read_as_it_was_written(
        probe in any_probe(), interval in 10u64..90_000_000, rise in 1u32..100, port in option::of(1u16..),
        is_up in any::<bool>()
    ) {
        let check = Check {
            interval: Span::from_millis(interval),
            rise,
            port,
            initial: if is_up { InitialState::Up } else { InitialState::Down },
            ..Check::new(probe.clone())
        };
        let value = serde_json::to_value(&check).unwrap();
        prop_assert!(fits_toml(&value), "{}", value);
        prop_assert_eq!(serde_json::from_value::<Check>(value).unwrap(), check);
        let own = ServerCheck { rise: Some(rise), port, probe: Some(probe), ..ServerCheck::default() };
        let value = serde_json::to_value(&own).unwrap();
        prop_assert!(fits_toml(&value), "{}", value);
        prop_assert_eq!(serde_json::from_value::<ServerCheck>(value).unwrap(), own);
    }
}
