//! Keeps the desired state on disk: a change that was acknowledged survives whatever happens next.
//!
//! One file, `state`, in the state directory. Its first line names the format and its version, each further
//! line is one transaction; every line begins with the CRC-32 of its rest, so that damage anywhere is seen:
//!
//! ```text
//! 1f2e3d4c lvs-xdp state 5
//! 5b6a7988 [{"change":"add-service","service":{...}},{"change":"add-server",...}]
//! 4c3d2e1f {"versions":[{"number":17,"time":1767225600,"uid":0,"what":"...","changes":[...]}]}
//! ```
//!
//! First comes the table as it was some versions ago, then each version since with time and author. So the file is
//! the history as well, and neither can be there without the other.
//!
//! A transaction is appended and synced before [`Journal::append`] returns. From time to time the file is
//! written anew, the oldest versions as one table of a transaction a service, and put into place by a rename: a crash
//! leaves the old file or the new one. Nothing that was ever acknowledged is deleted: a damaged file is kept under another name.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process, slice,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::{
    api::types::{Change, Version},
    crash,
    model::Model,
};

/// The version of the file's format; a change that older agents would misread needs a new one. Version 2 added
/// draining, settings, and what services and servers have beside scheduler and weight; version 3 tunnels and
/// firewall marks; version 4 health checks and fallbacks, and the clearing of
/// these rules; version 5 the history.
const VERSION: u32 = 5;

/// The oldest version that is read. What it lacks has its default; the file is written anew when it is opened.
const OLDEST: u32 = 1;

/// What stands before the version in the first line.
const FORMAT: &[u8] = b"lvs-xdp state ";

/// The file inside the state directory.
const FILE: &str = "state";

/// A new state file while it is being written.
const ASIDE: &str = "state.new";

/// Below this many bytes a file is not worth writing anew.
const SMALL: u64 = 64 * 1024;

/// The versions that are kept, at least; older ones are as well until the file is written anew.
const KEPT_VERSIONS: usize = 100;

/// They are fewer where they would have more bytes than this; the last line is always kept.
const KEPT_BYTES: u64 = 16 << 20;

/// A change of the table as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Who made it, and when.
    #[serde(flatten)]
    pub version: Version,
    /// What it changes, all or nothing.
    pub changes: Vec<Change>,
}

/// A line of versions that were made in one step.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    versions: Vec<Transaction>,
}

/// Where such a line is, and what it is about.
#[derive(Debug, Clone)]
struct Place {
    start: u64,
    end: u64,
    versions: Vec<Version>,
}

/// The open journal; its lock on the state directory lasts as long as it lives.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    file: File,
    /// Bytes in `file` that are known good: where the next transaction goes.
    length: u64,
    /// The versions that the file has, by line.
    lines: Vec<Place>,
    /// The number of the last version.
    last: u64,
    /// There may be bytes beyond `length`: those of a transaction that failed.
    torn: bool,
    /// The file was renamed into place, but the directory may not be on disk yet.
    renamed: bool,
    _lock: File,
}

/// What [`Journal::open`] found.
#[derive(Debug)]
pub struct Opened {
    /// To append to.
    pub journal: Journal,
    /// The desired state as it was kept.
    pub model: Model,
    /// What the operator should know, one line each.
    pub warnings: Vec<String>,
}

