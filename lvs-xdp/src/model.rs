//! The desired state: which services and real servers there shall be, and which changes make sense.
//!
//! Pure: no I/O and no clock. What is compiled into the maps, what the journal keeps and what is listed
//! all come from here, and the rules for a change (those of IPVS, narrowed to direct routing and tunnels) are here only.

mod checks;
mod marks;
mod servers;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use rpds::RedBlackTreeMapSync;

pub use self::servers::Servers;
use crate::api::types::{
    ApiError, Change, ClientMask, ErrorCode, Fault, MarkRule, Persistence, Protocol, Scheduler, ServerKey,
    ServerSpec, ServiceKey, ServiceSpec, Setting, Settings, Timeouts, Tunnel,
};

/// The most real servers a service can have.
pub const MAX_SERVERS: usize = 4096;

/// The highest weight, IPVS's (it keeps weights as a signed 32-bit number).
pub const MAX_WEIGHT: u32 = i32::MAX.unsigned_abs();

/// The highest threshold, ipvsadm's.
pub const MAX_THRESHOLD: u32 = i32::MAX.unsigned_abs();

/// The longest slow start, in seconds: a day.
pub const MAX_SLOW_START: u32 = 86_400;

/// A virtual service and its real servers, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The service's settings; its flags are sorted, without repetition.
    pub spec: ServiceSpec,
    /// The real servers in the schedulers' order, which is IPVS's: the one added last first.
    pub servers: Servers,
}

/// The longest time-out, of connections and of persistence, in seconds (`MAX_TIMEOUT` of ipvsadm).
pub const MAX_TIMEOUT: u32 = 86_400 * 31;

/// Services by their identity, in its order. Clones share what they have in common, whatever their size.
pub type Services = RedBlackTreeMapSync<ServiceKey, Arc<ServiceEntry>>;

/// The whole desired state.
///
/// A clone costs nothing and shares its services, so a change can be tried on a copy that replaces the live model only
/// once everything else has succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    services: Services,
    timeouts: Timeouts,
    settings: Settings,
    /// In the order in which they were added.
    marks: Arc<Vec<MarkRule>>,
}

/// What the services touched by a list of changes were before it; `None` did not exist.
type Undo = BTreeMap<ServiceKey, Option<Arc<ServiceEntry>>>;

impl Model {
    /// Every service by its identity.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The same with other entries in the place of some.
    pub fn with_entries(&self, entries: impl IntoIterator<Item = ServiceEntry>) -> Self {
        let mut model = self.clone();
        for entry in entries {
            model.services.insert_mut(entry.spec.key, Arc::new(entry));
        }
        model
    }

