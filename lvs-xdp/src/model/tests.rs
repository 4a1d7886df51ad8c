use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
};

use super::*;
use crate::api::types::{
    Drain, ForwardingMethod, Removal, SchedulerFlag, ServiceSettings, Tunnel, TunnelChecksum,
};

fn service_key(address: &str, port: u16) -> ServiceKey {
    ServiceKey::new(Protocol::Tcp, address.parse().unwrap(), port)
}

fn service(key: ServiceKey, scheduler: Scheduler, flags: &[SchedulerFlag]) -> ServiceSpec {
    ServiceSpec {
        flags: flags.to_vec(),
        ..ServiceSpec::new(key, scheduler)
    }
}

fn server(address: &str, port: u16, weight: u32) -> ServerSpec {
    let key = ServerKey {
        address: address.parse().unwrap(),
        port,
    };
    ServerSpec::new(key, weight)
}

fn add(address: &str, port: u16) -> Change {
    Change::AddService {
        service: service(service_key(address, port), Scheduler::Rr, &[]),
    }
}

fn add_server(service: ServiceKey, server: ServerSpec) -> Change {
    Change::AddServer {
        service,
        server,
        require_on_link: true,
    }
}

const VIP: &str = "192.0.2.1";
const VIP6: &str = "2001:db8::1";

fn with_service() -> (Model, ServiceKey) {
    let mut model = Model::default();
    model.apply(&[add(VIP, 80)]).unwrap();
    (model, service_key(VIP, 80))
}

/// The change is refused with this code and a one-line message that has `words`.
#[track_caller]
fn refused(model: &Model, change: Change, code: ErrorCode, words: &str) {
    let mut tried = model.clone();
    let error = tried.apply(&[add("192.0.2.99", 9), change]).unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(words), "{error}");
    assert!(!error.message.contains('\n'), "{error}");
    assert_eq!(tried, *model, "a refused list leaves no trace");
}

#[test]
fn what_must_or_must_not_exist() {
    let (mut model, key) = with_service();
    let (other, rs) = (service_key(VIP, 81), server("198.51.100.1", 80, 1));
    model.apply(&[add_server(key, rs.clone())]).unwrap();

    refused(
        &model,
        add(VIP, 80),
        ErrorCode::ServiceExists,
        "TCP 192.0.2.1:80 exists already",
    );
    let edit = Change::EditService {
        service: service(other, Scheduler::Rr, &[]),
    };
    refused(
        &model,
        edit,
        ErrorCode::NoSuchService,
        "no service TCP 192.0.2.1:81",
    );
    let delete = Change::DeleteService { service: other };
    refused(
        &model,
        delete,
        ErrorCode::NoSuchService,
        "no service TCP 192.0.2.1:81",
    );

    let missing = server("198.51.100.2", 80, 1);
    let not_defined = ErrorCode::ServiceNotDefined;
    refused(&model, add_server(other, rs.clone()), not_defined, "not defined");
    let edit = |service, server| Change::EditServer { service, server };
    refused(&model, edit(other, rs.clone()), not_defined, "not defined");
    refused(
        &model,
        edit(key, missing.clone()),
        ErrorCode::NoSuchServer,
        "198.51.100.2:80",
    );
    let delete = |service, server: &ServerSpec| Change::DeleteServer {
        service,
        server: server.key,
    };
    refused(&model, delete(other, &rs), not_defined, "not defined");
    refused(
        &model,
        delete(key, &missing),
        ErrorCode::NoSuchServer,
        "198.51.100.2:80",
    );
    refused(
        &model,
        add_server(key, rs),
        ErrorCode::ServerExists,
        "198.51.100.1:80 exists already",
    );
}

#[test]
fn unfit_services() {
    let (model, _) = with_service();
    for (address, port, words) in [
        ("192.0.2.1", 0, "port 0 stands for all ports"),
        ("::ffff:192.0.2.1", 80, "in IPv6's form: use the IPv4 address"),
        ("2001:db8::1", 0, "port 0 stands for all ports"),
    ] {
        refused(&model, add(address, port), ErrorCode::Invalid, words);
    }
}

