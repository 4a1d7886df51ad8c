//! TLS sessions, with or without a look at the certificate.

use std::{fs::File, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::http::words;
use crate::{
    api::types::TlsOptions,
    checks::socket::{Deadline, Failure},
    tls,
};

/// Makes TLS sessions as one check wants them.
#[derive(Clone)]
pub(in crate::checks) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// By the options, and the name that is asked for where they name none.
    pub(super) fn new(options: &TlsOptions, host: &str) -> Result<Self, Failure> {
        let unknown =
            |what: &str, error: &dyn std::error::Error| Failure::Unknown(format!("{what}: {}", words(error)));
        let provider = tls::provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unknown("no TLS", &error))?;
        let mut config = if options.verify {
            let roots = match &options.ca {
                Some(path) => {
                    let file = File::open(path)
                        .map_err(|error| unknown(&format!("{} cannot be read", path.display()), &error))?;
                    Arc::new(tls::roots(file).map_err(|error| {
                        unknown(&format!("{} is no file of certificates", path.display()), &*error)
                    })?)
                }
                None => tls::trusted(),
            };
            if roots.is_empty() {
                return Err(Failure::Unknown(
                    "this director trusts no issuer of certificates: install ca-certificates, name a file of \
                     them (ca), or switch verification off"
                        .to_owned(),
                ));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        } else {
            let trusting = Arc::new(Trusting(provider));
            builder
                .dangerous()
                .with_custom_certificate_verifier(trusting)
                .with_no_client_auth()
        };
        // Each session shows the certificate anew.
        config.resumption = Resumption::disabled();
        let name = options.server_name.as_deref().unwrap_or(host).to_owned();
        let name =
            ServerName::try_from(name).map_err(|error| unknown("no name for the certificate", &error))?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            name,
        })
    }

    /// Makes a session on a connection.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        deadline: Deadline,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        deadline
            .wait("TLS session", async {
                let session = self.connector.connect(self.name.clone(), stream).await;
                session.map_err(|error| Failure::Bad(format!("no TLS session: {}", words(&error))))
            })
            .await
    }
}

/// Takes any certificate whose owner the server is.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