    /// Applies `changes` in their order, all or none.
    ///
    /// `require_on_link` has no meaning here: whether an address is on-link is known to the neighbour table,
    /// not to the desired state.
    ///
    /// # Errors
    /// The first change that is refused decides; the model is then as it was before. An object that should
    /// (not) exist is reported before unfit settings are, as the kernel does; but a weight or threshold that
    /// is out of range before a real server that should (not) exist (`ip_vs_add_dest`, `ip_vs_edit_dest`). Of
    /// several changes [`ApiError::faults`] has all that are refused.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), ApiError> {
        let mut undo = Undo::new();
        let before = (self.timeouts, self.settings, Arc::clone(&self.marks));
        let mut result = changes
            .iter()
            .try_for_each(|change| self.apply_one(change, &mut undo));
        if let Err(error) = &mut result {
            (self.timeouts, self.settings, self.marks) = before;
            for (key, entry) in undo {
                match entry {
                    Some(entry) => self.services.insert_mut(key, entry),
                    None => drop(self.services.remove_mut(&key)),
                }
            }
            if changes.len() > 1 {
                error.faults = self.faults(changes);
            }
        }
        result
    }

    /// Every change that makes no sense, where those are left out.
    pub fn faults(&self, changes: &[Change]) -> Vec<Fault> {
        let mut model = self.clone();
        let faults = (0..).zip(changes).filter_map(|(index, change)| {
            // One that fails changes nothing.
            let ApiError { code, message, .. } = model.apply_one(change, &mut Undo::new()).err()?;
            Some(Fault { index, code, message })
        });
        faults.collect()
    }

    /// The services that `changes` will name or remove, seen from the model before them.
    ///
    /// All others keep their very [`ServiceEntry`], so whoever derives something from the model needs to look
    /// at these only.
    pub fn touched(&self, changes: &[Change]) -> BTreeSet<ServiceKey> {
        let mut touched = BTreeSet::new();
        for change in changes {
            match change {
                Change::AddService { service } | Change::EditService { service } => {
                    touched.insert(service.key);
                }
                Change::DeleteService { service }
                | Change::AddServer { service, .. }
                | Change::EditServer { service, .. }
                | Change::DrainServer { service, .. }
                | Change::DeleteServer { service, .. } => {
                    touched.insert(*service);
                }
                Change::Clear | Change::SetSettings { .. } => touched.extend(self.services.keys()),
                Change::SetTimeouts { .. }
                | Change::AddMark { .. }
                | Change::DeleteMark { .. }
                | Change::ClearMarks => {}
            }
        }
        touched
    }

    /// The same model with no services but these.
    pub fn part(&self, services: &BTreeSet<ServiceKey>) -> Self {
        let entry = |key: &ServiceKey| Some((*key, Arc::clone(self.services.get(key)?)));
        Self {
            services: services.iter().filter_map(entry).collect(),
            marks: Arc::clone(&self.marks),
            timeouts: self.timeouts,
            settings: self.settings,
        }
    }

    /// The services of whose real servers `changes` add, edit or delete one. IPVS tells the scheduler of
    /// each such change, also of one that leaves everything as it was.
    ///
    /// What is made anew behind a [`Change::Clear`] is not among them: such a list replaces the table, and a service
    /// that is the same before and after it does not notice.
    pub fn told<'a>(changes: impl IntoIterator<Item = &'a Change>) -> BTreeSet<ServiceKey> {
        let kept = changes.into_iter().take_while(|change| **change != Change::Clear);
        let told = kept.filter_map(|change| match change {
            Change::AddServer { service, .. }
            | Change::EditServer { service, .. }
            | Change::DrainServer { service, .. }
            | Change::DeleteServer { service, .. } => Some(*service),
            _ => None,
        });
        told.collect()
    }

    /// The shortest list of changes that makes this model out of an empty one.
    pub fn changes(&self) -> Vec<Change> {
        let services = self.services.values().flat_map(|entry| entry.changes());
        self.setting_changes().chain(services).collect()
    }

    /// The changes that make what is no service's: time-outs, settings and rules of marks.
    pub fn setting_changes(&self) -> impl Iterator<Item = Change> {
        let Self {
            timeouts,
            settings,
            marks,
            ..
        } = self;
        let (timeouts, settings) = (*timeouts, *settings);
        let timeouts = (timeouts != Timeouts::default()).then_some(Change::SetTimeouts { timeouts });
        let settings = (settings != Settings::default()).then_some(Change::SetSettings { settings });
        let marks = marks.iter().cloned().map(|rule| Change::AddMark { rule });
        timeouts.into_iter().chain(settings).chain(marks)
    }

    /// The time-outs of connections.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// The settings of the whole director.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// The rules that give packets marks, in the order in which they are tried.
    pub fn marks(&self) -> &Arc<Vec<MarkRule>> {
        &self.marks
    }

    fn set_timeouts(&mut self, wanted: Timeouts) -> Result<(), ApiError> {
        let Timeouts { tcp, tcp_fin, udp } = wanted;
        let own = &mut self.timeouts;
        for (seconds, own) in [
            (tcp, &mut own.tcp),
            (tcp_fin, &mut own.tcp_fin),
            (udp, &mut own.udp),
        ] {
            if seconds > MAX_TIMEOUT {
                return Err(ApiError::new(
                    ErrorCode::Invalid,
                    format!("a time-out of {seconds} s is too long: {MAX_TIMEOUT} s (31 days) are the most"),
                ));
            }
            if seconds > 0 {
                *own = seconds;
            }
        }
        Ok(())
    }

    fn apply_one(&mut self, change: &Change, undo: &mut Undo) -> Result<(), ApiError> {
        match change {
            Change::AddService { service } => {
                if self.services.contains_key(&service.key) {
                    return Err(ApiError::new(
                        ErrorCode::ServiceExists,
                        format!(
                            "service {} exists already: edit it, or delete it first",
                            service.key
                        ),
                    ));
                }
                let spec = checked_service(service, &Servers::default())?;
                undo.entry(spec.key).or_insert(None);
                self.services.insert_mut(
                    spec.key,
                    Arc::new(ServiceEntry {
                        spec,
                        servers: Servers::default(),
                    }),
                );
            }
            Change::SetTimeouts { timeouts } => self.set_timeouts(*timeouts)?,
            Change::EditService { service } => {
                let entry = self.existing(&service.key)?;
                let spec = checked_service(service, &entry.servers)?;
                change_entry(entry, undo).spec = spec;
            }
            Change::DeleteService { service } => {
                let entry = Arc::clone(self.existing(service)?);
                self.services.remove_mut(service);
                undo.entry(*service).or_insert(Some(entry));
            }
            Change::AddServer {
                service,
                server,
                require_on_link: _,
            } => {
                let entry = self.defined(service)?;
                check_ranges(server)?;
                if entry.servers.contains(&server.key) {
                    return Err(ApiError::new(
                        ErrorCode::ServerExists,
                        format!(
                            "real server {} exists already in service {service}: edit it, or delete it first",
                            server.key
                        ),
                    ));
                }
                check_server(service, server)?;
                checks::check_added(entry, server)?;
                if entry.servers.len() >= MAX_SERVERS {
                    return Err(ApiError::new(
                        ErrorCode::Full,
                        format!(
                            "service {service} has {MAX_SERVERS} real servers, the most a service can have: \
                             delete one, or put further ones into another service"
                        ),
                    ));
                }
                change_entry(entry, undo).servers.add(undrained(server));
            }
            Change::EditServer { service, server } => {
                let entry = self.defined(service)?;
                check_ranges(server)?;
                entry.check_existing(&server.key)?;
                check_server(service, server)?;
                checks::check_added(entry, server)?;
                if let Some(own) = change_entry(entry, undo).servers.get_mut(&server.key) {
                    *own = undrained(server);
                }
            }
            Change::DrainServer {
                service,
                server,
                drain,
            } => {
                let entry = self.defined(service)?;
                entry.check_existing(server)?;
                if let Some(own) = change_entry(entry, undo).servers.get_mut(server) {
                    own.weight = 0;
                    own.drain = Some(*drain);
                }
            }
            Change::SetSettings { settings } => {
                let mut settings = *settings;
                for setting in Setting::ALL {
                    check_setting(setting, *setting.of(&mut settings))?;
                }
                self.settings = settings;
            }
            Change::AddMark { rule } => marks::add(Arc::make_mut(&mut self.marks), rule)?,
            Change::DeleteMark { rule } => marks::delete(Arc::make_mut(&mut self.marks), rule)?,
            Change::ClearMarks => self.marks = Arc::default(),
            Change::DeleteServer { service, server } => {
                let entry = self.defined(service)?;
                entry.check_existing(server)?;
                change_entry(entry, undo).servers.remove(server);
            }
            Change::Clear => {
                for (key, entry) in &std::mem::take(&mut self.services) {
                    undo.entry(*key).or_insert_with(|| Some(Arc::clone(entry)));
                }
            }
        }
        Ok(())
    }

    /// The service itself is what the change is about.
    fn existing(&mut self, key: &ServiceKey) -> Result<&mut Arc<ServiceEntry>, ApiError> {
        self.services.get_mut(key).ok_or_else(|| no_such_service(key))
    }

    /// The change is about a server of the service; IPVS tells this case from the other.
    fn defined(&mut self, key: &ServiceKey) -> Result<&mut Arc<ServiceEntry>, ApiError> {
        self.services.get_mut(key).ok_or_else(|| {
            ApiError::new(
                ErrorCode::ServiceNotDefined,
                format!("service {key} is not defined: add the service before its real servers"),
            )
        })
    }
}