#[test]
fn what_makes_no_sense_is_taken_as_by_ipvs_and_objected_to() {
    let (mut model, key) = with_service();
    assert_eq!(objection(&model.services()[&key].spec), None);
    for (address, words) in [
        ("0.0.0.0", "unspecified"),
        ("239.1.2.3", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("::", "unspecified"),
        ("ff05::2", "multicast"),
        ("fe80::1", "is link-local: use a global or unique local address"),
    ] {
        model.apply(&[add(address, 80)]).unwrap();
        let spec = &model.services()[&service_key(address, 80)].spec;
        let objection = objection(spec).unwrap();
        assert!(objection.contains(words), "{objection}");
        assert!(!is_host_address(address.parse().unwrap()));
    }
    for scheduler in [Scheduler::Rr, Scheduler::Wrr, Scheduler::Fo, Scheduler::Dh] {
        let spec = service(key, scheduler, &[SchedulerFlag::Port, SchedulerFlag::Third]);
        let edit = Change::EditService {
            service: spec.clone(),
        };
        model.apply(&[edit]).unwrap();
        assert_eq!(model.services()[&key].spec, spec);
        let objection = objection(&spec).unwrap();
        assert!(
            objection.contains(&format!("scheduler {scheduler} takes no flags")),
            "{objection}"
        );
    }
}

#[test]
fn unfit_servers() {
    let (model, key) = with_service();
    for (address, port, weight, words) in [
        ("198.51.100.1", 81, 1, "use the service's port 80"),
        ("198.51.100.1", 0, 1, "use the service's port 80"),
        ("0.0.0.0", 80, 1, "unspecified"),
        ("224.0.0.1", 80, 1, "multicast"),
        ("255.255.255.255", 80, 1, "broadcast"),
        ("2001:db8::1", 80, 1, "family"),
    ] {
        refused(
            &model,
            add_server(key, server(address, port, weight)),
            ErrorCode::Invalid,
            words,
        );
    }
}

fn tunnelled(address: &str, port: u16, tunnel: Tunnel) -> ServerSpec {
    ServerSpec {
        method: ForwardingMethod::Tunnel(tunnel),
        ..server(address, port, 1)
    }
}

#[test]
fn a_tunnel_may_lead_to_another_family_and_stands_beside_direct_routing() {
    let (mut model, key) = with_service();
    let gue = Tunnel::Gue {
        port: 6080,
        checksum: TunnelChecksum::Remote,
    };
    let servers = [
        tunnelled("2001:db8::1", 80, Tunnel::Ipip),
        server("198.51.100.1", 80, 1),
        tunnelled("198.51.100.2", 80, gue),
    ];
    for server in &servers {
        model.apply(&[add_server(key, server.clone())]).unwrap();
    }
    let mut kept = Vec::from_iter(model.services()[&key].servers.iter().cloned());
    kept.reverse();
    assert_eq!(kept, servers);
    let direct = server("2001:db8::1", 80, 1);
    let edit = Change::EditServer {
        service: key,
        server: direct,
    };
    refused(&model, edit, ErrorCode::Invalid, "family");
}

#[test]
fn unfit_tunnels() {
    let (model, key) = with_service();
    let gue = Tunnel::Gue {
        port: 0,
        checksum: TunnelChecksum::None,
    };
    for (server, words) in [
        (
            tunnelled("198.51.100.1", 81, Tunnel::Ipip),
            "use the service's port 80",
        ),
        (tunnelled("198.51.100.1", 80, gue), "cannot go to port 0"),
        (tunnelled("224.0.0.1", 80, Tunnel::Ipip), "multicast"),
    ] {
        refused(&model, add_server(key, server), ErrorCode::Invalid, words);
    }
}

#[test]
fn unfit_servers_of_an_ipv6_service() {
    let mut model = Model::default();
    model.apply(&[add(VIP6, 80)]).unwrap();
    let key = service_key(VIP6, 80);
    for (address, words) in [
        ("::", "unspecified"),
        ("ff02::1", "multicast"),
        ("fe80::1", "is link-local"),
        ("::ffff:198.51.100.1", "use the IPv4 address"),
        ("198.51.100.1", "family"),
    ] {
        refused(
            &model,
            add_server(key, server(address, 80, 1)),
            ErrorCode::Invalid,
            words,
        );
    }
    // The director itself may be one, as the VIP that it holds.
    for fit in ["2001:db8:1::1", VIP6].map(|address| server(address, 80, 1)) {
        model.apply(&[add_server(key, fit.clone())]).unwrap();
        assert_eq!(model.services()[&key].servers.iter().next(), Some(&fit));
    }
}

#[test]
fn weights_and_thresholds_are_in_the_kernels_range() {
    let (mut model, key) = with_service();
    let with = |weight, upper_threshold, lower_threshold| ServerSpec {
        upper_threshold,
        lower_threshold,
        ..server("198.51.100.1", 80, weight)
    };
    let bad = [
        (with(MAX_WEIGHT + 1, 0, 0), "from 0 to 2147483647"),
        (with(1, MAX_THRESHOLD + 1, 0), "from 0 to 2147483647"),
        (with(1, u32::MAX, u32::MAX), "from 0 to 2147483647"),
        (with(1, 10, 11), "lower threshold 11 is above the upper one, 10"),
        (with(1, 0, 5), "lower threshold 5 is above the upper one, 0"),
    ];
    let edit = |server: &ServerSpec| Change::EditServer {
        service: key,
        server: server.clone(),
    };
    for (server, words) in &bad {
        let add = add_server(key, server.clone());
        refused(&model, add, ErrorCode::OutOfRange, words);
        // Before the kernel looks whether there is such a server.
        refused(&model, edit(server), ErrorCode::OutOfRange, words);
    }
    let most = with(MAX_WEIGHT, MAX_THRESHOLD, MAX_THRESHOLD);
    model.apply(&[add_server(key, most.clone())]).unwrap();
    assert_eq!(model.services()[&key].servers, [most][..]);
    for (server, words) in &bad {
        let add = add_server(key, server.clone());
        refused(&model, add, ErrorCode::OutOfRange, words);
        refused(&model, edit(server), ErrorCode::OutOfRange, words);
    }
    let undefined = add_server(service_key(VIP, 81), bad[0].0.clone());
    refused(&model, undefined, ErrorCode::ServiceNotDefined, "not defined");
}

fn persistent(key: ServiceKey, timeout: u32, mask: Option<ClientMask>) -> ServiceSpec {
    ServiceSpec {
        persistence: Some(Persistence { timeout, mask }),
        ..service(key, Scheduler::Rr, &[])
    }
}

#[test]
fn persistence_has_ipvs_limits() {
    let (mut model, key) = with_service();
    let edit = |service| Change::EditService { service };
    let netmask = |text: &str| Some(text.parse().unwrap());
    for (timeout, mask, words) in [
        (0, None, "use 1 to 2678400 s"),
        (MAX_TIMEOUT + 1, None, "use 1 to 2678400 s"),
        (360, netmask("64"), "64 is no mask for IPv4"),
    ] {
        let spec = persistent(key, timeout, mask);
        refused(&model, edit(spec), ErrorCode::Invalid, words);
    }
    // As in the kernel: any bits, and those of one address are as good as none.
    for (given, kept) in [
        (netmask("255.255.255.0"), netmask("255.255.255.0")),
        (netmask("255.0.255.0"), netmask("255.0.255.0")),
        (netmask("0.0.0.0"), netmask("0.0.0.0")),
        (netmask("255.255.255.255"), None),
    ] {
        model.apply(&[edit(persistent(key, MAX_TIMEOUT, given))]).unwrap();
        assert_eq!(
            model.services()[&key].spec.persistence,
            Some(Persistence {
                timeout: MAX_TIMEOUT,
                mask: kept
            })
        );
    }
    model.apply(&[edit(service(key, Scheduler::Rr, &[]))]).unwrap();
    assert_eq!(model.services()[&key].spec.persistence, None);
}

#[test]
fn an_all_port_service_is_persistent_and_so_are_its_servers_ports() {
    let (mut model, _) = with_service();
    let key = service_key(VIP, 0);
    let words = "make it persistent, or use a port from 1 to 65535";
    refused(&model, add(VIP, 0), ErrorCode::Invalid, words);
    let service_spec = persistent(key, 1, None);
    let add = Change::AddService {
        service: service_spec,
    };
    model.apply(&[add]).unwrap();
    let edit = Change::EditService {
        service: service(key, Scheduler::Rr, &[]),
    };
    refused(&model, edit, ErrorCode::Invalid, words);
    let wrong = add_server(key, server("198.51.100.1", 80, 1));
    refused(&model, wrong, ErrorCode::Invalid, "use the service's port 0");
    let right = server("198.51.100.1", 0, 1);
    model.apply(&[add_server(key, right.clone())]).unwrap();
    assert_eq!(model.services()[&key].servers, [right][..]);
}

#[test]
fn unfit_options_of_a_service() {
    let (mut model, key) = with_service();
    let with = |change: &dyn Fn(&mut ServiceSpec)| {
        let mut spec = service(key, Scheduler::Rr, &[]);
        change(&mut spec);
        Change::EditService { service: spec }
    };
    let too_long = with(&|spec| spec.slow_start = MAX_SLOW_START + 1);
    refused(&model, too_long, ErrorCode::Invalid, "86400 s (a day)");
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        let key = ServiceKey::new(protocol, VIP.parse().unwrap(), 1);
        let add = with(&|spec| (spec.key, spec.one_packet) = (key, true));
        let Change::EditService { service } = add else {
            unreachable!("made above")
        };
        refused(
            &model,
            Change::AddService { service },
            ErrorCode::Invalid,
            "UDP only",
        );
    }
    for (scheduler, persistence, one_packet, words) in [
        (Scheduler::Rr, None, false, "use mh, sh or dh"),
        (
            Scheduler::Mh,
            Some(Persistence {
                timeout: 60,
                mask: None,
            }),
            false,
            "persistence",
        ),
        (Scheduler::Mh, None, true, "one-packet"),
    ] {
        let key = ServiceKey::new(Protocol::Udp, VIP.parse().unwrap(), 1);
        let spec = ServiceSpec {
            stateless: true,
            persistence,
            one_packet,
            ..service(key, scheduler, &[])
        };
        refused(
            &model,
            Change::AddService { service: spec },
            ErrorCode::Invalid,
            words,
        );
    }
    for setting in Setting::ALL {
        let set = |value| with(&|spec| *setting.of_service(&mut spec.settings) = Some(value));
        let most = setting.most();
        let words = format!("{setting} cannot be {}: use a value from 0 to {most}", most + 1);
        refused(&model, set(most + 1), ErrorCode::Invalid, &words);
        let mut settings = Settings::default();
        *setting.of(&mut settings) = most + 1;
        refused(
            &model,
            Change::SetSettings { settings },
            ErrorCode::Invalid,
            &words,
        );
        model.apply(&[set(most)]).unwrap();
        *setting.of(&mut settings) = most;
        model.apply(&[Change::SetSettings { settings }]).unwrap();
        assert_eq!(model.settings(), settings);
    }
    let sctp = ServiceKey::new(Protocol::Sctp, VIP.parse().unwrap(), 80);
    let service = ServiceSpec {
        slow_start: MAX_SLOW_START,
        ..service(sctp, Scheduler::Wlc, &[])
    };
    model.apply(&[Change::AddService { service }]).unwrap();
}

