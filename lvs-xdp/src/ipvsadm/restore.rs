//! `-R` and `ipvsadm-restore`: rules from standard input, applied all or none.
//!
//! The real ones apply line by line, stop or go on at a bad one, and return what became of the last: scripts cannot
//! know what they have then. Here one request carries all the changes, so that no packet meets a part of them, and
//! every bad line is reported with its number.
//!
//! What ipvsadm has no words for - health checks, quorum and fallback - is not in the rules. A service or real server
//! that is there before and after them keeps it, unless a rule deletes it by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use super::{
    Director, Failure, NO_SCHEDULER, Names, answer,
    args::{self, ListRequest, Request, ServiceRequest},
    find, in_kernels_words, refusal, unanswered, with_request,
};
use crate::{
    api::{
        client::ClientError,
        types::{Change, Scheduler, ServerKey, ServerSpec, Service, ServiceKey, ServiceSpec},
    },
    line::one_line,
};

/// `-R`: adds to what there is.
pub(super) fn add(
    input: &mut dyn Read,
    director: &mut dyn Director,
    names: &Names,
) -> Result<Vec<u8>, Failure> {
    apply(Rules::default(), input, director, names)
}

/// `ipvsadm-restore`: takes the place of what there is. Services that are the same before and after go on, with their
/// health checks.
pub(super) fn replace(
    input: &mut dyn Read,
    director: &mut dyn Director,
    names: &Names,
) -> Result<Vec<u8>, Failure> {
    let mut rules = Rules::default();
    rules.change(0, Change::Clear);
    apply(rules, input, director, names)
}

fn apply(
    mut rules: Rules,
    input: &mut dyn Read,
    director: &mut dyn Director,
    names: &Names,
) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    input
        .read_to_end(&mut text)
        .map_err(|error| Failure::usage(format!("cannot read the rules: {error}")))?;
    let mut before = Before::of(director);
    rules.read(&String::from_utf8_lossy(&text), &mut before, names)?;
    rules.check_others(&mut before)?;
    rules.carry_out(director, names)
}

/// What the rules of a table say, without a director.
pub(crate) struct Saved {
    /// Each change with its line.
    pub(crate) changes: Vec<(usize, Change)>,
    /// What is wrong with a line, or not to be had here.
    pub(crate) faults: BTreeMap<usize, String>,
}

/// Reads rules that stand for a whole table.
pub(crate) fn rules(text: &str, names: &Names) -> Saved {
    let mut rules = Rules {
        is_cleared: true,
        ..Rules::default()
    };
    // Nobody is asked of a table that begins with nothing.
    if let Err(failure) = rules.read(text, &mut Before::nothing(), names) {
        rules.fault(0, failure);
    }
    for (number, _) in &rules.others {
        let only_asks = Failure::refused("it changes nothing that could be kept");
        rules.faults.entry(*number).or_insert(only_asks);
    }
    let faults = rules.faults.iter();
    Saved {
        faults: faults
            .map(|(line, failure)| (*line, in_one_line(failure)))
            .collect(),
        changes: rules.lines.into_iter().zip(rules.changes).collect(),
    }
}

/// What is wrong with a line, where others of it may follow; it quotes a file that may be anybody's.
fn in_one_line(failure: &Failure) -> String {
    one_line(failure.message.trim_end().replace('\n', "; "))
}

/// What there was before the rules, as far as it matters.
struct Before<'a> {
    /// Who knows the rest.
    director: Option<&'a mut dyn Director>,
    services: BTreeMap<ServiceKey, Option<Service>>,
}

impl<'a> Before<'a> {
    fn of(director: &'a mut dyn Director) -> Self {
        Self {
            director: Some(director),
            services: BTreeMap::new(),
        }
    }

    fn nothing() -> Self {
        Self {
            director: None,
            services: BTreeMap::new(),
        }
    }

    /// Asks for the whole table: rules that replace it name most of its services.
    fn ask_for_all(&mut self) -> Result<(), Failure> {
        if let Some(director) = self.director.take() {
            for service in director.services().map_err(unanswered)? {
                self.services.insert(service.spec.key, Some(service));
            }
        }
        Ok(())
    }