impl Journal {
    /// Opens the journal in the directory `dir`, which is made (mode 0700) where it is missing.
    ///
    /// A last line without its end was being written when the machine went down: it was never acknowledged
    /// and is cut off. Any other damage: the file is kept as `state.corrupt-SECONDS`, all that can be read of
    /// it is restored and written to a new file. Both are reported in [`Opened::warnings`].
    ///
    /// # Errors
    /// Another agent uses the directory; the file is of a version this one does not know (nothing is changed
    /// then); the directory cannot be read or written. The message is one line that says what to do.
    pub fn open(dir: &Path) -> anyhow::Result<Opened> {
        let dir = create_directory(dir).with_context(|| {
            format!(
                "cannot use {} as the state directory: mend it, or use another --state-dir",
                dir.display()
            )
        })?;
        let lock = lock(&dir)?;
        let path = dir.join(FILE);
        let cannot = |what: &str| format!("cannot {what} the state file {}", path.display());
        let contents = match fs::read(&path) {
            Ok(bytes) => Some(read(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| cannot("read")),
        };
        let existed = contents.is_some();
        let Contents {
            model,
            length,
            torn,
            faults,
            is_old,
            lines,
        } = match contents.transpose() {
            Ok(contents) => contents.unwrap_or_default(),
            Err(UnknownVersion(version)) => bail!(
                "the state file {} has format version {version}, this lvs-xdp knows versions {OLDEST} to {VERSION}: \
                 use the lvs-xdp that wrote it, or another --state-dir",
                path.display()
            ),
        };

        let mut warnings = Vec::new();
        let fresh = !existed || !faults.is_empty();
        if torn && faults.is_empty() {
            warnings.push(format!(
                "the last line of the state file {} was cut short while it was written: the change was \
                 never acknowledged and is left out",
                path.display()
            ));
        }
        let (file, length, lines) = if fresh {
            // Written before the old file gets its second name, so that starting again and again on a full
            // disk does not give it one name after the other.
            let new = snapshot(&model).and_then(|bytes| write_aside(&dir, &bytes));
            let new = new.with_context(|| cannot("write"))?;
            if let Some(first) = faults.first() {
                let aside = keep_aside(&dir).with_context(|| cannot("keep aside"))?;
                warnings.push(format!(
                    "the state file {} was damaged (faults: {}, the first: {first}): it is kept as {}, and what \
                     can be read of it is restored; check the services and real servers",
                    path.display(),
                    faults.len(),
                    aside.display()
                ));
            }
            put_into_place(&dir).with_context(|| cannot("write"))?;
            (new.0, new.1, Vec::new())
        } else {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| cannot("write"))?;
            // What was read may come from an agent that was killed before its sync.
            file.sync_data().with_context(|| cannot("sync"))?;
            (file, length, lines)
        };
        let mut journal = Self {
            dir,
            file,
            length,
            last: last(&lines),
            lines,
            torn,
            renamed: fresh,
            _lock: lock,
        };
        journal.settle().with_context(|| cannot("write"))?;
        if is_old {
            // It may get lines that an agent of that version would misread.
            journal.compact(&model).with_context(|| cannot("write"))?;
        }
        if journal.needs_compaction()
            && let Err(error) = journal.compact(&model)
        {
            warnings.push(format!(
                "the state file {} cannot be made smaller: {error}",
                path.display()
            ));
        }
        Ok(Opened {
            journal,
            model,
            warnings,
        })
    }

    /// Appends what was made in one step, each with the next number; it is on disk when this returns. What changes
    /// nothing is no version.
    ///
    /// # Errors
    /// Nothing of it is kept (the disk may be full); a later call starts after the last good transaction. Only
    /// if the disk refuses to take back what it has, and the machine goes down before a later call succeeds,
    /// may it be found when the journal is opened again.
    pub fn append(&mut self, mut made: Vec<Transaction>) -> io::Result<()> {
        made.retain(|transaction| !transaction.changes.is_empty());
        if made.is_empty() {
            return Ok(());
        }
        for (transaction, number) in made.iter_mut().zip(self.last + 1..) {
            transaction.version.number = number;
        }
        self.settle()?;
        let made = Line { versions: made };
        let line = line(&serde_json::to_vec(&made)?);
        self.torn = true;
        crash::point();
        let written = self.file.write_all_at(&line, self.length);
        crash::point();
        match written.and_then(|()| self.file.sync_data()) {
            Ok(()) => {
                self.torn = false;
                let start = self.length;
                self.length += line.len() as u64;
                self.lines.push(Place {
                    start,
                    end: self.length,
                    versions: made.versions.into_iter().map(|made| made.version).collect(),
                });
                self.last = last(&self.lines);
                Ok(())
            }
            Err(error) => {
                // Where this fails too, `torn` stays and the next call tries again before it writes.
                let _ = self.settle();
                Err(error)
            }
        }
    }

