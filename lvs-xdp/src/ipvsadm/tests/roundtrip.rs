//! Any table that there can be, saved and restored.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::select,
};

use super::*;
use crate::{
    api::types::{
        ClientMask, Drain, ForwardingMethod, Persistence, Protocol, Removal, SchedulerFlag, ServerKey,
        ServiceSettings, Setting, Tunnel, TunnelChecksum,
    },
    model::{MAX_SLOW_START, MAX_THRESHOLD, MAX_TIMEOUT, MAX_WEIGHT, Model},
};

fn any_v4() -> impl Strategy<Value = IpAddr> {
    any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into())
}

fn any_v6() -> impl Strategy<Value = IpAddr> {
    let spread = any::<u128>();
    // Those with runs of zeros, which are written in another way.
    let short =
        (any::<u16>(), any::<u16>()).prop_map(|(high, low)| u128::from(high) << 112 | u128::from(low));
    prop_oneof![spread, short]
        .prop_map(Ipv6Addr::from_bits)
        .prop_filter("an IPv4 address", |address| address.to_ipv4_mapped().is_none())
        .prop_map(IpAddr::V6)
}

fn any_key() -> impl Strategy<Value = ServiceKey> {
    let port = prop_oneof![Just(0), Just(80), any::<u16>()];
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let endpoint = (protocol, prop_oneof![any_v4(), any_v6()], port)
        .prop_map(|(protocol, address, port)| ServiceKey::new(protocol, address, port));
    let mark = (1u32.., any::<bool>()).prop_map(|(mark, ipv6)| ServiceKey::Mark { mark, ipv6 });
    prop_oneof![3 => endpoint, 1 => mark]
}

fn any_settings() -> impl Strategy<Value = ServiceSettings> {
    let values = Setting::ALL.map(|setting| option::of(0..=setting.most()));
    values.prop_map(|values| {
        let mut settings = ServiceSettings::default();
        for (setting, value) in Setting::ALL.into_iter().zip(values) {
            *setting.of_service(&mut settings) = value;
        }
        settings
    })
}

fn any_service() -> impl Strategy<Value = ServiceSpec> {
    let flags = btree_set(
        select(vec![
            SchedulerFlag::Fallback,
            SchedulerFlag::Port,
            SchedulerFlag::Third,
        ]),
        0..=3,
    );
    (
        any_key(),
        select(Scheduler::ALL.to_vec()),
        flags,
        option::of((1..=MAX_TIMEOUT, option::of((any::<u32>(), 1u8..=128)))),
        any::<bool>(),
        option::of(select(Removal::ALL.to_vec())),
        prop_oneof![Just(0), 0..=MAX_SLOW_START],
        any_settings(),
    )
        .prop_map(
            |(key, scheduler, flags, persistence, one_packet, removal, slow_start, settings)| {
                let mask = |(v4, v6): (u32, u8)| {
                    if key.is_ipv6() {
                        ClientMask::V6(v6)
                    } else {
                        ClientMask::V4(v4.into())
                    }
                };
                let is_for_all_ports = matches!(key, ServiceKey::Endpoint { port: 0, .. });
                let persistence = persistence.or(is_for_all_ports.then_some((360, None)));
                let one_packet =
                    one_packet && key.protocol().is_none_or(|protocol| protocol == Protocol::Udp);
                let is_remembering = one_packet || persistence.is_some();
                // ipvsadm has no words for health checks.
                ServiceSpec {
                    check: None,
                    quorum: 1,
                    fallback: None,
                    key,
                    scheduler,
                    flags: flags.into_iter().collect(),
                    persistence: persistence.map(|(timeout, masks)| Persistence {
                        timeout,
                        mask: masks.map(mask),
                    }),
                    one_packet,
                    stateless: matches!(scheduler, Scheduler::Sh | Scheduler::Dh | Scheduler::Mh)
                        && slow_start % 2 == 1
                        && !is_remembering,
                    removal,
                    slow_start,
                    settings,
                }
            },
        )
}

fn any_method() -> impl Strategy<Value = ForwardingMethod> {
    let checksum = select(TunnelChecksum::ALL.to_vec());
    prop_oneof![
        3 => Just(ForwardingMethod::Dr),
        1 => Just(ForwardingMethod::Tunnel(Tunnel::Ipip)),
        1 => (1u16.., checksum)
            .prop_map(|(port, checksum)| ForwardingMethod::Tunnel(Tunnel::Gue { port, checksum })),
        1 => any::<bool>().prop_map(|checksum| ForwardingMethod::Tunnel(Tunnel::Gre { checksum })),
    ]
}

