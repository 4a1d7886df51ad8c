//! Clients over TCP: connections that stay open, and slow downloads with curl.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{ask::LIMIT, lab::Lab, process::Process};

/// A connection of the client's that stays open, and over which it can ask again and again.
#[derive(Debug)]
pub struct OpenConnection {
    stream: BufReader<TcpStream>,
    /// Who answered first.
    pub server: String,
}

impl OpenConnection {
    /// Connects from the client and asks once.
    ///
    /// # Errors
    ///
    /// When the connection fails, or nobody answers.
    pub fn new(lab: &Lab) -> Result<Self> {
        Self::from(lab, SocketAddr::new(lab.family().client(), 0))
    }

    /// As [`OpenConnection::new`], from an address of the client's, and a port that may have been used just now.
    ///
    /// # Errors
    ///
    /// As [`OpenConnection::new`], and when address or port are not to be had.
    pub fn from(lab: &Lab, source: impl Into<SocketAddr>) -> Result<Self> {
        let (source, target) = (source.into(), lab.service());
        let stream = lab.client().enter(|| {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
            socket.connect_timeout(&target.into(), LIMIT)?;
            io::Result::Ok(TcpStream::from(socket))
        })??;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut connection = Self {
            stream: BufReader::new(stream),
            server: String::new(),
        };
        connection.server = connection.ask()?;
        Ok(connection)
    }

    /// The client's address and port.
    ///
    /// # Errors
    ///
    /// When the kernel cannot tell.
    pub fn client(&self) -> Result<SocketAddr> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    /// Sends a request for `/`.
    ///
    /// # Errors
    ///
    /// When the connection has ended.
    pub fn send(&mut self) -> Result<()> {
        let request = "GET / HTTP/1.1\r\nHost: lab\r\n\r\n";
        Ok(self.stream.get_mut().write_all(request.as_bytes())?)
    }

    /// The page that answers a request, without its newline.
    ///
    /// # Errors
    ///
    /// When the connection has ended, or nothing comes within [`LIMIT`].
    pub fn receive(&mut self) -> Result<String> {
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

    /// Sends a request and returns the page that answers it.
    ///
    /// # Errors
    ///
    /// As [`OpenConnection::receive`].
    pub fn ask(&mut self) -> Result<String> {
        self.send()?;
        self.receive()
    }

    /// Ends the connection by a reset, in place of a FIN.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn reset(self) -> Result<()> {
        Ok(SockRef::from(self.stream.get_ref()).set_linger(Some(Duration::ZERO))?)
    }

    /// Nothing comes for a while, not even the connection's end.
    ///
    /// # Errors
    ///
    /// When something does.
    pub fn expect_silence(&mut self, time: Duration) -> Result<()> {
        self.stream.get_mut().set_read_timeout(Some(time))?;
        let heard = self.stream.fill_buf().map(<[u8]>::len);
        self.stream.get_mut().set_read_timeout(Some(LIMIT))?;
        match heard {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("the connection should be silent"),
            Ok(length) => bail!("the connection should be silent, but {length} bytes came"),
        }
    }
}

/// A download of the big file with curl, paced by curl, so that the server always has more to send.
#[derive(Debug)]
pub struct Download {
    process: Process,
    directory: tempfile::TempDir,
}

/// How a [`Download`] ended.
#[derive(Debug)]
pub struct Ended {
    /// curl's exit status.
    pub status: Option<i32>,
    /// What curl wrote to standard error.
    pub message: String,
    /// How long it took from the call that waited for it.
    pub waited: Duration,
    /// What has arrived.
    pub body: Vec<u8>,
}

impl Download {
    /// Starts curl in the client's namespace, with `arguments` after the lab's own.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(lab: &Lab, arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = lab.curl();
        command
            .args(arguments)
            .arg("--output")
            .arg(directory.path().join("body"))
            .arg(lab.url("/big"))
            .stderr(Stdio::from(fs::File::create(directory.path().join("stderr"))?));
        Ok(Self {
            process: Process::spawn(command)?,
            directory,
        })
    }

    /// Bytes that have arrived so far.
    pub fn received(&self) -> u64 {
        fs::metadata(self.body()).map_or(0, |metadata| metadata.len())
    }

    /// Whether curl still runs.
    ///
    /// # Errors
    ///
    /// When the kernel cannot tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Waits for curl's end.
    ///
    /// # Errors
    ///
    /// When it still runs after `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Ended> {
        let started = Instant::now();
        let status = self.process.wait(limit)?;
        Ok(Ended {
            status: status.code(),
            waited: started.elapsed(),
            message: fs::read_to_string(self.directory.path().join("stderr"))?,
            body: fs::read(self.body()).unwrap_or_default(),
        })
    }

    fn body(&self) -> PathBuf {
        self.directory.path().join("body")
    }
}