impl ServiceEntry {
    /// The shortest list of changes that makes this service where it does not exist.
    pub fn changes(&self) -> impl Iterator<Item = Change> {
        // Each added server goes to the head, so the tail must be added first.
        self.spec.added(self.servers.iter().rev())
    }

    /// The fallback as a destination of this service.
    pub fn fallback(&self) -> Option<ServerSpec> {
        let fallback = self.spec.fallback.as_ref()?;
        let key = ServerKey {
            address: fallback.address,
            port: self.spec.key.port(),
        };
        Some(ServerSpec {
            method: fallback.method,
            ..ServerSpec::new(key, 1)
        })
    }

    /// Every destination that there may be, the fallback last.
    pub fn destinations(&self) -> impl Iterator<Item = Cow<'_, ServerSpec>> {
        let servers = self.servers.iter().map(Cow::Borrowed);
        servers.chain(self.fallback().map(Cow::Owned))
    }

    fn check_existing(&self, key: &ServerKey) -> Result<(), ApiError> {
        if self.servers.contains(key) {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::NoSuchServer,
            format!(
                "there is no real server {key} in service {}: list the service to see which there are",
                self.spec.key
            ),
        ))
    }
}

impl ServiceSpec {
    /// The changes that make this service with these real servers, in the order of adding, where it does not exist.
    pub fn added<'a>(&self, servers: impl Iterator<Item = &'a ServerSpec>) -> impl Iterator<Item = Change> {
        let service = self.key;
        std::iter::once(Change::AddService {
            service: self.clone(),
        })
        .chain(servers.flat_map(move |server| server.added(service)))
    }
}

