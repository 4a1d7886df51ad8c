//! Who is let in over the network, and by which files: tokens, certificates, keys.
//!
//! Secrets come from files and stay out of logs and messages: of a token only its digest is kept, and it is called by
//! the number of its line. The agent and its clients read the same forms.

use std::{
    fmt,
    fs::File,
    io::Read as _,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

use crate::tls;

/// The largest file that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 20;
/// The shortest token, in characters: 128 bits in hexadecimal digits have 32.
const SHORTEST_TOKEN: usize = 16;
/// What a token begins with that may change nothing; it is no part of the token.
const READ_ONLY: &str = "ro:";

/// Where the agent listens besides its socket, and whom it lets in there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remote {
    /// Addresses and ports; none where it listens at its socket only.
    pub listen: Vec<SocketAddr>,
    /// The file of the tokens, one of which every request then needs.
    pub token_file: Option<PathBuf>,
    /// The file of the agent's certificate, with those between it and its issuer, in PEM.
    pub tls_cert: Option<PathBuf>,
    /// The file of the certificate's key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// The file of the issuers of clients' certificates, in PEM; a client then needs one.
    pub tls_client_ca: Option<PathBuf>,
}

impl Remote {
    /// Refuses what would let everybody in, or tokens out.
    ///
    /// # Errors
    ///
    /// One line on what to do.
    pub fn check(&self) -> Result<(), String> {
        let Self {
            listen,
            token_file,
            tls_cert,
            tls_key,
            tls_client_ca,
        } = self;
        if listen.is_empty() {
            let files = [
                ("--token-file", token_file),
                ("--tls-cert", tls_cert),
                ("--tls-key", tls_key),
                ("--tls-client-ca", tls_client_ca),
            ];
            return match files.into_iter().find(|(_, file)| file.is_some()) {
                Some((option, _)) => Err(format!(
                    "{option} is for clients over the network: say with --listen where they come in"
                )),
                None => Ok(()),
            };
        }
        if tls_cert.is_some() != tls_key.is_some() {
            return Err("--tls-cert and --tls-key belong together: name both".to_owned());
        }
        if tls_client_ca.is_some() && tls_cert.is_none() {
            return Err(
                "--tls-client-ca is for TLS: name the agent's own certificate with --tls-cert and --tls-key"
                    .to_owned(),
            );
        }
        for (index, address) in listen.iter().enumerate() {
            if address.port() == 0 {
                return Err(format!("--listen {address} names no port: use 1 to 65535"));
            }
            if listen[..index].contains(address) {
                return Err(format!("--listen {address} is there twice: name each once"));
            }
            if token_file.is_none() && tls_client_ca.is_none() {
                return Err(format!(
                    "--listen {address} would let everybody in: name a --token-file, or a --tls-client-ca"
                ));
            }
            if tls_cert.is_none() && !address.ip().is_loopback() {
                return Err(format!(
                    "--listen {address} is no loopback address, and tokens go elsewhere over TLS only: name --tls-cert \
                     and --tls-key"
                ));
            }
        }
        Ok(())
    }
}

/// What the files of a [`Remote`] had when they were read.
pub(super) struct Credentials {
    tokens: Option<Tokens>,
    acceptor: Option<TlsAcceptor>,
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// Names the file, and what is wrong with it.
    pub(super) fn read(remote: &Remote) -> anyhow::Result<Self> {
        let tokens = remote.token_file.as_deref().map(Tokens::read).transpose()?;
        let acceptor = match (&remote.tls_cert, &remote.tls_key) {
            (Some(certificate), Some(key)) => {
                Some(acceptor(certificate, key, remote.tls_client_ca.as_deref())?)
            }
            _ => None,
        };
        Ok(Self { tokens, acceptor })
    }

    /// Which tokens are taken; without them the certificate says it all.
    pub(super) fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_ref()
    }

    /// What makes TLS sessions, where there are any.
    pub(super) fn acceptor(&self) -> Option<&TlsAcceptor> {
        self.acceptor.as_ref()
    }
}