#[test]
fn draining_sets_the_weight_to_0_until_an_edit() {
    let (mut model, key) = with_service();
    let rs = server("198.51.100.1", 80, 5);
    let drain = |address: &str, deadline| Change::DrainServer {
        service: key,
        server: server(address, 80, 0).key,
        drain: Drain { deadline },
    };
    let missing = drain("198.51.100.2", None);
    refused(&model, missing, ErrorCode::NoSuchServer, "198.51.100.2:80");
    model.apply(&[add_server(key, rs.clone())]).unwrap();
    for deadline in [Some(1_800_000_000), Some(1_900_000_000), None] {
        model.apply(&[drain("198.51.100.1", deadline)]).unwrap();
        let drained = ServerSpec {
            weight: 0,
            drain: Some(Drain { deadline }),
            ..rs.clone()
        };
        assert_eq!(model.services()[&key].servers, [drained][..]);
    }
    // What is sent back as it was listed is an edit like any other.
    let edited = ServerSpec {
        drain: Some(Drain::default()),
        ..rs.clone()
    };
    let edit = Change::EditServer {
        service: key,
        server: edited,
    };
    model.apply(&[edit]).unwrap();
    assert_eq!(model.services()[&key].servers, [rs][..]);
}

#[test]
fn every_change_that_makes_no_sense_is_named() {
    use ErrorCode::{Invalid, NoSuchService, ServiceExists};
    let (mut model, key) = with_service();
    let before = model.clone();
    let delete = Change::DeleteService {
        service: service_key(VIP, 443),
    };
    let changes = [
        add(VIP, 81),
        add(VIP, 80),
        add_server(key, server("198.51.100.1", 80, 1)),
        delete.clone(),
        add(VIP, 81),
        add_server(service_key(VIP, 81), server("198.51.100.1", 82, 1)),
    ];
    let error = model.apply(&changes).unwrap_err();
    assert_eq!(model, before);
    let faults: Vec<_> = error
        .faults
        .iter()
        .map(|fault| (fault.index, fault.code))
        .collect();
    assert_eq!(
        faults,
        [
            (1, ServiceExists),
            (3, NoSuchService),
            (4, ServiceExists),
            (5, Invalid)
        ]
    );
    assert_eq!(
        (error.code, &error.message),
        (ServiceExists, &error.faults[0].message)
    );
    assert!(model.apply(&[delete]).unwrap_err().faults.is_empty());
}