    /// The versions that can be gone back to, the newest first.
    pub fn history(&self) -> impl Iterator<Item = &Version> {
        let kept = &self.lines[self.first_kept()..];
        kept.iter().rev().flat_map(|line| line.versions.iter().rev())
    }

    /// The table as it was before the last `back` versions.
    ///
    /// # Errors
    /// The file cannot be read, or there are not so many versions in it: [`io::ErrorKind::NotFound`].
    pub fn back(&self, back: usize) -> io::Result<Model> {
        let mut left = back;
        for line in self.lines[self.first_kept()..].iter().rev() {
            if left > line.versions.len() {
                left -= line.versions.len();
                continue;
            }
            let mut model = self.read(line.start)?;
            let kept = line.versions.len() - left;
            if kept > 0 {
                let bytes = self.bytes(line.start, line.end)?;
                let read = payload(without_end(&bytes)).map(parts);
                let Some(Ok((_, transactions))) = read else {
                    return Err(damaged());
                };
                for changes in &transactions[..kept] {
                    model.apply(changes).map_err(|_| damaged())?;
                }
            }
            return Ok(model);
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// The first line that stays when the file is written anew.
    fn first_kept(&self) -> usize {
        let (mut versions, mut bytes) = (0, 0);
        for (position, line) in self.lines.iter().enumerate().rev() {
            bytes += line.end - line.start;
            if versions >= KEPT_VERSIONS || versions > 0 && bytes > KEPT_BYTES {
                return position + 1;
            }
            versions += line.versions.len();
        }
        0
    }

    /// The bytes of the table that the versions start from, and of the versions that need not be kept.
    fn lengths(&self) -> (u64, u64) {
        let table = self.lines.first().map_or(self.length, |line| line.start);
        let kept = self
            .lines
            .get(self.first_kept())
            .map_or(self.length, |line| line.start);
        (table, kept - table)
    }

    fn bytes(&self, start: u64, end: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(end - start).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes)
    }

    /// The table that the first bytes of the file say.
    fn read(&self, end: u64) -> io::Result<Model> {
        match read(&self.bytes(0, end)?) {
            Ok(contents) if contents.faults.is_empty() && !contents.torn => Ok(contents.model),
            Ok(_) | Err(UnknownVersion(_)) => Err(damaged()),
        }
    }

    /// Whether the file has grown so far beyond what it says that [`Journal::compact`] is worth while.
    pub fn needs_compaction(&self) -> bool {
        let (table, superfluous) = self.lengths();
        superfluous > SMALL.max(3 * table)
    }

    /// Writes the file anew: the table as it was before the versions that are kept, and these.
    ///
    /// Where they do not lead to `model`, since the file has been damaged meanwhile, or `model` is that of before a
    /// transaction that could not be made live, there is nothing in the new file but `model`.
    ///
    /// # Errors
    /// The old file is still in place, or the new one is and the directory could not be synced; in both cases
    /// the journal can be used on.
    pub fn compact(&mut self, model: &Model) -> io::Result<()> {
        let kept = self.first_kept();
        let start = self.lines.get(kept).map_or(self.length, |line| line.start);
        let is_whole = self.read(self.length).is_ok_and(|read| read == *model);
        let base = if is_whole { self.read(start).ok() } else { None };
        let (bytes, lines) = match base {
            Some(base) => {
                let mut bytes = snapshot(&base)?;
                let before = bytes.len() as u64;
                bytes.extend(self.bytes(start, self.length)?);
                let mut lines = self.lines[kept..].to_vec();
                for line in &mut lines {
                    line.start = line.start - start + before;
                    line.end = line.end - start + before;
                }
                (bytes, lines)
            }
            None => (snapshot(model)?, Vec::new()),
        };
        let (file, length) = write_aside(&self.dir, &bytes)?;
        crash::point();
        put_into_place(&self.dir)?;
        crash::point();
        (self.file, self.length, self.lines) = (file, length, lines);
        self.torn = false;
        self.renamed = true;
        self.settle()
    }

    /// Finishes what an earlier failure left behind; without it no transaction would be safe.
    fn settle(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.length)?;
            self.file.sync_data()?;
            self.torn = false;
        }
        if self.renamed {
            sync_directory(&self.dir)?;
            self.renamed = false;
        }
        Ok(())
    }
}