fn acceptor(certificate: &Path, key: &Path, issuers: Option<&Path>) -> anyhow::Result<TlsAcceptor> {
    let provider = tls::provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("there is no TLS")?;
    let builder = match issuers {
        Some(issuers) => {
            let roots = Arc::new(read_roots(issuers)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .with_context(|| format!("{} has no issuer of certificates", issuers.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let (chain, secret) = read_identity(certificate, key)?;
    let mut config = builder.with_single_cert(chain, secret).with_context(|| {
        format!(
            "{} and {} do not belong together",
            certificate.display(),
            key.display()
        )
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A certificate with those between it and its issuer, and its key.
///
/// # Errors
///
/// Names the file, and what is wrong with it.
pub(super) fn read_identity(
    certificate: &Path,
    key: &Path,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let file = read_file(certificate, 0)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file).collect();
    let chain = chain.with_context(|| format!("{} is no certificate in PEM", certificate.display()))?;
    ensure!(
        !chain.is_empty(),
        "{} has no certificate in PEM",
        certificate.display()
    );
    let secret = PrivateKeyDer::from_pem_slice(&read_file(key, OF_OTHERS)?)
        .with_context(|| format!("{} is no key in PEM", key.display()))?;
    Ok((chain, secret))
}

/// The issuers that are trusted.
///
/// # Errors
///
/// Names the file, and what is wrong with it.
pub(super) fn read_roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let roots = tls::roots(read_file(path, 0)?.as_slice())
        .map_err(|error| anyhow::anyhow!("{} is no file of certificates: {error}", path.display()))?;
    ensure!(!roots.is_empty(), "{} has no certificate in PEM", path.display());
    Ok(roots)
}

/// The bits of a file's mode by which all may use it, and those by which its group may as well.
const OF_OTHERS: u32 = 0o007;
const OF_GROUP_AND_OTHERS: u32 = 0o077;

/// A file, where none of these bits of its mode is set.
fn read_file(path: &Path, forbidden: u32) -> anyhow::Result<Vec<u8>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name} cannot be read"))?;
    let metadata = file
        .metadata()
        .with_context(|| format!("{name} cannot be read"))?;
    ensure!(metadata.is_file(), "{name} is no file");
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden != 0 {
        let (whom, bits) = match forbidden {
            OF_OTHERS => ("everybody", "o="),
            _ => ("others than its owner", "go="),
        };
        bail!("{name} is open to {whom} (mode {mode:04o}), and has secrets: `chmod {bits} {name}`");
    }
    let mut contents = Vec::new();
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut contents)
        .with_context(|| format!("{name} cannot be read"))?;
    ensure!(
        contents.len() as u64 <= LARGEST_FILE,
        "{name} has more than {LARGEST_FILE} bytes"
    );
    Ok(contents)
}

/// A token as a file has it.
struct Written<'a> {
    /// The number of its line, from 1 on.
    line: u32,
    /// Whether it may change nothing.
    is_read_only: bool,
    text: &'a str,
}

/// The tokens of a file: one a line; empty lines and those that begin with `#` have none.
fn tokens<'a>(path: &Path, contents: &'a [u8]) -> anyhow::Result<Vec<Written<'a>>> {
    let name = path.display();
    let text = str::from_utf8(contents)
        .ok()
        .with_context(|| format!("{name} is no text"))?;
    let mut tokens = Vec::new();
    for (line, words) in (1..).zip(text.lines()) {
        let words = words.trim();
        if words.is_empty() || words.starts_with('#') {
            continue;
        }
        let (is_read_only, text) = match words.strip_prefix(READ_ONLY) {
            Some(text) => (true, text),
            None => (false, words),
        };
        ensure!(
            text.bytes().all(|byte| byte.is_ascii_graphic()),
            "{name}:{line}: a token is one word of ASCII characters: `openssl rand -hex 32` makes one"
        );
        ensure!(
            text.len() >= SHORTEST_TOKEN,
            "{name}:{line}: a token has {SHORTEST_TOKEN} characters at least: `openssl rand -hex 32` makes one"
        );
        tokens.push(Written {
            line,
            is_read_only,
            text,
        });
    }
    ensure!(
        !tokens.is_empty(),
        "{name} has no token: `openssl rand -hex 32` makes one"
    );
    Ok(tokens)
}

/// The token that a client shows: the first one of its file.
///
/// # Errors
///
/// Names the file, and what is wrong with it.
pub(super) fn read_token(path: &Path) -> anyhow::Result<String> {
    let contents = read_file(path, OF_GROUP_AND_OTHERS)?;
    let tokens = tokens(path, &contents)?;
    Ok(tokens
        .first()
        .map(|token| token.text.to_owned())
        .unwrap_or_default())
}

/// The tokens that the agent takes, by their digests.
pub(super) struct Tokens(Vec<(Token, [u8; SHA256_OUTPUT_LEN])>);

/// A token by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    /// The number of its line, from 1 on.
    pub(super) line: u32,
    /// Whether it may change nothing.
    pub(super) is_read_only: bool,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token {}", self.line)
    }
}

impl Tokens {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let contents = read_file(path, OF_GROUP_AND_OTHERS)?;
        let mut known: Vec<(Token, _)> = Vec::new();
        for Written {
            line,
            is_read_only,
            text,
        } in tokens(path, &contents)?
        {
            let digest = sha256(text.as_bytes());
            if let Some((first, _)) = known.iter().find(|(_, other)| *other == digest) {
                bail!(
                    "{}:{line}: the token of line {} again: each has its own",
                    path.display(),
                    first.line
                );
            }
            known.push((Token { line, is_read_only }, digest));
        }
        Ok(Self(known))
    }

    /// The token that this is. How long the answer takes says nothing of the tokens.
    pub(super) fn find(&self, shown: &[u8]) -> Option<Token> {
        let shown = sha256(shown);
        let mut found = u32::MAX;
        for (index, (_, digest)) in (0..).zip(&self.0) {
            found.conditional_assign(&index, digest.ct_eq(&shown));
        }
        self.0.get(found as usize).map(|(token, _)| *token)
    }
}

/// What a certificate is called by, as `openssl x509 -fingerprint -sha256` has it, without colons.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digits = sha256(certificate).map(|byte| format!("{byte:02x}"));
    format!("SHA256:{}", digits.concat())
}

fn sha256(bytes: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut output = [0; SHA256_OUTPUT_LEN];
    output.copy_from_slice(digest(&SHA256, bytes).as_ref());
    output
}

#[cfg(test)]
mod tests;