impl ServerSpec {
    /// The changes that make this real server where it does not exist.
    pub fn added(&self, service: ServiceKey) -> impl Iterator<Item = Change> + use<> {
        let add = Change::AddServer {
            service,
            server: undrained(self),
            require_on_link: false,
        };
        let server = self.key;
        let drain = self.drain.map(|drain| Change::DrainServer {
            service,
            server,
            drain,
        });
        std::iter::once(add).chain(drain)
    }
}

/// Makes `entry` writable, and remembers what it was before the first change of the list.
///
/// Only the first change copies the entry: the later ones find a copy that nobody else has.
fn change_entry<'a>(entry: &'a mut Arc<ServiceEntry>, undo: &mut Undo) -> &'a mut ServiceEntry {
    undo.entry(entry.spec.key)
        .or_insert_with(|| Some(Arc::clone(entry)));
    Arc::make_mut(entry)
}

/// What is answered where there should be a service.
pub fn no_such_service(key: &ServiceKey) -> ApiError {
    ApiError::new(
        ErrorCode::NoSuchService,
        format!("there is no service {key}: list the services to see which there are"),
    )
}

fn invalid(message: String) -> ApiError {
    ApiError::new(ErrorCode::Invalid, message)
}

/// The server as it is kept: only [`Change::DrainServer`] drains it.
fn undrained(spec: &ServerSpec) -> ServerSpec {
    ServerSpec {
        drain: None,
        ..spec.clone()
    }
}