#[test]
fn a_table_made_anew_tells_no_scheduler() {
    let model = Model::default();
    assert!(model.touched(&[Change::ClearMarks]).is_empty());
    let (one, other) = (service_key(VIP, 80), service_key(VIP, 81));
    let add = |key: ServiceKey| add_server(key, server("198.51.100.1", key.port(), 1));
    let told = Model::told(&[add(one), Change::Clear, add(other)]);
    assert_eq!(told.into_iter().collect::<Vec<_>>(), [one]);
}

#[test]
fn flags_are_kept_in_order_without_repetition() {
    use SchedulerFlag::{Fallback, Port};
    let (mut model, key) = with_service();
    let spec = service(key, Scheduler::Mh, &[Port, Fallback, Port]);
    model.apply(&[Change::EditService { service: spec }]).unwrap();
    assert_eq!(model.services()[&key].spec.flags, [Fallback, Port]);
}

#[test]
fn a_service_has_room_for_4096_servers() {
    let (mut model, key) = with_service();
    let servers: Vec<_> = (0..=MAX_SERVERS)
        .map(|n| add_server(key, server(&format!("10.0.{}.{}", n / 256, n % 256), 80, 1)))
        .collect();
    model.apply(&servers[..MAX_SERVERS]).unwrap();
    assert_eq!(model.services()[&key].servers.len(), MAX_SERVERS);
    refused(
        &model,
        servers[MAX_SERVERS].clone(),
        ErrorCode::Full,
        "4096 real servers",
    );
}

