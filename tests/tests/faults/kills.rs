//! The agent is killed at each point of its work, in the middle of a change and in the middle of its start.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    os::unix::process::ExitStatusExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp::dataplane::{mac_text, trial::Trials};
use lvs_xdp_tests::{
    agent::{Agent, AgentConfig, XdpMode, find_binary},
    frame::{Frame, tcp},
    lab::VIP,
    netns::Netns,
    process::Process,
    trial::mac_of,
};

use crate::tables::{FRAMES, PORTS, Shares, TABLES, file, followed, note, servers};

/// The variable by which a debug build is told where to kill itself, see `lvs-xdp/src/crash.rs`.
const CRASH: &str = "LVS_XDP_CRASH";
/// Every so manieth point is tried: an agent starts in half a second. `points` tries them all, within one process.
const STRIDE: usize = 23;
/// How long a killed agent may take to be gone.
const LIMIT: Duration = Duration::from_secs(10);

/// One director without real servers: their neighbour entries are permanent, and frames are only tried.
struct Director {
    agent: Agent,
    files: [tempfile::NamedTempFile; 2],
    /// What `export` says when one of the tables is live.
    exported: [String; 2],
    clients: u32,
}

fn config() -> AgentConfig {
    AgentConfig {
        xdp_mode: XdpMode::Generic,
        ..AgentConfig::default()
    }
}

impl Director {
    /// The last of the two tables is live.
    fn start() -> Result<Self> {
        let netns = Netns::new("crash")?;
        netns.ip("link add eth0 type veth peer name eth1")?;
        netns.ip("link set eth0 up")?;
        netns.ip("link set eth1 up")?;
        netns.ip("address add 192.168.2.200/24 dev eth0")?;
        netns.ip(&format!("address add {VIP}/32 dev eth0"))?;
        for server in servers() {
            let mac = mac_text(mac_of(server));
            netns.ip(&format!(
                "neighbour add {server} lladdr {mac} dev eth0 nud permanent"
            ))?;
        }
        let agent = Agent::start(&find_binary()?, &netns, &["eth0"], &config())?;
        let mut files = Vec::new();
        let mut exported = Vec::new();
        for (number, services) in TABLES.into_iter().enumerate() {
            let written = tempfile::NamedTempFile::new()?;
            std::fs::write(written.path(), file(services, number))?;
            agent.cli(["apply".as_ref(), written.path().as_os_str()])?;
            exported.push(agent.cli(["export"])?);
            files.push(written);
        }
        assert_ne!(exported[0], exported[1]);
        Ok(Self {
            agent,
            files: files.try_into().map_err(|_| anyhow::anyhow!("two files"))?,
            exported: exported.try_into().map_err(|_| anyhow::anyhow!("two tables"))?,
            clients: 0,
        })
    }

    /// Where the program sends the first packets of new clients, whether an agent runs or not.
    fn forwarded(&mut self) -> Result<BTreeMap<u16, Shares>> {
        let trials = Trials::open(self.agent.pin_dir())?;
        let mut out = [0; 256];
        let mut all = BTreeMap::new();
        for port in PORTS {
            let mut shares = Shares::new();
            for _ in 0..FRAMES {
                self.clients += 1;
                let client = Ipv4Addr::from(0x0a00_0000 + self.clients);
                let frame = Frame::tcp((client, 40_000), (VIP, port), tcp::SYN);
                let action = trials.run(&frame.bytes(), &mut out)?;
                note(&mut shares, action, &out)?;
            }
            all.insert(port, shares);
        }
        Ok(all)
    }

    /// Which of the two tables the frames go by; both in part is neither.
    fn followed(&mut self) -> Result<usize> {
        followed(&self.forwarded()?)
    }

    /// Which of the two tables the agent has.
    fn configured(&self) -> Result<usize> {
        let now = self.agent.cli(["export"])?;
        let found = self.exported.iter().position(|table| *table == now);
        found.with_context(|| format!("it is neither table:\n{now}"))
    }

    /// The agent has killed itself, or does so in a moment.
    fn await_death(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let ended = loop {
            if let Some(ended) = self.agent.ended()? {
                break ended;
            }
            ensure!(
                Instant::now() < deadline,
                "the agent lives on: a release build kills no agent"
            );
            thread::sleep(Duration::from_millis(2));
        };
        assert_eq!(ended.signal(), Some(libc::SIGKILL), "{}", self.agent.log_tail());
        Ok(())
    }

    /// Applies a table; whether that was acknowledged.
    fn apply(&self, number: usize) -> Result<bool> {
        let file = self.files[number].path().as_os_str();
        let output = self.agent.cli_output(["apply".as_ref(), file])?;
        Ok(output.status.success())
    }
}

