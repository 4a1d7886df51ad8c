//! nginx on a real server, with a page that says whose it is.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::{agent::tail, netns::Netns, process::Process, stale::DIRECTORY_PREFIX};

/// How long nginx may take until it accepts connections, on an emulated processor too.
const START_LIMIT: Duration = Duration::from_secs(40);

/// A web server on port 80 of all addresses of a host, and, without TLS, on 443 and 8080.
///
/// - `GET /` answers the host's name and a newline, as plain text;
/// - `GET /big` answers the file given to [`WebServer::start`];
/// - `PUT /upload/NAME` keeps the body, see [`WebServer::uploaded`].
#[derive(Debug)]
pub struct WebServer {
    process: Process,
    name: String,
    netns: Netns,
    directory: TempDir,
}

impl WebServer {
    /// Starts nginx in `netns`, as the host `name`, and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not listen in time; the error carries its log.
    pub fn start(netns: &Netns, name: &str, big: &Path) -> Result<Self> {
        let prefix = format!("{DIRECTORY_PREFIX}{}-{name}-", std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        for inside in ["upload", "temp"] {
            fs::create_dir(directory.path().join(inside))?;
        }
        let configuration = directory.path().join("nginx.conf");
        fs::write(&configuration, configuration_text(directory.path(), name, big))?;
        let log = directory.path().join("error.log");
        let mut command = netns.command("nginx");
        // -e: what goes wrong before the configuration is read is logged there too.
        command
            .arg("-p")
            .arg(directory.path())
            .arg("-e")
            .arg(&log)
            .arg("-c")
            .arg(&configuration);
        let stderr = fs::File::options().create(true).append(true).open(&log)?;
        command.stderr(stderr);
        let mut process = Process::spawn(command)?;
        wait_until_it_listens(netns, &mut process)
            .with_context(|| format!("nginx on {name} says:\n{}", tail(&log)))?;
        Ok(Self {
            process,
            name: name.to_owned(),
            netns: netns.clone(),
            directory,
        })
    }

    /// The host's name, which is what its page says.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// nginx's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The host's namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The file that `PUT /upload/NAME` to this server has made, if one has.
    pub fn uploaded(&self, name: &str) -> Option<PathBuf> {
        let path = self.directory.path().join("upload").join(name);
        path.exists().then_some(path)
    }

    /// One line a request answered, since the start: the client's address and port, the server's
    /// address, the request line, the status.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn access_log(&self) -> Result<String> {
        fs::read_to_string(self.directory.path().join("access.log")).context("reading nginx's access log")
    }
}

fn wait_until_it_listens(netns: &Netns, process: &mut Process) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(status) = process.ended()? {
            bail!("nginx ended at once, {status}");
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let connected = netns.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)))?;
        match connected {
            Ok(_stream) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error)
                    .with_context(|| format!("connecting to nginx for {} s", START_LIMIT.as_secs()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// One process, no master: what is started is what is killed, and it stays root, who alone may enter the
/// lab's directories.
fn configuration_text(directory: &Path, name: &str, big: &Path) -> String {
    let directory = directory.display();
    let big = big.display();
    format!(
        r#"daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {directory}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  log_format lab '$remote_addr:$remote_port $server_addr "$request" $status';
  access_log {directory}/access.log lab;
  client_body_temp_path {directory}/temp;
  proxy_temp_path {directory}/temp;
  fastcgi_temp_path {directory}/temp;
  uwsgi_temp_path {directory}/temp;
  scgi_temp_path {directory}/temp;
  client_max_body_size 100m;
  sendfile on;
  default_type text/plain;
  server {{
    listen 0.0.0.0:80 backlog=4096;
    listen [::]:80 ipv6only=on backlog=4096;
    listen 0.0.0.0:443;
    listen [::]:443 ipv6only=on;
    listen 0.0.0.0:8080;
    listen [::]:8080 ipv6only=on;
    location = / {{ return 200 "{name}\n"; }}
    location = /big {{ default_type application/octet-stream; alias {big}; }}
    location /upload/ {{ root {directory}; dav_methods PUT; }}
  }}
}}
"#
    )
}