#[test]
fn marks_have_rules_and_services_of_their_own() {
    let mut model = Model::default();
    let add = |rule| Change::AddMark { rule };
    let (wide, narrow) = (
        rule(1, &["192.0.2.0/24"], &[]),
        rule(2, &["192.0.2.1/32"], &["80"]),
    );
    model.apply(&[add(wide.clone()), add(narrow.clone())]).unwrap();
    assert_eq!(**model.marks(), [wide.clone(), narrow.clone()]);
    // However it is written.
    let again = rule(2, &["192.0.2.1/32", "192.0.2.1/32"], &["80", "80-80"]);
    refused(
        &model,
        add(again.clone()),
        ErrorCode::MarkExists,
        "exists already",
    );
    for (rule, part) in [
        (rule(0, &["192.0.2.0/24"], &[]), "mark 0"),
        (rule(1, &[], &["80"]), "has no address"),
        (rule(1, &["::ffff:192.0.2.0/120"], &[]), "write it as IPv4"),
    ] {
        refused(&model, add(rule), ErrorCode::Invalid, part);
    }
    let delete = |rule| Change::DeleteMark { rule };
    let other = rule(2, &["192.0.2.1/32"], &["81"]);
    refused(
        &model,
        delete(other.clone()),
        ErrorCode::NoSuchMark,
        "no such rule of mark 2",
    );
    model.apply(&[Change::Clear]).unwrap();
    assert_eq!(model.marks().len(), 2);
    let before = model.clone();
    model.apply(&[delete(again.clone()), delete(other)]).unwrap_err();
    assert_eq!(model, before);
    model.apply(&[delete(again)]).unwrap();
    assert_eq!(**model.marks(), [wide]);
    let mut cleared = model.clone();
    cleared.apply(&[Change::ClearMarks]).unwrap();
    assert!(cleared.marks().is_empty());

    let key = ServiceKey::Mark { mark: 7, ipv6: false };
    let spec = service(key, Scheduler::Rr, &[]);
    let one_packet = ServiceSpec {
        one_packet: true,
        ..spec.clone()
    };
    let service = |service| Change::AddService { service };
    let unmarked = ServiceKey::Mark { mark: 0, ipv6: true };
    let none = ServiceSpec::new(unmarked, Scheduler::Rr);
    refused(&model, service(none), ErrorCode::Invalid, "mark 0");
    model.apply(&[service(one_packet)]).unwrap();
    // Any port is as good as another.
    for port in [0, 80] {
        let server = server("198.51.100.1", port, 1);
        model.apply(&[add_server(key, server)]).unwrap();
    }
    let six = add_server(key, server("2001:db8:1::1", 0, 1));
    refused(&model, six, ErrorCode::Invalid, "another address family");
}

