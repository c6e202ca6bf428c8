//! The server's certificate and key.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause, and part of the message.
        source: io::Error,
    },
    /// There is nothing in it that is wanted.
    #[error("there is no {what} in {}: it must be PEM, with a line -----BEGIN …-----", .path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What is wanted.
        what: &'static str,
    },
    /// Certificate and key cannot be used together, or at all.
    #[error("{} and {} do not go together: {source}", .cert.display(), .key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The cause, and part of the message.
        source: rustls::Error,
    },
}

/// A certificate with its key, from files that can be read again.
#[derive(Debug)]
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads a certificate (its chain, the server's own first) and its key.
    ///
    /// # Errors
    /// If they cannot be read, or used.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let config = RwLock::new(Arc::new(config(cert, key)?));
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), config })
    }

    /// Reads the files again; connections that are made from now on get what they hold.
    ///
    /// # Errors
    /// If they cannot be read, or used: then what was read before remains in force.
    pub fn reload(&self) -> Result<(), TlsError> {
        let config = Arc::new(config(&self.cert, &self.key)?);
        *self.config.write().expect("BUG: no one panics with this lock") = config;
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.config.read().expect("BUG: no one panics with this lock").clone().into()
    }
}

fn config(cert: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let read = |path: &Path| {
        fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
    };
    let nothing = |path: &Path, what| TlsError::Nothing { path: path.to_owned(), what };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|_| nothing(cert, "certificate"))?;
    if chain.is_empty() {
        return Err(nothing(cert, "certificate"));
    }
    let secret =
        PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| nothing(key, "private key"))?;
    let unusable =
        |source| TlsError::Unusable { cert: cert.to_owned(), key: key.to_owned(), source };
    let mut config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