/// The settings as they are kept: valid, with their flags in order, and without a mask that masks nothing.
fn checked_service(spec: &ServiceSpec, servers: &Servers) -> Result<ServiceSpec, ApiError> {
    let ServiceSpec {
        key,
        scheduler,
        flags: _,
        persistence,
        one_packet,
        stateless,
        removal: _,
        slow_start,
        settings,
        check: _,
        quorum: _,
        fallback: _,
    } = spec;
    match *key {
        // As with IPVS, which addresses make sense is left to whoever asks: see `objection`.
        ServiceKey::Endpoint { address, .. } => check_form("virtual", address)?,
        ServiceKey::Mark { mark, .. } => marks::check_mark(mark)?,
    }
    if matches!(key, ServiceKey::Endpoint { port: 0, .. }) && persistence.is_none() {
        return Err(invalid(format!(
            "service {key}: port 0 stands for all ports and takes a persistent service: make it persistent, or \
             use a port from 1 to 65535"
        )));
    }
    if *one_packet && key.protocol().is_some_and(|protocol| protocol != Protocol::Udp) {
        return Err(invalid(format!(
            "service {key}: one-packet scheduling is for UDP only: leave it out"
        )));
    }
    if *stateless {
        check_stateless(key, *scheduler, persistence.is_some(), *one_packet)?;
    }
    if *slow_start > MAX_SLOW_START {
        return Err(invalid(format!(
            "service {key}: a slow start of {slow_start} s is too long: {MAX_SLOW_START} s (a day) are the most"
        )));
    }
    checks::check_service(spec, servers)?;
    checks::check_fallback(spec, servers)?;
    let mut settings = *settings;
    for setting in Setting::ALL {
        if let Some(value) = *setting.of_service(&mut settings) {
            check_setting(setting, value)?;
        }
    }
    let mut spec = spec.clone();
    spec.persistence = persistence
        .map(|persistence| checked_persistence(key, persistence))
        .transpose()?;
    spec.flags.sort_unstable();
    spec.flags.dedup();
    Ok(spec)
}

/// Without connections there is nothing but the ring of a hash scheduler to go by.
fn check_stateless(
    key: &ServiceKey,
    scheduler: Scheduler,
    is_persistent: bool,
    is_one_packet: bool,
) -> Result<(), ApiError> {
    if !matches!(scheduler, Scheduler::Sh | Scheduler::Dh | Scheduler::Mh) {
        return Err(invalid(format!(
            "service {key}: a stateless service goes by its scheduler's ring, which {scheduler} has none: use mh, sh or dh"
        )));
    }
    let other = match (is_persistent, is_one_packet) {
        (true, _) => "persistence",
        (_, true) => "one-packet scheduling",
        _ => return Ok(()),
    };
    Err(invalid(format!(
        "service {key}: a stateless service remembers no clients and takes no {other}: leave one of the two out"
    )))
}

fn checked_persistence(key: &ServiceKey, persistence: Persistence) -> Result<Persistence, ApiError> {
    let Persistence { timeout, mask } = persistence;
    if !(1..=MAX_TIMEOUT).contains(&timeout) {
        return Err(invalid(format!(
            "service {key}: a persistence of {timeout} s is out of range: use 1 to {MAX_TIMEOUT} s (31 days)"
        )));
    }
    let mask = match (mask, key.is_ipv6()) {
        (None, _) => None,
        (Some(ClientMask::V4(mask)), false) => (!mask.is_broadcast()).then_some(ClientMask::V4(mask)),
        (Some(ClientMask::V6(length @ 1..=128)), true) => (length < 128).then_some(ClientMask::V6(length)),
        (Some(mask), false) => {
            return Err(invalid(format!(
                "service {key}: {mask} is no mask for IPv4 clients: use a netmask such as 255.255.255.0"
            )));
        }
        (Some(mask), true) => {
            return Err(invalid(format!(
                "service {key}: {mask} is no mask for IPv6 clients: use a prefix length from 1 to 128"
            )));
        }
    };
    Ok(Persistence { timeout, mask })
}

fn check_setting(setting: Setting, value: u32) -> Result<(), ApiError> {
    let most = setting.most();
    if value > most {
        return Err(invalid(format!(
            "{setting} cannot be {value}: use a value from 0 to {most}"
        )));
    }
    Ok(())
}