/// The rules of order and replacement once more, as plainly as can be; it trusts its input to be valid.
#[derive(Default, Clone)]
struct Plain(
    Vec<(ServiceSpec, Vec<ServerSpec>)>,
    [Option<u32>; 3],
    Option<Settings>,
    Vec<MarkRule>,
);

impl Plain {
    fn service(&mut self, key: &ServiceKey) -> Option<&mut (ServiceSpec, Vec<ServerSpec>)> {
        self.0.iter_mut().find(|(spec, _)| spec.key == *key)
    }

    fn apply(&mut self, change: &Change) -> Option<()> {
        match change {
            Change::AddService { service } => {
                if self.service(&service.key).is_some() {
                    return None;
                }
                self.0.push((service.clone(), Vec::new()));
            }
            Change::EditService { service } => self.service(&service.key)?.0 = service.clone(),
            Change::DeleteService { service } => {
                self.service(service)?;
                self.0.retain(|(spec, _)| spec.key != *service);
            }
            Change::AddServer { service, server, .. } => {
                let (_, servers) = self.service(service)?;
                if servers.iter().any(|other| other.key == server.key) {
                    return None;
                }
                servers.insert(0, server.clone());
            }
            Change::EditServer { service, server } => {
                let (_, servers) = self.service(service)?;
                *servers.iter_mut().find(|other| other.key == server.key)? = server.clone();
            }
            Change::DeleteServer { service, server } => {
                let (_, servers) = self.service(service)?;
                let before = servers.len();
                servers.retain(|other| other.key != *server);
                if servers.len() == before {
                    return None;
                }
            }
            Change::DrainServer {
                service,
                server,
                drain,
            } => {
                let (_, servers) = self.service(service)?;
                let server = servers.iter_mut().find(|other| other.key == *server)?;
                (server.weight, server.drain) = (0, Some(*drain));
            }
            Change::Clear => self.0.clear(),
            Change::SetSettings { settings } => {
                if settings.conn_reuse_mode > 3 {
                    return None;
                }
                self.2 = Some(*settings);
            }
            Change::AddMark { rule } => {
                if rule.mark == 0 || self.3.contains(rule) {
                    return None;
                }
                self.3.push(rule.clone());
            }
            Change::DeleteMark { rule } => {
                let position = self.3.iter().position(|other| other == rule)?;
                self.3.remove(position);
            }
            Change::ClearMarks => self.3.clear(),
            Change::SetTimeouts { timeouts } => {
                if timeouts.tcp.max(timeouts.tcp_fin).max(timeouts.udp) > 2_678_400 {
                    return None;
                }
                for (own, new) in self
                    .1
                    .iter_mut()
                    .zip([timeouts.tcp, timeouts.tcp_fin, timeouts.udp])
                {
                    *own = if new == 0 { *own } else { Some(new) };
                }
            }
        }
        Some(())
    }

