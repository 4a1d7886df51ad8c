//! The directory of pins on the BPF file system, and what is in it.
//!
//! `PIN-DIR/v1/g3/MAP` are the maps and `PIN-DIR/v1/g3/program` the program of generation 3 of layout
//! version 1; `PIN-DIR/v1/links/native-3` holds the program on the interface of index 3 (the BPF file
//! system takes no dots, which interfaces' names may have). A new generation is
//! made when a map changes its size: its directory is complete when `program` is in it. The live one
//! is the one whose program the links run, and all others are left-overs.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use aya::{
    maps::{Map, MapData, MapInfo},
    programs::ProgramInfo,
};
use lvs_xdp_common::abi::ABI_VERSION;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{Mode, tables::Shape};

/// Where the BPF file system is mounted by systemd, bpftool and everybody else.
const BPF_FS: &str = "/sys/fs/bpf";
const PROGRAM: &str = "program";
const LINKS: &str = "links";

/// The pins of one director.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    root: PathBuf,
    /// On the directory given, for as long as any clone of this lives: two agents would each undo
    /// what the other has written into the maps.
    _lock: Arc<File>,
}

fn generations(directory: &Path) -> anyhow::Result<Vec<u32>> {
    let mut numbers: Vec<u32> = entries(directory)?
        .into_iter()
        .filter_map(|name| name.strip_prefix('g').and_then(|number| number.parse().ok()))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The pinned program of the newest generation, whoever has loaded it, without a claim to the pins.
pub(super) fn newest_program(root: &Path) -> anyhow::Result<PathBuf> {
    let directory = root.join(format!("v{ABI_VERSION}"));
    let newest = generations(&directory)?
        .last()
        .copied()
        .with_context(|| format!("no program is pinned in {}", root.display()))?;
    Ok(directory.join(format!("g{newest}")).join(PROGRAM))
}

/// Whether the program is pinned as being on an interface, by an agent of this layout.
pub fn is_linked(root: &Path, if_index: u32) -> bool {
    let links = root.join(format!("v{ABI_VERSION}")).join(LINKS);
    [Mode::Native, Mode::Generic]
        .into_iter()
        .any(|mode| links.join(link_name(if_index, mode)).exists())
}

/// The links that are pinned in a directory.
fn links(directory: &Path) -> anyhow::Result<Vec<LinkPin>> {
    Ok(entries(directory)?
        .into_iter()
        .filter_map(|name| {
            let (mode, if_index) = name.split_once('-')?;
            Some(LinkPin {
                path: directory.join(&name),
                if_index: if_index.parse().ok()?,
                mode: mode.parse().ok()?,
            })
        })
        .collect())
}

/// Names of the directories of other layouts' pins.
fn other_layouts(root: &Path) -> anyhow::Result<Vec<String>> {
    let is_other = |name: &String| {
        let version = name.strip_prefix('v');
        version.is_some_and(|version| version.parse() != Ok(ABI_VERSION))
    };
    Ok(entries(root)?.into_iter().filter(is_other).collect())
}

fn link_name(if_index: u32, mode: Mode) -> String {
    format!("{mode}-{if_index}")
}

/// The mode in which a link was attached, kept in the pin's name: the kernel does not tell it of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkPin {
    pub(super) path: PathBuf,
    pub(super) if_index: u32,
    pub(super) mode: Mode,
}

/// A generation of pins, as somebody finds it who has no claim to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Generation {
    /// Its number.
    pub(crate) number: u32,
    /// The kernel's id of its program; `None` where it is not complete.
    pub(crate) program: Option<u32>,
    /// The memory of its maps, in bytes; those that are shared with another generation count for each.
    pub(crate) bytes: u64,
}

/// All that is pinned, as somebody finds it who has no claim to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Pinned {
    /// The directory is on a BPF file system, or would be if it were made.
    pub(crate) is_bpf: bool,
    /// Directories of other layouts' pins.
    pub(crate) other_layouts: Vec<String>,
    /// This layout's generations.
    pub(crate) generations: Vec<Generation>,
    /// Indices of the interfaces whose links are pinned.
    pub(crate) linked: Vec<u32>,
}

