//! Clients that notice what is lost: connections that stay open, transfers, and a steady request loop.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lvs_xdp_tests::{
    lab::{CLIENT, Lab, VIP},
    load::{Load, Report},
    process::Process,
};

use crate::LIMIT;

/// How long a request loop lasts.
pub(crate) const LOOP_TIME: Duration = Duration::from_secs(10);
/// Its requests a second.
pub(crate) const LOOP_RATE: u32 = 200;
/// Its requests.
pub(crate) const LOOP_REQUESTS: usize = 2_000;

/// A connection of the client's that stays open, and over which it can ask again and again.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    stream: BufReader<TcpStream>,
    /// Who answered first.
    pub(crate) server: String,
}

impl OpenConnection {
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let target = SocketAddr::from((VIP, 80));
        let stream = lab
            .client()
            .enter(|| TcpStream::connect_timeout(&target, LIMIT))??;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut connection = Self {
            stream: BufReader::new(stream),
            server: String::new(),
        };
        connection.server = connection.ask()?;
        Ok(connection)
    }

    /// The client's address and port.
    pub(crate) fn client(&self) -> Result<SocketAddr> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    pub(crate) fn send(&mut self) -> Result<()> {
        let request = format!("GET / HTTP/1.1\r\nHost: {VIP}\r\n\r\n");
        Ok(self.stream.get_mut().write_all(request.as_bytes())?)
    }

    /// The page that answers a request, without its newline.
    pub(crate) fn receive(&mut self) -> Result<String> {
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(String::from_utf8(body)?.trim_end().to_owned())
    }

    pub(crate) fn ask(&mut self) -> Result<String> {
        self.send()?;
        self.receive()
    }

    /// Nothing comes for a while, not even the connection's end.
    pub(crate) fn expect_silence(&mut self, time: Duration) -> Result<()> {
        self.stream.get_mut().set_read_timeout(Some(time))?;
        let heard = self.stream.fill_buf().map(<[u8]>::len);
        self.stream.get_mut().set_read_timeout(Some(LIMIT))?;
        match heard {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("the connection should be silent"),
            Ok(length) => bail!("the connection should be silent, but {length} bytes came"),
        }
    }
}

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
        download.arg(format!("http://{VIP}/big"));
        let mut upload = lab.curl();
        upload.args(slow).arg("--upload-file").arg(lab.big_file());
        upload.arg(format!("http://{VIP}/upload/copy"));
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
pub(crate) fn request_loop() -> Load {
    let ports = 10_000..10_000 + u16::try_from(LOOP_REQUESTS).unwrap_or(u16::MAX);
    Load {
        sources: ports.map(|port| SocketAddrV4::new(CLIENT, port)).collect(),
        ..Load::steady(VIP, LOOP_RATE, LOOP_TIME)
    }
}

/// Every request of the loop was answered.
pub(crate) fn assert_none_lost(what: &str, report: &Report) {
    assert_eq!(report.failures(), [], "{what}");
    assert_eq!(report.outcomes.len(), LOOP_REQUESTS, "{what}");
    let slowest = report.outcomes.iter().map(|outcome| outcome.time).max();
    eprintln!("{what}: the slowest request took {slowest:?}");
}