    fn assert_same(&self, model: &Model) {
        assert_eq!(self.0.len(), model.services().size());
        let [tcp, tcp_fin, udp] = self.1;
        let timeouts = Timeouts {
            tcp: tcp.unwrap_or(900),
            tcp_fin: tcp_fin.unwrap_or(120),
            udp: udp.unwrap_or(300),
        };
        assert_eq!(timeouts, model.timeouts());
        assert_eq!(self.2.unwrap_or_default(), model.settings());
        assert_eq!(self.3, **model.marks());
        for (spec, servers) in &self.0 {
            let entry = &model.services()[&spec.key];
            assert_eq!(*spec, entry.spec);
            assert_eq!(entry.servers, servers[..]);
        }
    }
}

/// A real server's address of the service's family.
fn host_beside(service: ServiceKey, host: u8) -> String {
    if service.is_ipv6() {
        format!("2001:db8:1::{host}")
    } else {
        format!("198.51.100.{host}")
    }
}

fn rule(mark: u32, addresses: &[&str], ports: &[&str]) -> MarkRule {
    MarkRule {
        mark,
        protocol: Some(Protocol::Tcp),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

/// Valid changes over so few names that many of them meet.
pub(crate) fn any_change() -> impl Strategy<Value = Change> {
    let key = (1u16..=4).prop_map(|port| match port {
        4 => ServiceKey::Mark { mark: 1, ipv6: false },
        3 => service_key(VIP6, port),
        _ => service_key(VIP, port),
    });
    let flags = btree_set(
        prop_oneof![Just(SchedulerFlag::Fallback), Just(SchedulerFlag::Port)],
        0..=2,
    );
    let persistence = option::of(1u32..3);
    let removal = option::of(prop_oneof![Just(Removal::Drop), Just(Removal::Reset)]);
    let conn_reuse_mode = option::of(0u32..2);
    let spec = (key.clone(), flags, persistence, removal, 0u32..2, conn_reuse_mode).prop_map(
        |(key, flags, persistence, removal, slow_start, conn_reuse_mode)| ServiceSpec {
            persistence: persistence.map(|timeout| Persistence {
                timeout,
                mask: timeout.is_power_of_two().then(|| {
                    if key.is_ipv6() {
                        ClientMask::V6(64)
                    } else {
                        ClientMask::V4([255, 255, 255, 0].into())
                    }
                }),
            }),
            removal,
            slow_start,
            settings: ServiceSettings {
                conn_reuse_mode,
                ..ServiceSettings::default()
            },
            ..service(key, Scheduler::Sh, &flags.into_iter().collect::<Vec<_>>())
        },
    );
    let pair = (key.clone(), 1u8..=4, 0u32..3).prop_map(|(key, host, weight)| {
        let server = ServerSpec {
            upper_threshold: weight * 2,
            lower_threshold: weight,
            ..server(&host_beside(key, host), key.port(), weight)
        };
        (key, server)
    });
    let drain = option::of(0u64..3).prop_map(|deadline| Drain { deadline });
    let settings = (0u32..2, 0u32..5).prop_map(|(sloppy_tcp, conn_reuse_mode)| Settings {
        sloppy_tcp,
        conn_reuse_mode,
        ..Settings::default()
    });
    let rule = (0u32..3).prop_map(|mark| rule(mark, &["192.0.2.0/24"], &["80"]));
    prop_oneof![
        1 => rule.clone().prop_map(|rule| Change::AddMark { rule }),
        1 => rule.prop_map(|rule| Change::DeleteMark { rule }),
        3 => spec.clone().prop_map(|service| Change::AddService { service }),
        1 => spec.prop_map(|service| Change::EditService { service }),
        1 => key.prop_map(|service| Change::DeleteService { service }),
        8 => pair.clone().prop_map(|(service, server)| add_server(service, server)),
        3 => pair.clone().prop_map(|(service, server)| Change::EditServer { service, server }),
        2 => (pair.clone(), drain).prop_map(|((service, server), drain)| {
            Change::DrainServer { service, server: server.key, drain }
        }),
        3 => pair.prop_map(|(service, server)| Change::DeleteServer { service, server: server.key }),
        1 => Just(Change::Clear),
        1 => Just(Change::ClearMarks),
        1 => settings.prop_map(|settings| Change::SetSettings { settings }),
        1 => (0..3u32, 0..3u32, 2_678_399..2_678_402u32)
            .prop_map(|(tcp, tcp_fin, udp)| Change::SetTimeouts { timeouts: Timeouts { tcp, tcp_fin, udp } }),
    ]
}

proptest! {
    #[test]
    fn any_history(history in vec(vec(any_change(), 1..4), 0..60)) {
        let (mut model, mut plain) = (Model::default(), Plain::default());
        for changes in history {
            let before = model.clone();
            let mut next = plain.clone();
            let fits = changes.iter().try_for_each(|change| next.apply(change)).is_some();
            let touched = model.touched(&changes);
            prop_assert_eq!(model.apply(&changes).is_ok(), fits);
            if fits {
                plain = next;
            } else {
                prop_assert_eq!(&model, &before);
            }
            plain.assert_same(&model);
            let keys = before.services().keys().chain(model.services().keys());
            for key in keys.filter(|key| !touched.contains(key)) {
                prop_assert!(Arc::ptr_eq(&before.services()[key], &model.services()[key]));
            }

            let rebuild = model.changes();
            let servers = || model.services().values().flat_map(|entry| &entry.servers);
            let drains = servers().filter(|server| server.drain.is_some()).count();
            let settings = model.setting_changes().count();
            prop_assert_eq!(rebuild.len(), settings + model.services().size() + servers().count() + drains);
            let mut rebuilt = Model::default();
            rebuilt.apply(&rebuild).unwrap();
            prop_assert_eq!(&rebuilt, &model);
        }
    }
}