/// What could be read of a state file.
#[derive(Default)]
struct Contents {
    model: Model,
    /// Bytes up to the last line end.
    length: u64,
    /// Bytes follow that are the beginning of a line.
    torn: bool,
    /// What is damaged, other than by being torn.
    faults: Vec<String>,
    /// It is of a version before this one.
    is_old: bool,
    /// The lines that are versions.
    lines: Vec<Place>,
}

/// The file is intact, but of this version.
#[derive(Debug)]
struct UnknownVersion(u32);

/// Reads as much of a state file as can be read.
fn read(bytes: &[u8]) -> Result<Contents, UnknownVersion> {
    let length = bytes
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |last| last + 1);
    let (whole, rest) = bytes.split_at(length);
    let mut lines: Vec<&[u8]> = whole
        .split_inclusive(|&byte| byte == b'\n')
        .map(without_end)
        .collect();
    let mut faults = Vec::new();

    // A torn line lacks its end and maybe more; an intact one with another byte in place of the end is damage.
    let rest_is_line = payload(without_end(rest)).is_some();
    if rest_is_line {
        lines.push(without_end(rest));
        faults.push(format!("line {} has lost its end", lines.len()));
    }

    let first = lines.first().and_then(|line| payload(line));
    let mut is_old = false;
    let headed = match first.map(version) {
        Some(Some(version @ OLDEST..=VERSION)) => {
            is_old = version < VERSION;
            1
        }
        Some(Some(version)) => return Err(UnknownVersion(version)),
        Some(None) => {
            faults.push("the line that names the format is missing".to_owned());
            0
        }
        None => {
            faults.push("line 1, which names the format, is damaged".to_owned());
            1
        }
    };

    let mut model = Model::default();
    let mut places = Vec::new();
    let mut end = 0;
    for (number, line) in (1..).zip(lines) {
        let start = end;
        end += line.len() as u64 + 1;
        if number <= headed {
            continue;
        }
        let Some(payload) = payload(line) else {
            faults.push(format!("line {number} is damaged"));
            continue;
        };
        let (versions, parts) = match parts(payload) {
            Ok(parts) => parts,
            Err(error) => {
                faults.push(format!("line {number} is not understood: {error}"));
                continue;
            }
        };
        for changes in parts {
            if let Err(error) = model.apply(&changes) {
                faults.push(format!("line {number} does not fit what is before it: {error}"));
                for change in &changes {
                    // Part of it may have been about what a damaged line said; the rest shall not be lost.
                    let _ = model.apply(slice::from_ref(change));
                }
            }
        }
        if !versions.is_empty() {
            places.push(Place { start, end, versions });
        }
    }
    Ok(Contents {
        model,
        length: length as u64,
        torn: !rest.is_empty() && !rest_is_line,
        faults,
        is_old,
        lines: places,
    })
}

/// The versions of a line, and its transactions: a line without versions is a part of a table.
fn parts(payload: &[u8]) -> serde_json::Result<(Vec<Version>, Vec<Vec<Change>>)> {
    if payload.starts_with(b"[") {
        return Ok((Vec::new(), vec![serde_json::from_slice(payload)?]));
    }
    let Line { versions } = serde_json::from_slice(payload)?;
    Ok(versions
        .into_iter()
        .map(|made| (made.version, made.changes))
        .unzip())
}

/// The number of the last version.
fn last(lines: &[Place]) -> u64 {
    let last = lines.last().and_then(|line| line.versions.last());
    last.map_or(0, |version| version.number)
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the state file is damaged")
}