impl Pinned {
    /// Looks at what is there.
    ///
    /// # Errors
    ///
    /// Where a directory cannot be read; that there is none is no error.
    pub(crate) fn read(root: &Path) -> anyhow::Result<Self> {
        let directory = root.join(format!("v{ABI_VERSION}"));
        let mut pinned = Self {
            is_bpf: is_bpf(root),
            other_layouts: other_layouts(root)?,
            generations: Vec::new(),
            linked: links(&directory.join(LINKS))?
                .into_iter()
                .map(|link| link.if_index)
                .collect(),
        };
        for number in generations(&directory)? {
            let directory = directory.join(format!("g{number}"));
            let maps = entries(&directory)?.into_iter();
            let maps = maps.filter_map(|name| MapInfo::from_pin(directory.join(name)).ok());
            let program = ProgramInfo::from_pin(directory.join(PROGRAM));
            pinned.generations.push(Generation {
                number,
                program: program.ok().map(|program| program.id()),
                bytes: maps
                    .map(|map| u64::from(map.max_entries()) * u64::from(map.value_size()))
                    .sum(),
            });
        }
        Ok(pinned)
    }
}

impl Pins {
    /// Opens the directory, making it where it is missing, and mounting the BPF file system where nobody has.
    ///
    /// # Errors
    ///
    /// Not a BPF file system; another agent has it; pins of another layout's version are there.
    pub(super) fn open(root: &Path) -> anyhow::Result<Self> {
        mount_if_missing(root)?;
        let has_dot = root
            .file_name()
            .is_some_and(|name| name.to_string_lossy().contains('.'));
        if has_dot && !root.exists() {
            bail!(
                "the BPF file system takes no names with dots: name a --pin-dir other than {}",
                root.display()
            );
        }
        let lock = lock(root)?;
        if let Some(version) = other_layouts(root)?.first() {
            bail!(
                "{} holds the maps of another version of lvs-xdp (layout {version}, this one has v{ABI_VERSION}): \
                 run `lvs-xdp unload` with that version first, or name another --pin-dir",
                root.display()
            );
        }
        let pins = Self {
            root: root.join(format!("v{ABI_VERSION}")),
            _lock: Arc::new(lock),
        };
        fs::create_dir_all(pins.links_directory())
            .with_context(|| format!("cannot make {}", pins.root.display()))?;
        Ok(pins)
    }

