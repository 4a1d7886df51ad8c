//! Where a client finds its agent: at a socket of this host, or over the network; and what it shows there.

use std::{
    env, fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::{Uri, header::HeaderValue};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};

use super::{
    access::{read_identity, read_roots, read_token},
    client::{SOCKET_VARIABLE, socket_path},
};
use crate::tls;

/// The environment variable that names an agent over the network.
pub const CONNECT_VARIABLE: &str = "LVS_XDP_CONNECT";

/// What the command line says of the agent to talk to. The environment stands in for what it does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientOptions {
    /// The agent's socket: of the environment [`SOCKET_VARIABLE`].
    pub socket: Option<PathBuf>,
    /// The agent's address over the network, as `https://HOST:PORT`: of the environment [`CONNECT_VARIABLE`].
    pub connect: Option<String>,
    /// The file whose first token is shown: of the environment `LVS_XDP_TOKEN_FILE`.
    pub token_file: Option<PathBuf>,
    /// Who issues the agent's certificate, a file in PEM; whom this host trusts where there is none: of the environment
    /// `LVS_XDP_TLS_CA`.
    pub tls_ca: Option<PathBuf>,
    /// The client's own certificate, a file in PEM: of the environment `LVS_XDP_TLS_CERT`.
    pub tls_cert: Option<PathBuf>,
    /// Its key, a file in PEM: of the environment `LVS_XDP_TLS_KEY`.
    pub tls_key: Option<PathBuf>,
}

impl ClientOptions {
    /// Where the agent is.
    ///
    /// # Errors
    ///
    /// What does not go together, or what is wrong with a file, on one line.
    pub fn target(self) -> Result<Target, String> {
        self.with(|name| env::var_os(name).filter(|value| !value.is_empty()))
            .open()
    }

    /// The agent's socket, whatever else is said.
    pub fn socket_path(&self) -> PathBuf {
        socket_path(self.socket.clone())
    }

    /// The same, with what the environment says of it. A socket or an address of the command line is one in place of
    /// both of the environment, and files of the environment are for an address only.
    fn with(self, variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        if self.socket.is_some() {
            return self;
        }
        let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
        let connect = self.connect.clone();
        let Some(connect) = connect.or_else(|| variable(CONNECT_VARIABLE).map(text)) else {
            return self;
        };
        let path = |option: Option<PathBuf>, name| option.or_else(|| variable(name).map(PathBuf::from));
        Self {
            socket: None,
            connect: Some(connect),
            token_file: path(self.token_file, "LVS_XDP_TOKEN_FILE"),
            tls_ca: path(self.tls_ca, "LVS_XDP_TLS_CA"),
            tls_cert: path(self.tls_cert, "LVS_XDP_TLS_CERT"),
            tls_key: path(self.tls_key, "LVS_XDP_TLS_KEY"),
        }
    }

    fn open(self) -> Result<Target, String> {
        let Self {
            socket,
            connect,
            token_file,
            tls_ca,
            tls_cert,
            tls_key,
        } = self;
        let Some(url) = connect else {
            let files = [
                ("--token-file", &token_file),
                ("--tls-ca", &tls_ca),
                ("--tls-cert", &tls_cert),
                ("--tls-key", &tls_key),
            ];
            if let Some((option, _)) = files.into_iter().find(|(_, file)| file.is_some()) {
                return Err(format!(
                    "{option} is for an agent over the network: name it with --connect https://HOST:PORT"
                ));
            }
            return Ok(socket_path(socket).into());
        };
        if socket.is_some() {
            return Err("--socket and --connect name two agents: name one".to_owned());
        }
        let (is_secure, host, port) = parse(&url)?;
        if tls_cert.is_some() != tls_key.is_some() {
            return Err("--tls-cert and --tls-key belong together: name both".to_owned());
        }
        if !is_secure && (tls_ca.is_some() || tls_cert.is_some()) {
            return Err(format!(
                "`{url}` is without TLS: write https://, or leave out the --tls options"
            ));
        }
        if token_file.is_none() && tls_cert.is_none() {
            return Err(format!(
                "the agent at `{url}` lets nobody in without a token or a certificate: name a --token-file, or \
                 --tls-cert and --tls-key"
            ));
        }
        let one_line = |error: anyhow::Error| format!("{error:#}");
        let tls = if is_secure {
            let identity = tls_cert.as_deref().zip(tls_key.as_deref());
            Some(session(&host, tls_ca.as_deref(), identity).map_err(one_line)?)
        } else {
            None
        };
        let authorization = match token_file {
            Some(path) => {
                let token = read_token(&path).map_err(one_line)?;
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|_| format!("the token of {} is none for a header", path.display()))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        Ok(Target(Kind::Remote(Arc::new(Remote {
            url,
            host,
            port,
            tls,
            authorization,
        }))))
    }
}

/// Whether there is to be TLS, the host without brackets, and the port.
fn parse(url: &str) -> Result<(bool, String, u16), String> {
    let wrong = || format!("`{url}` is no address of an agent: write one such as https://192.0.2.1:7143");
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let is_secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(wrong()),
    };
    let authority = uri.authority().ok_or_else(wrong)?;
    let is_bare =
        !authority.as_str().contains('@') && matches!(uri.path(), "" | "/") && uri.query().is_none();
    let port = authority
        .port_u16()
        .filter(|&port| is_bare && port != 0)
        .ok_or_else(wrong)?;
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let is_loopback = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    if !is_secure && !is_loopback {
        return Err(format!(
            "`{url}` would send the token for all to read: write https://"
        ));
    }
    Ok((is_secure, host, port))
}