/// What the kernel answers with ERANGE.
fn check_ranges(spec: &ServerSpec) -> Result<(), ApiError> {
    let ServerSpec {
        key,
        weight,
        upper_threshold: upper,
        lower_threshold: lower,
        ..
    } = spec;
    let out_of_range = |message| Err(ApiError::new(ErrorCode::OutOfRange, message));
    if *weight > MAX_WEIGHT {
        return out_of_range(format!(
            "real server {key}: weight {weight} is too high: use a weight from 0 to {MAX_WEIGHT}"
        ));
    }
    if *upper.max(lower) > MAX_THRESHOLD {
        return out_of_range(format!(
            "real server {key}: a threshold of {} is too high: use one from 0 to {MAX_THRESHOLD}",
            upper.max(lower)
        ));
    }
    // Also where there is no upper one, as in the kernel.
    if lower > upper {
        return out_of_range(format!(
            "real server {key}: the lower threshold {lower} is above the upper one, {upper}: use one from 0 to {upper}"
        ));
    }
    Ok(())
}

fn check_server(service: &ServiceKey, spec: &ServerSpec) -> Result<(), ApiError> {
    let ServerSpec { key, method, .. } = spec;
    let is_tunnel = method.tunnel().is_some();
    if !is_tunnel && key.address.is_ipv6() != service.is_ipv6() {
        return Err(invalid(format!(
            "real server {key}: service {service} has another address family: use an address of the same one, or \
             a tunnel"
        )));
    }
    check_address("real server's", key.address)?;
    // The packet itself does not change, so the real server sees the port the client used. In a mark's service,
    // which has many ports, it is a part of the server's name and no more.
    if matches!(service, ServiceKey::Endpoint { port, .. } if *port != key.port) {
        let what = if is_tunnel { "a tunnel" } else { "direct routing" };
        return Err(invalid(format!(
            "real server {key}: {what} cannot change the port: use the service's port {}",
            service.port()
        )));
    }
    if method.tunnel().and_then(Tunnel::port) == Some(0) {
        return Err(invalid(format!(
            "real server {key}: its tunnel cannot go to port 0: use the port on which it listens, 1 to 65535"
        )));
    }
    Ok(())
}

/// Why a service makes no sense although the model, as IPVS, takes it: no host can have its address, or its
/// scheduler has no flags. It never gets a packet, or does without the flags.
pub fn objection(spec: &ServiceSpec) -> Option<String> {
    let ServiceSpec {
        key,
        scheduler,
        flags,
        ..
    } = spec;
    if let ServiceKey::Endpoint { address, .. } = key
        && let Err(error) = check_address("virtual", *address)
    {
        return Some(error.message);
    }
    let has_no_flags = !matches!(scheduler, Scheduler::Sh | Scheduler::Mh);
    (has_no_flags && !flags.is_empty()).then(|| {
        format!("service {key}: scheduler {scheduler} takes no flags: use sh or mh, or leave the flags out")
    })
}

/// Whether it can be the address of one host, on any segment.
pub fn is_host_address(address: IpAddr) -> bool {
    check_address("", address).is_ok()
}

/// Refuses what can be no host's address, or not one host's alone.
fn check_address(whose: &str, address: IpAddr) -> Result<(), ApiError> {
    check_form(whose, address)?;
    let (kind, instead) = match address {
        _ if address.is_unspecified() => ("unspecified", "a unicast address"),
        _ if address.is_multicast() => ("multicast", "a unicast address"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => ("broadcast", "a unicast address"),
        // Another host on each segment; and routers forward nothing to or from one (RFC 4291, 2.5.6).
        IpAddr::V6(v6) if v6.is_unicast_link_local() => ("link-local", "a global or unique local address"),
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(()),
    };
    Err(invalid(format!(
        "the {whose} address {address} is {kind}: use {instead}"
    )))
}

/// The maps keep IPv4 addresses in IPv6's form, so one that is written so would be taken for the IPv4 address.
fn check_form(whose: &str, address: IpAddr) -> Result<(), ApiError> {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(invalid(format!(
            "the {whose} address {address} is an IPv4 address in IPv6's form: use the IPv4 address"
        ))),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