    fn service(&mut self, key: ServiceKey) -> Result<Option<&Service>, Failure> {
        if let Some(director) = &mut self.director
            && !self.services.contains_key(&key)
        {
            self.services.insert(key, find(*director, key)?);
        }
        Ok(self.services.get(&key).and_then(Option::as_ref))
    }
}

/// The rules that were read, and what is wrong with them.
#[derive(Debug, Default)]
struct Rules {
    changes: Vec<Change>,
    /// The line of each change.
    lines: Vec<usize>,
    /// What is no change: lists and zeroing, done once all changes are.
    others: Vec<(usize, Request)>,
    /// The services that the rules have added, edited or deleted so far.
    services: BTreeMap<ServiceKey, Option<ServiceSpec>>,
    /// What a rule has deleted by name: services, and real servers.
    deleted: BTreeSet<(ServiceKey, Option<ServerKey>)>,
    is_cleared: bool,
    faults: BTreeMap<usize, Failure>,
}

impl Rules {
    fn read(&mut self, text: &str, before: &mut Before<'_>, names: &Names) -> Result<(), Failure> {
        (1..)
            .zip(text.lines())
            .try_for_each(|(number, line)| self.take(number, line, before, names))
    }

    /// Takes a line. Blanks part its words, and nothing quotes; the first may be the program's name, and a line that
    /// begins with `#` is a comment.
    ///
    /// # Errors
    ///
    /// Where there is no agent to ask.
    fn take(
        &mut self,
        number: usize,
        line: &str,
        before: &mut Before<'_>,
        names: &Names,
    ) -> Result<(), Failure> {
        if line.trim_start().starts_with('#') {
            return Ok(());
        }
        let mut words: Vec<String> = line.split_ascii_whitespace().map(str::to_owned).collect();
        if words.first().is_some_and(|word| word == "ipvsadm") {
            words.remove(0);
        }
        if words.is_empty() {
            return Ok(());
        }
        match args::parse(&words, names) {
            Ok(Request::Change(changes)) => {
                for mut change in changes {
                    match &mut change {
                        // Else there is none of its name.
                        Change::AddServer { service, server, .. } if self.is_cleared => {
                            before.ask_for_all()?;
                            self.keep_check(*service, server, before)?;
                        }
                        Change::EditServer { service, server } => {
                            self.keep_check(*service, server, before)?;
                        }
                        _ => {}
                    }
                    self.change(number, change);
                }
            }
            Ok(Request::AddService(request)) => {
                let base = self.new_service(request.key, before)?;
                let service = self.requested(number, base, request);
                self.change(number, Change::AddService { service });
            }
            Ok(Request::EditService(request)) => {
                let base = match self.services.get(&request.key) {
                    Some(known) => known.clone(),
                    None if self.is_cleared => None,
                    None => before.service(request.key)?.map(|service| service.spec.clone()),
                };
                // One that is not there is refused with all the rest.
                let base = base.unwrap_or_else(|| ServiceSpec::new(request.key, Scheduler::default()));
                let service = self.requested(number, base, request);
                self.change(number, Change::EditService { service });
            }
            Ok(Request::Restore) => self.fault(number, args::no_command()),
            Ok(request) => self.others.push((number, request)),
            Err(failure) => self.fault(number, failure),
        }
        Ok(())
    }

    /// A service as it is before a line says anything of it: with what it keeps, where it takes its own place.
    fn new_service(&self, key: ServiceKey, before: &mut Before<'_>) -> Result<ServiceSpec, Failure> {
        let mut spec = ServiceSpec::new(key, Scheduler::default());
        if self.is_cleared && !self.deleted.contains(&(key, None)) {
            before.ask_for_all()?;
            if let Some(known) = before.service(key)? {
                spec.check.clone_from(&known.spec.check);
                spec.fallback.clone_from(&known.spec.fallback);
                spec.quorum = known.spec.quorum;
            }
        }
        Ok(spec)
    }

    /// Gives a real server the check that it has already.
    fn keep_check(
        &self,
        service: ServiceKey,
        server: &mut ServerSpec,
        before: &mut Before<'_>,
    ) -> Result<(), Failure> {
        let is_deleted = [None, Some(server.key)]
            .iter()
            .any(|name| self.deleted.contains(&(service, *name)));
        if is_deleted {
            return Ok(());
        }
        let known = before.service(service)?;
        let known = known.and_then(|known| known.servers.iter().find(|known| known.spec.key == server.key));
        server.check = known.and_then(|known| known.spec.check.clone());
        Ok(())
    }

