//! What every TLS session of this program has in common: its cryptography, and whom it trusts.

use std::{
    io::{BufReader, Read},
    sync::{Arc, OnceLock},
};

use tokio_rustls::rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// The cryptography.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The issuers that a file in PEM names.
///
/// # Errors
///
/// Where it is no such file.
pub(crate) fn roots(file: impl Read) -> Result<RootCertStore, Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_reader_iter(BufReader::new(file)) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

/// Whom this host trusts, as of the first time that it is asked.
pub(crate) fn trusted() -> Arc<RootCertStore> {
    static TRUSTED: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = TRUSTED.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    Arc::clone(roots)
}
