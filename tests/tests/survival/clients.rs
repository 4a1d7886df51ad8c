//! Clients that notice what is lost: transfers, and a steady request loop.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lvs_xdp_tests::{
    lab::Lab,
    load::{Load, Report},
    process::Process,
};

/// How long a request loop lasts.
pub(crate) const LOOP_TIME: Duration = Duration::from_secs(10);
/// Its requests a second.
pub(crate) const LOOP_RATE: u32 = 200;
/// Its requests.
pub(crate) const LOOP_REQUESTS: usize = 2_000;

/// A download and an upload of the big file, both at 4 MB/s: some 12 s.
pub(crate) struct Transfers {
    download: Process,
    upload: Process,
    downloaded: PathBuf,
    _directory: tempfile::TempDir,
}

impl Transfers {
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let downloaded = directory.path().join("downloaded");
        let slow = ["--limit-rate", "4M", "--max-time", "60"];
        let mut download = lab.curl();
        download.args(slow).arg("--output").arg(&downloaded);
        download.arg(lab.url("/big"));
        let mut upload = lab.curl();
        upload.args(slow).arg("--upload-file").arg(lab.big_file());
        upload.arg(lab.url("/upload/copy"));
        Ok(Self {
            download: Process::spawn(download)?,
            upload: Process::spawn(upload)?,
            downloaded,
            _directory: directory,
        })
    }

    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.download.ended()?.is_none() && self.upload.ended()?.is_none())
    }

    /// Waits for their ends and compares what arrived with what was sent.
    pub(crate) fn finish(mut self, lab: &Lab) -> Result<()> {
        for (what, process) in [("download", &mut self.download), ("upload", &mut self.upload)] {
            let status = process.wait(Duration::from_secs(60))?;
            ensure!(status.success(), "the {what} failed, {status}");
        }
        let uploaded = lab
            .real_servers()
            .iter()
            .find_map(|server| server.uploaded("copy"))
            .context("no real server has the upload")?;
        let sent = fs::read(lab.big_file())?;
        ensure!(fs::read(&self.downloaded)? == sent, "the download differs");
        ensure!(fs::read(uploaded)? == sent, "the upload differs");
        Ok(())
    }
}

/// The request loop, each request from a port of its own: a client that takes a port again soon enough
/// goes on with the entry that is there, and is not counted again.
pub(crate) fn request_loop(lab: &Lab) -> Load {
    let client = lab.family().client();
    let ports = 10_000..10_000 + u16::try_from(LOOP_REQUESTS).unwrap_or(u16::MAX);
    Load {
        sources: ports.map(|port| SocketAddr::new(client, port)).collect(),
        ..Load::steady(lab.vip(), LOOP_RATE, LOOP_TIME)
    }
}

/// Every request of the loop was answered.
pub(crate) fn assert_none_lost(what: &str, report: &Report) {
    assert_eq!(report.failures(), [], "{what}");
    assert_eq!(report.outcomes.len(), LOOP_REQUESTS, "{what}");
    let slowest = report.outcomes.iter().map(|outcome| outcome.time).max();
    eprintln!("{what}: the slowest request took {slowest:?}");
}
