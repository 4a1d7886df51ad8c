//! The task that joins the kernel's events, the probes' answers, the clock and the callers.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};

use super::{
    Command, Event, View,
    kernel::{Events, Kernel, Notice, Releaser},
    probe::Probes,
    schedule::Step,
    table::{Entry, EntryState, Table},
};

/// Changes of routes come in swarms (an interface going up is a dozen); they are looked at together.
const REROUTE_DELAY: Duration = Duration::from_millis(20);
/// Steps that are due within so little are taken together.
const SLACK: Duration = Duration::from_millis(5);
/// A netlink connection that broke, or tables that cannot be read, are tried again after this.
const REOPEN_DELAY: Duration = Duration::from_secs(1);

pub(super) struct Actor {
    table: Table,
    notices: Events,
    kernel: Kernel,
    probes: Probes,
    held: Held,
    events: mpsc::UnboundedSender<Event>,
    view: watch::Sender<View>,
    /// When the routes that may have changed are asked for.
    reroute_at: Option<Instant>,
    /// When everything is read again, because events were lost.
    read_at: Option<Instant>,
}

impl Actor {
    /// Subscribes, then reads what there is.
    pub(super) async fn start(
        events: mpsc::UnboundedSender<Event>,
        view: watch::Sender<View>,
    ) -> anyhow::Result<Self> {
        let notices = Events::open()?;
        let kernel = Kernel::open()?;
        let probes = Probes::open()?;
        let held = Held {
            releaser: Releaser::open()?,
            entries: BTreeMap::new(),
        };
        let mut table = Table::default();
        table.replace(kernel.read().await?, Instant::now());
        let mut actor = Self {
            table,
            notices,
            kernel,
            probes,
            held,
            events,
            view,
            reroute_at: None,
            read_at: None,
        };
        actor.publish();
        Ok(actor)
    }