/// A line for a payload: its checksum, itself, the line's end.
fn line(payload: &[u8]) -> Vec<u8> {
    let mut line = format!("{:08x} ", crc32fast::hash(payload)).into_bytes();
    line.extend_from_slice(payload);
    line.push(b'\n');
    line
}

/// The payload of a line (given without its end), if the line is just as [`line`] makes it.
fn payload(line: &[u8]) -> Option<&[u8]> {
    let (checksum, payload) = line.split_at_checked(9)?;
    (checksum == format!("{:08x} ", crc32fast::hash(payload)).as_bytes()).then_some(payload)
}

fn without_end(line: &[u8]) -> &[u8] {
    line.split_last().map_or(line, |(_, line)| line)
}

fn header(version: u32) -> Vec<u8> {
    line(&[FORMAT, version.to_string().as_bytes()].concat())
}

/// The version a payload names, if it is the first line's.
fn version(payload: &[u8]) -> Option<u32> {
    str::from_utf8(payload.strip_prefix(FORMAT)?).ok()?.parse().ok()
}

/// A line of a table.
fn transaction(changes: &[Change]) -> io::Result<Vec<u8>> {
    Ok(line(&serde_json::to_vec(changes)?))
}

/// The shortest file that says what `model` says, one transaction a service: damage then costs one service.
fn snapshot(model: &Model) -> io::Result<Vec<u8>> {
    let mut bytes = header(VERSION);
    let settings: Vec<_> = model.setting_changes().collect();
    if !settings.is_empty() {
        bytes.extend(transaction(&settings)?);
    }
    for entry in model.services().values() {
        bytes.extend(transaction(&entry.changes().collect::<Vec<_>>())?);
    }
    Ok(bytes)
}

/// Writes a file and syncs it; [`put_into_place`] makes it the state file.
fn write_aside(dir: &Path, bytes: &[u8]) -> io::Result<(File, u64)> {
    let path = dir.join(ASIDE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        // Half a file on a full disk helps nobody; if it stays, the next one takes its place.
        let _ = fs::remove_file(&path);
        return Err(error);
    }
    Ok((file, bytes.len() as u64))
}

/// The directory is still to be synced.
fn put_into_place(dir: &Path) -> io::Result<()> {
    fs::rename(dir.join(ASIDE), dir.join(FILE))
}

/// Gives the state file a second name that nobody will overwrite.
fn keep_aside(dir: &Path) -> io::Result<PathBuf> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let mut aside = dir.join(format!("state.corrupt-{seconds}"));
    let mut n = 0;
    loop {
        match fs::hard_link(dir.join(FILE), &aside) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => n += 1,
            Err(error) => return Err(error),
        }
        aside = dir.join(format!("state.corrupt-{seconds}-{n}"));
    }
    // The second name must be on disk before the first one is given to another file.
    sync_directory(dir)?;
    Ok(aside)
}

/// Makes the directory where it is missing; the answer is its absolute name.
fn create_directory(dir: &Path) -> io::Result<PathBuf> {
    let missing = !dir.is_dir();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let dir = dir.canonicalize()?;
    if missing && let Some(parent) = dir.parent() {
        sync_directory(parent)?;
    }
    Ok(dir)
}

fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Takes the directory for this process, until the file is closed.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let cannot = || format!("cannot lock the state directory {}", dir.display());
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(cannot)?;
    // Patience for a moment: a child that the owner has forked shares the lock until it runs its program.
    let patience = Instant::now() + Duration::from_millis(500);
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < patience => sleep(Duration::from_millis(10)),
            Err(TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(&path)
                    .ok()
                    .and_then(|pid| pid.trim().parse::<u32>().ok());
                let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                bail!(
                    "another agent{pid} uses the state directory {}: stop it, or use another --state-dir",
                    dir.display()
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
    }
    // The pid only makes the message above better: the lock holds without it, on a full disk for instance.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", process::id()));
    Ok(file)
}

#[cfg(test)]
mod tests;
