//! The record of what `setup` changed, by network namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io,
    net::IpAddr,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    ptr,
};

use anyhow::{Context as _, anyhow};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

/// What was changed in one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Namespace {
    /// Sysctls, by their path below `/proc/sys`, and the value each had before.
    #[serde(default)]
    pub(super) sysctls: BTreeMap<String, String>,
    /// Addresses that were added, and the interface each was added to.
    #[serde(default)]
    pub(super) addresses: BTreeMap<IpAddr, String>,
    /// Tunnel devices that were set up.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) devices: BTreeSet<String>,
    /// The address that a tunnel device was given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) held: BTreeMap<String, IpAddr>,
    /// The mode that a tunnel device had before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) modes: BTreeMap<String, String>,
    /// Ports of GUE that were opened, in the words of `ip fou`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) ports: BTreeSet<String>,
}

/// The file: several namespaces may share one `/run`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    namespaces: BTreeMap<String, Namespace>,
}

/// The record, locked against others until it is dropped.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    key: String,
    content: Content,
    _lock: Flock<File>,
}

impl Record {
    /// What is on record for this network namespace.
    pub(super) fn read(path: &Path) -> anyhow::Result<Namespace> {
        Ok(read(path)?
            .namespaces
            .remove(&namespace_key()?)
            .unwrap_or_default())
    }

    /// Waits until nobody else has it, and reads it.
    pub(super) fn lock(path: &Path) -> anyhow::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = Path::new(&lock);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock);
        let file = file.with_context(|| format!("cannot open {}", lock.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| anyhow!("cannot lock {}: {error}", lock.display()))?;
        let key = namespace_key()?;
        Ok(Self {
            path: path.to_owned(),
            key,
            content: read(path)?,
            _lock: lock,
        })
    }

    /// What is on record for this network namespace, to be changed and saved.
    pub(super) fn namespace(&mut self) -> &mut Namespace {
        self.content.namespaces.entry(self.key.clone()).or_default()
    }

    /// Writes it, in one step; a record with nothing in it is removed.
    pub(super) fn save(&mut self) -> anyhow::Result<()> {
        self.content
            .namespaces
            .retain(|_, namespace| *namespace != Namespace::default());
        let save = || {
            if self.content.namespaces.is_empty() {
                return match fs::remove_file(&self.path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    result => result,
                };
            }
            let mut new = self.path.as_os_str().to_owned();
            new.push(".new");
            fs::write(&new, serde_json::to_vec_pretty(&self.content)?)?;
            fs::rename(&new, &self.path)
        };
        save().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn read(path: &Path) -> anyhow::Result<Content> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "{} is damaged: look at it, undo by hand what it says, and remove it",
                path.display()
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Content::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// What tells this network namespace from all others since boot: its cookie (Linux 5.14). An older
/// kernel has only the inode, which it gives to a new namespace when the old one is gone.
fn namespace_key() -> anyhow::Result<String> {
    match namespace_cookie() {
        Ok(cookie) => Ok(format!("cookie:{cookie}")),
        Err(_) => {
            let namespace =
                fs::metadata("/proc/thread-self/ns/net").context("cannot tell the network namespace")?;
            Ok(format!("inode:{}", namespace.ino()))
        }
    }
}

fn namespace_cookie() -> io::Result<u64> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are those of live variables, and the length is that of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            ptr::from_mut(&mut cookie).cast(),
            &mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_again_and_removed_when_empty() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run/realserver.json");
        assert_eq!(
            Record::read(&path).expect("no file is an empty record"),
            Namespace::default()
        );
        let mut record = Record::lock(&path).expect("it can be made");
        record
            .namespace()
            .sysctls
            .insert("net/ipv4/conf/all/arp_ignore".into(), "0".into());
        record.save().expect("it can be written");
        let kept = record.namespace().clone();
        drop(record);
        assert_eq!(Record::read(&path).expect("it can be read"), kept);
        let mut record = Record::lock(&path).expect("it can be read");
        *record.namespace() = Namespace::default();
        record.save().expect("it can be removed");
        assert!(!path.exists());
        record.save().expect("there is nothing to remove");
    }

    #[test]
    fn a_damaged_record_is_named_and_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("realserver.json");
        fs::write(&path, "{").expect("it can be written");
        let error = Record::lock(&path).expect_err("it is damaged").to_string();
        assert!(error.contains("realserver.json is damaged"), "{error}");
        assert!(path.exists());
    }
}
