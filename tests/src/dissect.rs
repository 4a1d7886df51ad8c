//! A reader of frames that no one here wrote: tshark, with every checksum verified.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::process::run;

/// What tshark says about one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dissection {
    /// What it has found, from the outermost in: `eth:ethertype:ip:tcp`.
    pub protocols: String,
    /// How many checksums it found right.
    pub right_checksums: usize,
    /// What is wrong: malformed, a wrong checksum, or what tshark calls an error.
    pub complaints: Vec<String>,
}

/// Fields that say whether a checksum is right.
const CHECKSUMS: [&str; 6] = ["ip", "tcp", "udp", "icmp", "icmpv6", "gre"];
/// Preferences: some checksums are not looked at unless one asks for it.
const PREFERENCES: [&str; 3] = [
    "ip.check_checksum:TRUE",
    "tcp.check_checksum:TRUE",
    "udp.check_checksum:TRUE",
];
/// `PI_ERROR` of Wireshark's epan/proto.h.
const ERROR: &str = "8388608";

/// Has tshark read the frames, each for itself.
///
/// # Errors
///
/// When it cannot be run, or does not answer for every frame.
pub fn dissect(frames: &[Vec<u8>]) -> Result<Vec<Dissection>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("frames.pcap");
    fs::write(&file, pcap(frames)?)?;
    let mut tshark = Command::new("tshark");
    tshark
        .args(["-n", "-T", "fields", "-E", "aggregator=,"])
        .arg("-r")
        .arg(&file);
    for preference in PREFERENCES {
        tshark.args(["-o", preference]);
    }
    let fields = [
        "frame.protocols",
        "_ws.malformed",
        "_ws.expert.severity",
        "_ws.expert.message",
    ]
    .map(str::to_owned);
    let checksums = CHECKSUMS.map(|protocol| format!("{protocol}.checksum.status"));
    for field in fields.iter().chain(&checksums) {
        tshark.args(["-e", field]);
    }
    let told = run(tshark)?;
    let found: Vec<_> = told.lines().map(read).collect::<Result<_>>()?;
    ensure!(
        found.len() == frames.len(),
        "tshark has read {} of {} frames",
        found.len(),
        frames.len()
    );
    Ok(found)
}

/// One line of tshark's fields.
fn read(line: &str) -> Result<Dissection> {
    let mut fields = line.split('\t');
    let mut next = || {
        fields
            .next()
            .with_context(|| format!("tshark says only {line:?}"))
    };
    let protocols = next()?.to_owned();
    let mut complaints = Vec::new();
    if !next()?.is_empty() {
        complaints.push("malformed".to_owned());
    }
    let severities = next()?;
    let messages = next()?;
    if severities.split(',').any(|severity| severity == ERROR) {
        complaints.push(messages.to_owned());
    }
    let mut right_checksums = 0;
    for protocol in CHECKSUMS {
        for status in next()?.split(',') {
            match status {
                "" | "2" | "3" | "Unverified" | "Not present" => {}
                "1" | "Good" => right_checksums += 1,
                other => complaints.push(format!("{protocol}: checksum {other}")),
            }
        }
    }
    Ok(Dissection {
        protocols,
        right_checksums,
        complaints,
    })
}

/// A capture file of Ethernet frames (draft-ietf-opsawg-pcap).
fn pcap(frames: &[Vec<u8>]) -> Result<Vec<u8>> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    const LONGEST: u32 = 0x4_0000;
    const ETHERNET: u32 = 1;
    let mut file = Vec::new();
    file.extend(MAGIC.to_be_bytes());
    file.extend([0, 2, 0, 4]);
    for word in [0, 0, LONGEST, ETHERNET] {
        file.extend(word.to_be_bytes());
    }
    for frame in frames {
        let length = u32::try_from(frame.len())?;
        for word in [0, 0, length, length] {
            file.extend(word.to_be_bytes());
        }
        file.extend(frame);
    }
    Ok(file)
}