    /// The service that a line asks for. Where there is no such scheduler it is noted, and the service has another
    /// one: its real servers are looked at, too.
    fn requested(&mut self, number: usize, base: ServiceSpec, mut request: ServiceRequest) -> ServiceSpec {
        if request.scheduler.is_none() {
            self.fault(number, Failure::refused(NO_SCHEDULER));
            request.scheduler = Some(base.scheduler);
        }
        with_request(base.clone(), request).unwrap_or(base)
    }

    fn change(&mut self, number: usize, change: Change) {
        match &change {
            Change::AddService { service } | Change::EditService { service } => {
                self.services.insert(service.key, Some(service.clone()));
            }
            Change::DeleteService { service } => {
                self.services.insert(*service, None);
                self.deleted.insert((*service, None));
            }
            Change::DeleteServer { service, server } => {
                self.deleted.insert((*service, Some(*server)));
            }
            Change::Clear => {
                self.services.clear();
                self.is_cleared = true;
            }
            _ => {}
        }
        self.changes.push(change);
        self.lines.push(number);
    }

    fn fault(&mut self, number: usize, failure: Failure) {
        self.faults.entry(number).or_insert(failure);
    }

    /// Notes what will be asked of services that are not there once all changes are made: then it would be too late to
    /// change nothing.
    ///
    /// # Errors
    ///
    /// Where there is no agent to ask.
    fn check_others(&mut self, before: &mut Before<'_>) -> Result<(), Failure> {
        let mut missing = Vec::new();
        for (number, request) in &self.others {
            let (key, refuse): (_, fn(&'static str) -> Failure) = match request {
                Request::List(ListRequest {
                    service: Some(key), ..
                }) => (*key, Failure::absent),
                Request::Zero(Some(key)) => (*key, Failure::refused),
                _ => continue,
            };
            let is_there = match self.services.get(&key) {
                Some(made) => made.is_some(),
                None => !self.is_cleared && before.service(key)?.is_some(),
            };
            if !is_there {
                missing.push((*number, refuse("No such service")));
            }
        }
        for (number, failure) in missing {
            self.fault(number, failure);
        }
        Ok(())
    }

    /// Applies the changes where every line is good; else only asks what else is wrong with them.
    fn carry_out(mut self, director: &mut dyn Director, names: &Names) -> Result<Vec<u8>, Failure> {
        let changes = self.changes.clone();
        let done = if !self.faults.is_empty() {
            director.check(changes)
        } else if changes.is_empty() {
            Ok(())
        } else {
            director.change(changes)
        };
        if let Err(error) = done {
            self.note(error)?;
        }
        if self.faults.is_empty() {
            let texts = self
                .others
                .into_iter()
                .map(|(_, request)| answer(request, director, names));
            return Ok(texts.collect::<Result<Vec<_>, _>>()?.concat());
        }
        // As the real one, which stops there; but it is known of the others, too.
        let status = self.faults.values().next().map_or(2, |failure| failure.status);
        let lines = self
            .faults
            .iter()
            .map(|(number, failure)| format!("line {number}: {}", in_one_line(failure)));
        let message = lines.collect::<Vec<_>>().join("\n");
        Err(Failure { status, message })
    }

    /// Notes which lines the agent has refused.
    ///
    /// # Errors
    ///
    /// The refusal, where it is about none of them.
    fn note(&mut self, error: ClientError) -> Result<(), Failure> {
        let ClientError::Refused(refused) = error else {
            return Err(refusal(error, None));
        };
        if refused.faults.is_empty() {
            return Err(refusal(refused.into(), self.changes.last()));
        }
        for fault in refused.faults {
            let at = usize::try_from(fault.index).unwrap_or(usize::MAX);
            let change = self.changes.get(at);
            let message = in_kernels_words(fault.code, fault.message, change);
            let number = self.lines.get(at).copied().unwrap_or_default();
            self.fault(number, Failure::refused(message));
        }
        Ok(())
    }
}
