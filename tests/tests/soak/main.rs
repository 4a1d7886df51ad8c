//! Operations by chance against a model: changes, kills, cables, cards and floods, under the eyes of clients.
//!
//! After each operation the configuration is the model's, open connections answer from where they were, and new ones
//! go to real servers of the model's; now and then, and in the end, the director's counts are those of its list of
//! connections. `cargo xtask soak` plays for an hour; as a part of all tests it is a fixed number of operations from a
//! fixed seed. `LVS_XDP_SOAK_SEED`, `LVS_XDP_SOAK_OPERATIONS` and `LVS_XDP_SOAK_MINUTES` say otherwise.

mod model;
mod operation;

use std::{
    collections::BTreeMap,
    env,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use fastrand::Rng;
use lvs_xdp::{
    api::{
        client::BlockingClient,
        filter::ConnectionFilter,
        types::{Change, Configuration, Drain, Protocol, ServerKey, ServerState, ServiceKey, Timeouts},
    },
    dataplane::mac_text,
};
use lvs_xdp_tests::{
    ask::{packets, wait_for},
    datagram::{self, Echo},
    family::Family,
    lab::{Lab, LabConfig, real_server_name},
    load::Load,
    report::tell,
    stream::OpenConnection,
};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use self::{
    model::{Model, name},
    operation::{Operation, draw},
};

/// Real servers of the lab.
pub(crate) const SERVERS: usize = 4;
/// Where datagrams are answered.
const ECHO: u16 = 53;
/// Connections that are open at the same time, at the most.
const OPEN: usize = 6;
/// So many operations are a part of all tests.
const OPERATIONS: usize = 150;
const SEED: u64 = 20_261_123;

/// The address of a real server.
pub(crate) fn address(number: usize) -> IpAddr {
    Family::V4.real_server(number)
}

/// The services that there may be: web servers, echo servers, and one that nobody asks.
pub(crate) fn keys() -> [ServiceKey; 3] {
    let vip = Family::V4.vip();
    [
        ServiceKey::new(Protocol::Tcp, vip, 80),
        ServiceKey::new(Protocol::Udp, vip, ECHO),
        ServiceKey::Mark { mark: 7, ipv6: false },
    ]
}

fn from_environment<T: std::str::FromStr>(name: &str) -> Result<Option<T>> {
    let Ok(text) = env::var(name) else {
        return Ok(None);
    };
    let value = text.parse().ok();
    value
        .map(Some)
        .with_context(|| format!("{name}={text} is no number"))
}

#[test]
fn a_director_is_what_the_model_says_whatever_happens() -> Result<()> {
    let seed = from_environment("LVS_XDP_SOAK_SEED")?.unwrap_or(SEED);
    let minutes: Option<u64> = from_environment("LVS_XDP_SOAK_MINUTES")?;
    let operations = from_environment("LVS_XDP_SOAK_OPERATIONS")?;
    let most = match (operations, minutes) {
        (Some(operations), _) => operations,
        (None, Some(_)) => usize::MAX,
        (None, None) => OPERATIONS,
    };
    let end = minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let mut rng = Rng::with_seed(seed);
    let mut soak = Soak::start()?;
    let mut done = 0;
    while done < most && end.is_none_or(|end| Instant::now() < end) {
        let operation = draw(&mut rng, &soak.model);
        done += 1;
        let text = operation.to_string();
        println!("{done}: {text}");
        soak.play(operation)
            .and_then(|()| soak.agree())
            .and_then(|()| {
                if done % 25 == 0 {
                    soak.counts_agree()
                } else {
                    Ok(())
                }
            })
            .with_context(|| {
                format!(
                    "operation {done} of seed {seed}: {text}\nthe agent says:\n{}",
                    soak.lab
                        .agent()
                        .map(lvs_xdp_tests::agent::Agent::log_tail)
                        .unwrap_or_default()
                )
            })?;
    }
    soak.end()
        .with_context(|| format!("after {done} operations of seed {seed}"))?;
    tell(format_args!("{done} operations of seed {seed}"));
    Ok(())
}

struct Soak {
    lab: Lab,
    model: Model,
    open: Vec<OpenConnection>,
    /// SYNs that were sent from anywhere.
    flooded: u64,
    _echoes: Vec<Echo>,
}

impl Soak {
    fn start() -> Result<Self> {
        let lab = Lab::start(LabConfig {
            real_servers: SERVERS,
            ..LabConfig::default()
        })?;
        let echo = |number: usize| {
            let name = real_server_name(number);
            Echo::start(lab.topology().host(&name), &name, ECHO)
        };
        let echoes = (1..=SERVERS).map(echo).collect::<Result<_>>()?;
        let timeouts = Timeouts {
            tcp: 900,
            tcp_fin: 1,
            udp: 2,
        };
        let mut client = BlockingClient::new(lab.agent()?.socket());
        client.change(vec![Change::SetTimeouts { timeouts }])?;
        let model = Model::new(client.configuration()?);
        Ok(Self {
            lab,
            model,
            open: Vec::new(),
            flooded: 0,
            _echoes: echoes,
        })
    }

    fn client(&self) -> Result<BlockingClient> {
        Ok(BlockingClient::new(self.lab.agent()?.socket()))
    }

    fn play(&mut self, operation: Operation) -> Result<()> {
        match operation {
            Operation::Change(changes, next) => {
                self.client()?.change(changes)?;
                self.is_now(next);
            }
            Operation::Apply(next) => {
                self.client()?.configure(&next, false, "a soak".to_owned())?;
                self.is_now(next);
            }
            Operation::KilledInApply(next, after) => self.be_killed_in_apply(next, after)?,
            Operation::Rollback => {
                if let Some(before) = self.model.before().cloned() {
                    self.client()?.rollback(1, false)?;
                    self.is_now(before);
                }
            }
            Operation::Drain(server) => self.drain(server)?,
            Operation::Kill => {
                self.lab.agent_mut()?.kill()?;
                self.clients_are_served()?;
                self.launch()?;
            }
            Operation::Restart => {
                self.lab.agent_mut()?.terminate()?;
                self.launch()?;
            }
            Operation::Unplug(number, time) => {
                let host = real_server_name(number);
                self.lab.topology().set_plugged(&host, "eth0", false)?;
                thread::sleep(time);
                self.lab.topology().set_plugged(&host, "eth0", true)?;
            }
            Operation::Card(number, mac) => {
                self.lab
                    .topology()
                    .set_mac(&real_server_name(number), "eth0", mac)?;
                let text = mac_text(mac);
                self.wait_for_server(number, "its new MAC address", |server| {
                    server.mac.as_deref() == Some(&text)
                })?;
            }
            Operation::Flood(syns) => self.flood(syns)?,
            Operation::Open => {
                if self.open.len() < OPEN && self.model.serves_all(&keys()[0]) {
                    let connection = OpenConnection::new(&self.lab)?;
                    ensure!(
                        self.model.usable(&keys()[0]).contains(&connection.server),
                        "{} has answered",
                        connection.server
                    );
                    self.open.push(connection);
                }
            }
            Operation::Close(index) => {
                if let Some(index) = index.checked_rem(self.open.len()) {
                    self.open.swap_remove(index);
                }
            }
            Operation::Datagram => self.datagram()?,
            Operation::Zero => self.client()?.zero(None)?,
        }
        Ok(())
    }

    /// The configuration is another one: connections of real servers that are gone are nobody's any more.
    fn is_now(&mut self, next: Configuration) {
        self.model.become_this(next);
        let web = self.model.service(&keys()[0]);
        let there: Vec<_> = web.map_or(&[][..], |web| &web.server).iter().map(name).collect();
        self.open.retain(|connection| there.contains(&connection.server));
    }

    fn launch(&mut self) -> Result<()> {
        let config = self.lab.config().agent.clone();
        self.lab.agent_mut()?.launch(&config)
    }

    /// What holds after it is the one or the other.
    fn be_killed_in_apply(&mut self, next: Configuration, after: Duration) -> Result<()> {
        let mut client = self.client()?;
        let wanted = next.clone();
        let asked = thread::spawn(move || client.configure(&wanted, false, "a soak".to_owned()));
        thread::sleep(after);
        self.lab.agent_mut()?.signal(Signal::SIGKILL)?;
        // Whether it was answered says nothing.
        let _ = asked.join().expect("a client");
        self.lab.agent_mut()?.kill()?;
        self.launch()?;
        let found = self.client()?.configuration()?;
        if found == next {
            self.is_now(next);
        }
        Ok(())
    }

    fn drain(&mut self, server: ServerKey) -> Result<()> {
        let web = keys()[0];
        let is_gone = |soak: &Self| -> Result<bool> {
            let service = soak.client()?.service(web)?;
            Ok(service.servers.iter().all(|other| other.spec.key != server))
        };
        let drain = Drain::default();
        self.client()?.change(vec![Change::DrainServer {
            service: web,
            server,
            drain,
        }])?;
        let mut next = self.model.now().clone();
        for service in next.service.iter_mut().filter(|service| service.spec.key == web) {
            service.server.retain(|other| other.key != server);
        }
        // Half-open ones of a flood would be waited for.
        let filter = ConnectionFilter {
            server: Some(server.address),
            state: Some("SYN_RECV".parse().map_err(anyhow::Error::msg)?),
            ..ConnectionFilter::default()
        };
        self.client()?.flush_connections(&filter)?;
        self.is_now(next);
        wait_for("the drained server's end", || is_gone(self))?;
        // The versions between are the agent's own.
        self.model.forget();
        Ok(())
    }

    /// Waits until a real server is so in every service that has it.
    fn wait_for_server(
        &self,
        number: usize,
        what: &str,
        is_so: impl Fn(&lvs_xdp::api::types::Server) -> bool,
    ) -> Result<()> {
        wait_for(&format!("{}: {what}", real_server_name(number)), || {
            let services = self.client()?.services()?;
            let mut servers = services.iter().flat_map(|service| &service.servers);
            Ok(servers.all(|server| server.spec.key.address != address(number) || is_so(server)))
        })?;
        Ok(())
    }

    /// SYNs whose answers nobody acknowledges.
    fn flood(&mut self, syns: u32) -> Result<()> {
        let IpAddr::V4(vip) = self.lab.vip() else {
            anyhow::bail!("the lab speaks IPv4");
        };
        let mut rng = Rng::with_seed(u64::from(syns));
        self.lab.client().enter(|| {
            // IPPROTO_RAW: with a header of one's own.
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(255.into()))?;
            for _ in 0..syns {
                let [.., second, third, fourth] = rng.u32(..).to_be_bytes();
                let source = [198, 18 + second % 2, third, fourth];
                let mut packet = Vec::new();
                PacketBuilder::ipv4(source, vip.octets(), 64)
                    .tcp(rng.u16(1024..), 80, rng.u32(..), 64_240)
                    .syn()
                    .write(&mut packet, &[])?;
                socket.send_to(&packet, &SocketAddr::from((vip, 0)).into())?;
            }
            anyhow::Ok(())
        })??;
        self.flooded += u64::from(syns);
        Ok(())
    }

    fn datagram(&self) -> Result<()> {
        let key = keys()[1];
        if !self.model.serves_all(&key) {
            return Ok(());
        }
        let socket = datagram::connected(&self.lab, ECHO)?;
        // Nobody sends a datagram again that was lost while a card or a cable was changed.
        let answer = (0..3).find_map(|_| datagram::ask(&socket, b"").ok());
        let answer = String::from_utf8(answer.context("no answer to three datagrams")?)?;
        let usable = self.model.usable(&key);
        ensure!(usable.contains(&answer), "{answer} has answered, of {usable:?}");
        Ok(())
    }

    /// Open connections answer from where they did, and new ones are answered as the model says.
    fn clients_are_served(&mut self) -> Result<()> {
        for connection in &mut self.open {
            let answer =
                (connection.ask()).with_context(|| format!("an open connection to {}", connection.server))?;
            ensure!(
                answer == connection.server,
                "{answer} in place of {}",
                connection.server
            );
        }
        let web = keys()[0];
        if !self.model.serves_all(&web) {
            return Ok(());
        }
        let usable = self.model.usable(&web);
        let report = Load::sequential(self.lab.vip(), 2).run(self.lab.client())?;
        ensure!(
            report.failures().is_empty(),
            "{:?}, of {usable:?}",
            report.failures()
        );
        for answer in report.answers() {
            ensure!(usable.contains(answer), "{answer} has answered, of {usable:?}");
        }
        Ok(())
    }

    fn agree(&mut self) -> Result<()> {
        let found = self.client()?.configuration()?;
        ensure!(
            found == *self.model.now(),
            "the configuration is\n{found:#?}\nin place of\n{:#?}",
            self.model.now()
        );
        for number in 1..=SERVERS {
            self.wait_for_server(number, "a way to it", |server| server.state == ServerState::Ready)?;
        }
        self.clients_are_served()
    }

    /// The numbers of connections are those of the list, for every real server.
    fn counts_agree(&self) -> Result<()> {
        let mut last = (BTreeMap::new(), BTreeMap::new());
        let agreed = wait_for("counts that agree", || {
            let mut listed = BTreeMap::new();
            for service in self.client()?.services()? {
                for server in &service.servers {
                    listed.insert((service.spec.key, server.spec.key.address), (0, 0));
                }
            }
            let mut counted = listed.clone();
            self.client()?.each_connection(|connection| {
                let (Some(protocol), address) = (connection.protocol, connection.destination.ip()) else {
                    return;
                };
                let vip = connection.virtual_address;
                let key = (ServiceKey::new(protocol, vip.ip(), vip.port()), address);
                if let Some((active, inactive)) = listed.get_mut(&key) {
                    let is_active = matches!(connection.state.as_str(), "SYN_RECV" | "ESTABLISHED");
                    *(if is_active { active } else { inactive }) += 1;
                }
            })?;
            for service in self.client()?.services()? {
                for server in &service.servers {
                    let key = (service.spec.key, server.spec.key.address);
                    counted.insert(key, (server.active, server.inactive));
                }
            }
            let is_so = listed == counted;
            last = (listed, counted);
            Ok(is_so)
        });
        agreed.with_context(|| format!("listed {:#?}\ncounted {:#?}", last.0, last.1))?;
        Ok(())
    }

    /// All clients leave; nothing remains, and nothing went wrong inside.
    fn end(mut self) -> Result<()> {
        self.counts_agree()?;
        self.open.clear();
        self.client()?.flush_connections(&ConnectionFilter::default())?;
        wait_for("the last connection's end", || {
            let services = self.client()?.services()?;
            let mut servers = services.iter().flat_map(|service| &service.servers);
            Ok(servers.all(|server| (server.active, server.inactive, server.persistent) == (0, 0, 0)))
        })?;
        self.counts_agree()?;
        ensure!(
            packets(&self.lab, "internal")? == 0,
            "packets for an internal reason"
        );
        let begun = packets(&self.lab, "new-connection")?;
        println!("{begun} connections, {} SYNs from anywhere", self.flooded);
        let log = self.lab.agent()?.log()?;
        let bad = log
            .lines()
            .find(|line| line.contains("panicked") || line.contains(" ERROR "));
        ensure!(bad.is_none(), "the agent's log says: {bad:?}");
        Ok(())
    }
}
