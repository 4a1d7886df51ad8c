//! `-R` and `ipvsadm-restore`: rules from standard input, applied all or none.
//!
//! The real ones apply line by line, stop or go on at a bad one, and return what became of the last: scripts cannot
//! know what they have then. Here one request carries all the changes, so that no packet meets a part of them, and
//! every bad line is reported with its number.

use std::{collections::BTreeMap, io::Read};

use super::{
    Director, Failure, NO_SCHEDULER, Names, answer,
    args::{self, Request, ServiceRequest},
    find, in_kernels_words, refusal, with_request,
};
use crate::api::{
    client::ClientError,
    types::{Change, Scheduler, ServiceKey, ServiceSpec},
};

/// `-R`: adds to what there is.
pub(super) fn add(
    input: &mut dyn Read,
    director: &mut dyn Director,
    names: &Names,
) -> Result<Vec<u8>, Failure> {
    apply(Rules::default(), input, director, names)
}

/// `ipvsadm-restore`: takes the place of what there is. Services that are the same before and after go on.
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
    let mut known = |key| Ok(find(director, key)?.map(|service| service.spec));
    rules.read(&String::from_utf8_lossy(&text), &mut known, names)?;
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
    if let Err(failure) = rules.read(text, &mut |_| Ok(None), names) {
        rules.fault(0, failure);
    }
    for (number, _) in &rules.others {
        let only_asks = Failure::refused("it changes nothing that could be kept");
        rules.faults.entry(*number).or_insert(only_asks);
    }
    let faults = rules.faults.into_iter();
    Saved {
        changes: rules.lines.into_iter().zip(rules.changes).collect(),
        faults: faults
            .map(|(line, failure)| (line, failure.message.trim_end().replace('\n', "; ")))
            .collect(),
    }
}

/// What a director knows of a service; none where there is no such service.
type Known<'a> = &'a mut dyn FnMut(ServiceKey) -> Result<Option<ServiceSpec>, Failure>;

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
    is_cleared: bool,
    faults: BTreeMap<usize, Failure>,
}

impl Rules {
    fn read(&mut self, text: &str, known: Known<'_>, names: &Names) -> Result<(), Failure> {
        (1..)
            .zip(text.lines())
            .try_for_each(|(number, line)| self.take(number, line, known, names))
    }

    /// Takes a line. Blanks part its words, and nothing quotes; the first may be the program's name, and a line that
    /// begins with `#` is a comment.
    ///
    /// # Errors
    ///
    /// Where there is no agent to ask.
    fn take(&mut self, number: usize, line: &str, known: Known<'_>, names: &Names) -> Result<(), Failure> {
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
                for change in changes {
                    self.change(number, change);
                }
            }
            Ok(Request::AddService(request)) => {
                let base = ServiceSpec::new(request.key, Scheduler::default());
                let service = self.requested(number, base, request);
                self.change(number, Change::AddService { service });
            }
            Ok(Request::EditService(request)) => {
                let base = match self.services.get(&request.key) {
                    Some(known) => known.clone(),
                    None if self.is_cleared => None,
                    None => known(request.key)?,
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
            .map(|(number, failure)| format!("line {number}: {failure}"));
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