    /// Runs until the sender of commands is gone.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            let due = [self.table.due(), self.reroute_at, self.read_at]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                ready = self.probes.readable() => {
                    if let Err(error) = ready {
                        tracing::error!(%error, "the runtime no longer watches the probes' sockets");
                        return;
                    }
                    self.hear();
                }
                notice = self.notices.next() => self.notice(notice).await,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                () = wait_until(due) => {
                    self.hear();
                    self.take_steps().await;
                }
            }
            self.catch_up().await;
            self.publish();
        }
    }

    /// Takes in the answers that have come.
    fn hear(&mut self) {
        let now = Instant::now();
        for answer in self.probes.drain() {
            self.table
                .answered(answer.address, answer.if_index, answer.mac, now);
        }
    }

    async fn notice(&mut self, notice: Option<Notice>) {
        let now = Instant::now();
        match notice {
            Some(Notice::News(news)) => self.table.apply(news, now),
            Some(Notice::Lost) => {
                tracing::warn!("netlink events were lost: reading the tables again");
                self.read_at = Some(now);
            }
            None => {
                tracing::warn!("the netlink connection broke: opening it again");
                match Events::open().and_then(|notices| Ok((notices, Kernel::open()?))) {
                    Ok((notices, kernel)) => {
                        self.notices = notices;
                        self.kernel = kernel;
                        self.read_at = Some(now);
                    }
                    // The stream that has ended brings us here again.
                    Err(error) => {
                        tracing::error!("{error:#}");
                        tokio::time::sleep(REOPEN_DELAY).await;
                    }
                }
            }
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Watch { address, done } => {
                if self.table.watch(address, Instant::now()) {
                    self.refresh(address).await;
                    self.table.announce(address);
                }
                self.publish();
                // The caller may have lost its patience.
                let _gone = done.send(());
            }
            Command::Forget { address, done } => {
                self.publish();
                self.table.forget(address);
                self.held.release(address);
                self.view.send_modify(|view| {
                    view.resolutions.remove(&address);
                    view.paths.remove(&address);
                });
                let _gone = done.send(());
            }
        }
    }

    async fn take_steps(&mut self) {
        let now = Instant::now();
        for (address, step) in self.table.steps(now + SLACK) {
            match step {
                Step::Refresh => self.refresh(address).await,
                Step::Unicast => self.ask(address, false),
                Step::Broadcast => self.ask(address, true),
                Step::GiveUp => self.give_up(address).await,
            }
        }
    }

    /// What became necessary by what was taken in.
    async fn catch_up(&mut self) {
        let now = Instant::now();
        if self.read_at.is_some_and(|at| at <= now) {
            self.read_at = None;
            match self.kernel.read().await {
                Ok(news) => self.table.replace(news, now),
                Err(error) => {
                    tracing::warn!("{error:#}");
                    self.read_at = Some(now + REOPEN_DELAY);
                }
            }
        }
        if self.table.must_reroute() {
            let at = *self.reroute_at.get_or_insert(now + REROUTE_DELAY);
            if at <= now {
                self.reroute_at = None;
                for address in self.table.take_reroute() {
                    self.refresh(address).await;
                }
            }
        }
        for address in self.table.take_lost() {
            self.manage(address).await;
        }
    }

    /// Asks the kernel for the route and the entry of an address, and has it resolve it.
    async fn refresh(&mut self, address: IpAddr) {
        let by = self.table.scope(address);
        let (route, path) = match self.kernel.route(address, by).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(%address, %error, "asking for the route");
                return;
            }
        };
        let before = self.table.on_link(address);
        // First, so that whoever hears of the route knows the path.
        self.table.set_path(address, path);
        self.table.set_route(address, route, Instant::now());
        let on_link = self.table.on_link(address);
        if before.is_some() && before != on_link {
            self.held.release(address);
        }
        let Some(if_index) = on_link else { return };
        match self.kernel.entry(address, if_index).await {
            Ok(entry) => self.table.set_entry(address, if_index, entry, Instant::now()),
            Err(error) => tracing::warn!(%address, %error, "asking for the neighbour entry"),
        }
        self.manage(address).await;
    }

    /// Has the kernel resolve an address and keep its entry, unless somebody else looks after it.
    async fn manage(&mut self, address: IpAddr) {
        let Some(if_index) = self.table.on_link(address) else {
            return;
        };
        let entry = self.table.entry(address);
        // The message for a managed entry would make a permanent one an ordinary one.
        if entry.is_some_and(|entry| entry.state == EntryState::Fixed || entry.managed_by_other) {
            return;
        }
        let external = entry.is_some_and(|entry| entry.external);
        match self.kernel.manage(address, if_index, external).await {
            Ok(()) => self.held.hold(address, if_index, external),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => tracing::warn!(
                %address,
                "the kernel's neighbour table is full: raise the sysctl net.{}.neigh.default.gc_thresh3",
                if address.is_ipv4() { "ipv4" } else { "ipv6" },
            ),
            // The interface has just gone down or away; its event is under way.
            Err(error) => tracing::debug!(%address, %error, "making the neighbour entry"),
        }
    }

    fn ask(&self, address: IpAddr, everybody: bool) {
        if let Some(probe) = self.table.probe(address)
            && let Err(error) = self.probes.ask(probe, everybody)
        {
            // Without a carrier, say. It counts as a question that nobody answered.
            tracing::debug!(%address, %error, "asking for the MAC address");
        }
    }

    async fn give_up(&mut self, address: IpAddr) {
        let Some(if_index) = self.table.on_link(address) else {
            return;
        };
        let external = self.table.entry(address).is_some_and(|entry| entry.external);
        if let Err(error) = self.kernel.fail(address, if_index, external).await {
            tracing::debug!(%address, %error, "failing the neighbour entry");
        }
        let failed = Entry {
            state: EntryState::Failed,
            mac: None,
            external,
            managed_by_other: false,
        };
        self.table
            .set_entry(address, if_index, Some(failed), Instant::now());
        self.manage(address).await;
    }

    /// Tells what changed. Nobody may be listening any more; the view is right all the same.
    fn publish(&mut self) {
        let events = self.table.take_events();
        if events.is_empty() {
            return;
        }
        self.view.send_modify(|view| {
            for event in &events {
                match event {
                    Event::Resolution { address, resolution } => {
                        view.resolutions.insert(*address, resolution.clone());
                    }
                    Event::Path { address, path: None } => drop(view.paths.remove(address)),
                    Event::Path {
                        address,
                        path: Some(path),
                    } => drop(view.paths.insert(*address, *path)),
                    Event::LocalAddresses(addresses) => view.local.clone_from(addresses),
                    Event::Link { if_index, link } => {
                        Arc::make_mut(&mut view.links).set(*if_index, link.clone());
                    }
                }
            }
        });
        for event in events {
            drop(self.events.send(event));
        }
    }
}

/// The entries that we made managed; given back when this is dropped.
struct Held {
    releaser: Releaser,
    /// By address: the interface, and whether somebody else looks after the entry too.
    entries: BTreeMap<IpAddr, (u32, bool)>,
}

impl Held {
    fn hold(&mut self, address: IpAddr, if_index: u32, external: bool) {
        self.entries.insert(address, (if_index, external));
    }

    fn release(&mut self, address: IpAddr) {
        if let Some((if_index, external)) = self.entries.remove(&address) {
            self.releaser.release(address, if_index, external);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for (address, (if_index, external)) in &self.entries {
            self.releaser.release(*address, *if_index, *external);
        }
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