fn session(
    host: &str,
    issuers: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> anyhow::Result<(TlsConnector, ServerName<'static>)> {
    let roots = match issuers {
        Some(path) => Arc::new(read_roots(path)?),
        None => tls::trusted(),
    };
    anyhow::ensure!(
        !roots.is_empty(),
        "this host trusts no issuer of certificates: name the agent's with --tls-ca"
    );
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match identity {
        Some((certificate, key)) => {
            let (chain, secret) = read_identity(certificate, key)?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| {
                anyhow::anyhow!("{} and {}: {error}", certificate.display(), key.display())
            })?
        }
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from(host.to_owned())?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

/// Where an agent is.
#[derive(Debug, Clone)]
pub struct Target(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Socket(PathBuf),
    Remote(Arc<Remote>),
}

/// An agent over the network.
struct Remote {
    url: String,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    authorization: Option<HeaderValue>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Socket(socket) => write!(f, "{}", socket.display()),
            Kind::Remote(remote) => f.write_str(&remote.url),
        }
    }
}

impl From<PathBuf> for Target {
    fn from(socket: PathBuf) -> Self {
        Self(Kind::Socket(socket))
    }
}

/// A connection of any kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Target {
    /// Whether the agent is one over the network.
    pub fn is_remote(&self) -> bool {
        matches!(self.0, Kind::Remote(_))
    }

    /// What a request shows, where it shows something.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        match &self.0 {
            Kind::Socket(_) => None,
            Kind::Remote(remote) => remote.authorization.as_ref(),
        }
    }

    /// Makes a connection.
    ///
    /// # Errors
    ///
    /// What the kernel says, or what is wrong with the TLS session.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match &self.0 {
            Kind::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Kind::Remote(remote) => {
                let stream = TcpStream::connect((remote.host.as_str(), remote.port)).await?;
                stream.set_nodelay(true)?;
                match &remote.tls {
                    Some((connector, name)) => Ok(Box::new(connector.connect(name.clone(), stream).await?)),
                    None => Ok(Box::new(stream)),
                }
            }
        }
    }

    /// What to do where there is no connection.
    pub(super) fn advice(&self, error: &io::Error) -> String {
        match (&self.0, error.kind()) {
            (Kind::Socket(socket), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => format!(
                "no agent answers on {}: start it with `lvs-xdp agent --interface IF`, or name its socket \
                 (--socket or {SOCKET_VARIABLE})",
                socket.display()
            ),
            (Kind::Socket(socket), io::ErrorKind::PermissionDenied) => {
                format!("no permission to use {}: run as root", socket.display())
            }
            (Kind::Remote(remote), io::ErrorKind::ConnectionRefused) => format!(
                "no agent answers at {}: start it with `lvs-xdp agent --listen`, or name where it is (--connect or \
                 {CONNECT_VARIABLE})",
                remote.url
            ),
            _ => format!("cannot connect to the agent on {self}: {error}"),
        }
    }
}

#[cfg(test)]
mod tests;
