use proptest::{
    collection::{btree_set, vec},
    prelude::*,
};

use super::*;
use crate::api::types::{Protocol, SchedulerFlag};

fn service_key(address: &str, port: u16) -> ServiceKey {
    ServiceKey {
        protocol: Protocol::Tcp,
        address: address.parse().unwrap(),
        port,
    }
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
        ("192.0.2.1", 0, "port 0"),
        ("0.0.0.0", 80, "unspecified"),
        ("239.1.2.3", 80, "multicast"),
        ("255.255.255.255", 80, "broadcast"),
        ("2001:db8::1", 80, "IPv6"),
        ("::ffff:192.0.2.1", 80, "IPv6"),
    ] {
        refused(&model, add(address, port), ErrorCode::Invalid, words);
    }
    for scheduler in [Scheduler::Rr, Scheduler::Wrr, Scheduler::Fo, Scheduler::Dh] {
        let spec = service(service_key(VIP, 80), scheduler, &[SchedulerFlag::Port]);
        let edit = Change::EditService { service: spec };
        refused(
            &model,
            edit,
            ErrorCode::Invalid,
            &format!("scheduler {scheduler} takes no flags"),
        );
    }
}

#[test]
fn unfit_servers() {
    let (mut model, key) = with_service();
    for (address, port, weight, words) in [
        ("198.51.100.1", 81, 1, "use the service's port 80"),
        ("198.51.100.1", 0, 1, "use the service's port 80"),
        ("198.51.100.1", 80, MAX_WEIGHT + 1, "from 0 to 2147483647"),
        ("0.0.0.0", 80, 1, "unspecified"),
        ("224.0.0.1", 80, 1, "multicast"),
        ("255.255.255.255", 80, 1, "broadcast"),
        ("2001:db8::1", 80, 1, "family"),
        (VIP, 80, 1, "own address"),
    ] {
        refused(
            &model,
            add_server(key, server(address, port, weight)),
            ErrorCode::Invalid,
            words,
        );
    }
    model
        .apply(&[add_server(key, server("198.51.100.1", 80, MAX_WEIGHT))])
        .unwrap();
    let edit = Change::EditServer {
        service: key,
        server: server("198.51.100.1", 80, MAX_WEIGHT + 1),
    };
    refused(&model, edit, ErrorCode::Invalid, "from 0 to 2147483647");
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

/// The rules of order and replacement once more, as plainly as can be; it trusts its input to be valid.
#[derive(Default, Clone)]
struct Plain(Vec<(ServiceSpec, Vec<ServerSpec>)>, [Option<u32>; 3]);

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
            Change::Clear => self.0.clear(),
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
        assert_eq!(self.0.len(), model.services().len());
        let [tcp, tcp_fin, udp] = self.1;
        let timeouts = Timeouts {
            tcp: tcp.unwrap_or(900),
            tcp_fin: tcp_fin.unwrap_or(120),
            udp: udp.unwrap_or(300),
        };
        assert_eq!(timeouts, model.timeouts());
        for (spec, servers) in &self.0 {
            let entry = &model.services()[&spec.key];
            assert_eq!((spec, servers), (&entry.spec, &entry.servers));
        }
    }
}

/// Valid changes over so few names that many of them meet.
pub(crate) fn any_change() -> impl Strategy<Value = Change> {
    let key = (1u16..=3).prop_map(|port| service_key(VIP, port));
    let flags = btree_set(
        prop_oneof![Just(SchedulerFlag::Fallback), Just(SchedulerFlag::Port)],
        0..=2,
    );
    let spec = (key.clone(), flags)
        .prop_map(|(key, flags)| service(key, Scheduler::Sh, &flags.into_iter().collect::<Vec<_>>()));
    let pair = (key.clone(), 1u8..=4, 0u32..3)
        .prop_map(|(key, host, weight)| (key, server(&format!("198.51.100.{host}"), key.port, weight)));
    prop_oneof![
        3 => spec.clone().prop_map(|service| Change::AddService { service }),
        1 => spec.prop_map(|service| Change::EditService { service }),
        1 => key.prop_map(|service| Change::DeleteService { service }),
        8 => pair.clone().prop_map(|(service, server)| add_server(service, server)),
        3 => pair.clone().prop_map(|(service, server)| Change::EditServer { service, server }),
        3 => pair.prop_map(|(service, server)| Change::DeleteServer { service, server: server.key }),
        1 => Just(Change::Clear),
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
            let servers: usize = model.services().values().map(|entry| entry.servers.len()).sum();
            let settings = model.setting_changes().count();
            prop_assert_eq!(rebuild.len(), settings + model.services().len() + servers);
            let mut rebuilt = Model::default();
            rebuilt.apply(&rebuild).unwrap();
            prop_assert_eq!(&rebuilt, &model);
        }
    }
}