    fn links_directory(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    /// The directory of a generation.
    pub(super) fn generation(&self, number: u32) -> PathBuf {
        self.root.join(format!("g{number}"))
    }

    /// Numbers of the generations that there are, complete or not.
    pub(super) fn generations(&self) -> anyhow::Result<Vec<u32>> {
        generations(&self.root)
    }

    /// The pinned links.
    pub(super) fn links(&self) -> anyhow::Result<Vec<LinkPin>> {
        links(&self.links_directory())
    }

    /// Where the link of an interface is to be pinned.
    pub(super) fn link(&self, if_index: u32, mode: Mode) -> PathBuf {
        self.links_directory().join(link_name(if_index, mode))
    }

    /// The live generation: the one whose program is `running`, or, where nothing runs, the last complete one.
    pub(super) fn live(&self, running: Option<u32>) -> anyhow::Result<Option<u32>> {
        let mut complete = None;
        for number in self.generations()? {
            let Ok(program) = ProgramInfo::from_pin(self.program(number)) else {
                continue;
            };
            if running.is_some() && running == Some(program.id()) {
                return Ok(Some(number));
            }
            complete = Some(number);
        }
        // A program that runs and is pinned nowhere comes of a crash between the swap of the links and
        // the swap of the pin: then its maps tell the generation.
        if let Some(id) = running {
            return self.by_maps(id);
        }
        Ok(complete)
    }

    fn by_maps(&self, program: u32) -> anyhow::Result<Option<u32>> {
        let maps = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .find(|info| info.id() == program)
            .map(|info| info.map_ids())
            .transpose()?
            .flatten()
            .unwrap_or_default();
        for number in self.generations()?.into_iter().rev() {
            let hot = MapInfo::from_pin(self.generation(number).join(lvs_xdp_common::abi::name::HOT));
            if hot.is_ok_and(|info| maps.contains(&info.id())) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Where a generation's program is pinned.
    pub(super) fn program(&self, number: u32) -> PathBuf {
        self.generation(number).join(PROGRAM)
    }

    /// Which of these shapes differ from what a generation has pinned.
    pub(super) fn differing(&self, number: u32, shapes: &[Shape]) -> anyhow::Result<Vec<Shape>> {
        let directory = self.generation(number);
        let mut differing = Vec::new();
        for shape in shapes {
            let info = MapInfo::from_pin(directory.join(shape.name))
                .with_context(|| format!("{} has no map {}", directory.display(), shape.name))?;
            if info.key_size() != 4 || info.value_size() != shape.value_size {
                bail!(
                    "{} is no map of this version of lvs-xdp (its rows have {} bytes, not {}): run `lvs-xdp unload` \
                     with the version that made it, or name another --pin-dir",
                    directory.join(shape.name).display(),
                    info.value_size(),
                    shape.value_size
                );
            }
            if info.max_entries() != shape.entries {
                differing.push(*shape);
            }
        }
        Ok(differing)
    }

    /// Pins a map of one generation in another one, too.
    pub(super) fn share(&self, from: u32, to: u32, name: &str) -> anyhow::Result<()> {
        let map = MapData::from_pin(self.generation(from).join(name))?;
        map.pin(self.generation(to).join(name))
            .with_context(|| format!("cannot pin the map {name} again"))
    }

    /// Removes every generation but the one named.
    pub(super) fn keep_only(&self, number: Option<u32>) -> anyhow::Result<()> {
        for other in self.generations()? {
            if Some(other) != number {
                remove(&self.generation(other))?;
            }
        }
        Ok(())
    }

    /// Removes everything, the links last: without them the program is gone from the interfaces.
    pub(super) fn remove_all(&self) -> anyhow::Result<()> {
        remove(&self.links_directory())?;
        self.keep_only(None)?;
        remove(&self.root)?;
        if let Some(parent) = self.root.parent() {
            // Somebody else's pins may be there.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// Opens a pinned map as the typed map `T`.
pub(super) fn open_map<T: TryFrom<Map, Error = aya::maps::MapError>>(
    directory: &Path,
    name: &str,
) -> anyhow::Result<T> {
    let data =
        MapData::from_pin(directory.join(name)).with_context(|| format!("cannot open the map {name}"))?;
    Ok(T::try_from(Map::from_map_data(data)?)?)
}

fn entries(directory: &Path) -> anyhow::Result<Vec<String>> {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", directory.display())),
    };
    listing
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Takes the directory for this process, making it where it is missing.
fn lock(root: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    let directory = File::open(root).with_context(|| format!("cannot open {}", root.display()))?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => bail!(
            "another agent uses the pins in {}: end it first, or name another --pin-dir",
            root.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", root.display()))
        }
    }
}

/// Whether a path is on a BPF file system, or would be if it were made.
fn is_bpf(path: &Path) -> bool {
    let existing = path.ancestors().find(|path| path.exists());
    let found = statfs(existing.unwrap_or(Path::new("/")));
    found.is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts the BPF file system where nobody has, if the directory is to be there.
pub(super) fn mount_if_missing(root: &Path) -> anyhow::Result<()> {
    if is_bpf(root) {
        return Ok(());
    }
    if !root.starts_with(BPF_FS) {
        bail!(
            "{} is not on a BPF file system: choose a --pin-dir below {BPF_FS}",
            root.display()
        );
    }
    fs::create_dir_all(BPF_FS).with_context(|| format!("cannot make {BPF_FS}"))?;
    mount(
        Some("bpf"),
        BPF_FS,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .with_context(|| {
        format!(
            "cannot mount the BPF file system at {BPF_FS}: the kernel must have CONFIG_BPF_SYSCALL, and a \
             container must be given the mount by its host"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_name_the_layout_that_there_is() {
        const DIRECTORY: &str = "/sys/fs/bpf/lvs-xdp/v";
        for document in [
            include_str!("../../../README.md"),
            include_str!("../../../ARCHITECTURE.md"),
        ] {
            let versions = document.split(DIRECTORY).skip(1);
            let versions = Vec::from_iter(versions.map(|rest| rest.split('/').next()));
            assert!(!versions.is_empty());
            let now = ABI_VERSION.to_string();
            assert!(
                versions.iter().all(|version| *version == Some(now.as_str())),
                "layout {now}, and the documents say {versions:?}"
            );
        }
    }
}