/// Kills one agent after the other, each at a later point of a change from the table that there is to the other one,
/// beginning with a change to `first`. How many were killed, and how many of these had the new table.
fn kill_in_changes(first: usize, step: usize) -> Result<(usize, usize)> {
    let mut director = Director::start()?;
    if first == 1 {
        ensure!(director.apply(0)?, "the first table was not taken");
    }
    director.agent.kill()?;
    let (mut kills, mut news, mut survivors) = (0, 0, 0);
    let mut live = 1 - first;
    // What may be live, and what must be.
    let mut allowed = vec![live];
    let mut point = 1;
    loop {
        let what = format!("change:{point}");
        director.agent.launch_in(&config(), &[(CRASH, &what)])?;
        let found = director.configured().with_context(|| format!("before {what}"))?;
        ensure!(
            allowed.contains(&found),
            "before {what}: it is table {found}, not of {allowed:?}"
        );
        // Nothing goes to a real server that this table has not.
        let followed = director.followed().with_context(|| format!("before {what}"))?;
        assert_eq!(followed, found, "before {what}");
        news += usize::from(kills > 0 && found != live);
        live = found;

        let next = 1 - live;
        let is_acknowledged = director.apply(next)?;
        // The second one is looked at when the first one has settled; there is nothing to do.
        if is_acknowledged && director.apply(next)? {
            director.agent.kill()?;
            survivors += 1;
            (live, allowed) = (next, vec![next]);
            // The other direction may have more points.
            if survivors == 2 {
                return Ok((kills, news));
            }
            continue;
        }
        survivors = 0;
        kills += 1;
        director.await_death().with_context(|| what.clone())?;
        // Nobody is there, and all that comes in goes by one of the tables, all of it.
        let followed = director.followed().with_context(|| format!("dead of {what}"))?;
        allowed = match (is_acknowledged, followed == next) {
            (true, _) => {
                assert_eq!(followed, next, "{what} was acknowledged");
                vec![next]
            }
            (false, true) => vec![next],
            (false, false) => vec![live, next],
        };
        point += step;
    }
}

/// As [`kill_in_changes`], and kills the next agents while they start, one after the other at later points, until one
/// comes up. How many were killed.
fn kill_in_starts(step: usize) -> Result<usize> {
    let mut director = Director::start()?;
    director.agent.kill()?;
    let (mut live, mut kills, mut point) = (1, 0, 1);
    // So far into the change that it is on disk and half in the maps.
    for half in [40, 90, 150] {
        director
            .agent
            .launch_in(&config(), &[(CRASH, &format!("change:{half}"))])?;
        assert_eq!(director.configured()?, live);
        let next = 1 - live;
        director.apply(next)?;
        director.await_death()?;
        loop {
            let what = format!("change:{half}, start:{point}");
            let mut command = director.agent.command(&config());
            command.env(CRASH, format!("start:{point}"));
            let mut process = Process::spawn(command)?;
            if !dies(&mut process, &director.agent)? {
                process.kill()?;
                break;
            }
            kills += 1;
            director.followed().with_context(|| format!("dead of {what}"))?;
            point += step;
        }
        director.agent.launch(&config())?;
        let found = director.configured()?;
        assert_eq!(director.followed()?, found);
        director.agent.kill()?;
        live = found;
        point = 1 + point % step;
    }
    Ok(kills)
}

/// Whether an agent that starts kills itself before it serves anybody.
fn dies(process: &mut Process, agent: &Agent) -> Result<bool> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(ended) = process.ended()? {
            assert_eq!(ended.signal(), Some(libc::SIGKILL), "it has ended otherwise");
            return Ok(true);
        }
        if agent.cli_output(["status"])?.status.success() {
            return Ok(false);
        }
        ensure!(Instant::now() < deadline, "the agent neither dies nor answers");
    }
}

#[test]
fn killed_at_each_point_of_a_change_the_table_is_the_old_or_the_new_one() -> Result<()> {
    let begun = Instant::now();
    let walks: Vec<_> = [0, 1]
        .map(|first| thread::spawn(move || kill_in_changes(first, STRIDE)))
        .into();
    let mut all = 0;
    for walk in walks {
        let (kills, news) = walk
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        println!("killed {kills} times: {news} times the new table, else the old one");
        assert!(news > 0 && kills > news, "{kills} kills, {news} new tables");
        all += kills;
    }
    println!("{all} kills in {:?}", begun.elapsed());
    assert!(all > 10, "{all}");
    Ok(())
}

#[test]
fn killed_at_each_point_of_its_start_the_next_one_goes_on() -> Result<()> {
    let kills = kill_in_starts(STRIDE)?;
    println!("killed {kills} times while it started");
    assert!(kills > 10, "{kills}");
    Ok(())
}