/// What a real server of any service may have; its address family and port are the service's.
fn any_server() -> impl Strategy<Value = (IpAddr, IpAddr, bool, ServerSpec)> {
    let address = || (any_v4(), any_v6(), any::<bool>());
    (
        address(),
        any::<u16>(),
        0..=MAX_WEIGHT,
        any_method(),
        prop_oneof![Just(0), 0..=MAX_THRESHOLD],
        0..=100u32,
        option::weighted(0.2, option::of(any::<u64>())),
    )
        .prop_map(
            |((v4, v6, is_other), port, weight, method, upper, percent, drain)| {
                let key = ServerKey { address: v4, port };
                let lower = u64::from(upper) * u64::from(percent) / 100;
                let server = ServerSpec {
                    method,
                    upper_threshold: upper,
                    lower_threshold: lower.try_into().unwrap_or(0),
                    drain: drain.map(|deadline| Drain { deadline }),
                    ..ServerSpec::new(key, weight)
                };
                (v4, v6, is_other, server)
            },
        )
}

/// A table, by what makes it; what the model refuses is left out.
fn any_table() -> impl Strategy<Value = Model> {
    vec((any_service(), vec(any_server(), 0..6)), 0..8).prop_map(|services| {
        let mut model = Model::default();
        for (service, servers) in services {
            let key = service.key;
            if model.apply(&[Change::AddService { service }]).is_err() {
                continue;
            }
            for (v4, v6, is_other, mut server) in servers {
                let is_v6 = key.is_ipv6() ^ (is_other && server.method.tunnel().is_some());
                server.key.address = if is_v6 { v6 } else { v4 };
                if let ServiceKey::Endpoint { port, .. } = key {
                    server.key.port = port;
                }
                let (address, drain) = (server.key, server.drain);
                let mut changes = vec![Change::AddServer {
                    service: key,
                    server,
                    require_on_link: false,
                }];
                changes.extend(drain.map(|drain| Change::DrainServer {
                    service: key,
                    server: address,
                    drain,
                }));
                // Two of one address, or one that can be no host's.
                let _ = model.apply(&changes);
            }
        }
        model
    })
}

/// What `-S` of ipvsadm has words for: neither thresholds nor what is not in IPVS, nor the order of real servers.
fn as_saved(model: &Model) -> Vec<(ServiceSpec, Vec<ServerSpec>)> {
    let services = model.services().values().map(|entry| {
        let spec = ServiceSpec {
            stateless: false,
            removal: None,
            slow_start: 0,
            settings: ServiceSettings::default(),
            ..entry.spec.clone()
        };
        let servers = entry.servers.iter().map(|server| ServerSpec {
            upper_threshold: 0,
            lower_threshold: 0,
            drain: None,
            ..server.clone()
        });
        let mut servers: Vec<_> = servers.collect();
        servers.sort_by_key(|server| server.key);
        (spec, servers)
    });
    services.collect()
}

fn restored(rules: &str) -> Model {
    let mut other = Desired::default();
    let step = run_as(Face::Restore, &mut other, Vec::new(), rules);
    assert_eq!((step.status, step.stderr.as_str()), (0, ""), "{rules}");
    other.0
}

proptest! {
    #[test]
    fn any_table_survives(model in any_table()) {
        let mut director = Desired(model);
        let full = stdout_of(&mut director, "-S -n --full");
        prop_assert_eq!(&restored(&full), &director.0, "{}", full);
        let rules = stdout_of(&mut director, "-S -n");
        let other = restored(&rules);
        prop_assert_eq!(as_saved(&other), as_saved(&director.0), "{}", rules);
        // With the names of ports it is the same.
        prop_assert_eq!(&restored(&stdout_of(&mut director, "-S --full")), &director.0);
    }
}

#[test]
fn tables_are_of_every_kind() {
    // What is generated is worth restoring: it has services and real servers of every kind.
    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut kinds = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let model = any_table().new_tree(&mut runner).unwrap().current();
        for (key, entry) in model.services() {
            kinds.insert((key.is_ipv6(), key.protocol(), entry.servers.len() > 1));
        }
    }
    assert_eq!(kinds.len(), 2 * 4 * 2);
}
