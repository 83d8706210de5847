//! TLS between members: certificates from files that may change at any time, or one this member makes for itself.
//!
//! [`TlsSettings`] say what, [`Tls`] holds what the files said last, [`TlsConnector`] and [`TlsAcceptor`] put it around
//! the connections of TCP, or of any other [`Connector`](crate::net::Connector) and
//! [`Acceptor`](crate::net::Acceptor). Each handshake looks at the files again, as etcd's does, and not at the certificate alone but at the
//! authorities and the revocation list too; connections that exist stay. Invariant: files that cannot be used change
//! nothing but the log, so a member that runs goes on running.
//!
//! etcd: client/pkg/transport/listener.go, listener_tls.go.

mod auto;
mod certificate;
mod connection;
mod error;
mod files;
mod origin;
mod settings;
mod verify;

use std::{fmt, sync::Arc};

use parking_lot::Mutex;

pub use self::{
    connection::{TlsAcceptor, TlsConnector},
    error::TlsError,
    settings::{TlsSettings, TlsVersion},
};
#[cfg(test)]
pub(crate) use self::{files::FILE_BYTES_MAX, origin::REVERSE_LOOKUPS_MAX};
use self::{
    files::{Contents, Material},
    origin::Lookups,
};
use crate::{
    config::SharedRecorder,
    handshake::{HandshakeFailures, Side},
};

/// Certificates, keys and authorities as the files say now. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    settings: TlsSettings,
    reloads: bool,
    loaded: Mutex<Loaded>,
    lookups: Lookups,
    dial_failures: HandshakeFailures,
}

struct Loaded {
    contents: Contents,
    material: Arc<Material>,
    /// What was found since and could not be used, so that it is said once.
    refused: Option<Refused>,
}

#[derive(PartialEq)]
enum Refused {
    /// By its error.
    Unreadable(String),
    Unusable(Contents),
}

impl Tls {
    /// Checks the settings and reads the files. Failed handshakes of connections this member opens are counted in
    /// `recorder`.
    pub fn load(settings: TlsSettings, recorder: &SharedRecorder) -> Result<Tls, TlsError> {
        Tls::read(settings, recorder, true)
    }

    /// As [`load`](Tls::load), but what the files say later counts for nothing. No handshake then waits for a disk, so
    /// one seed of a simulated network is one run.
    pub fn load_once(settings: TlsSettings, recorder: &SharedRecorder) -> Result<Tls, TlsError> {
        Tls::read(settings, recorder, false)
    }

    fn read(
        settings: TlsSettings,
        recorder: &SharedRecorder,
        reloads: bool,
    ) -> Result<Tls, TlsError> {
        settings.check()?;
        let contents = Contents::read(&settings)?;
        let material = Arc::new(Material::build(&settings, &contents)?);
        Ok(Tls(Arc::new(Shared {
            settings,
            reloads,
            loaded: Mutex::new(Loaded {
                contents,
                material,
                refused: None,
            }),
            lookups: Lookups::system(),
            dial_failures: HandshakeFailures::new(recorder.clone(), Side::Dial),
        })))
    }

    /// What it was loaded with.
    pub fn settings(&self) -> &TlsSettings {
        &self.0.settings
    }

    fn lookups(&self) -> &Lookups {
        &self.0.lookups
    }

    fn dial_failures(&self) -> &HandshakeFailures {
        &self.0.dial_failures
    }

    /// What the files say now, or said when they could last be used.
    async fn current(&self) -> Arc<Material> {
        if !self.0.reloads {
            return Arc::clone(&self.0.loaded.lock().material);
        }
        let shared = Arc::clone(&self.0);
        // It only fails when the runtime ends, and then nothing is shaken any more.
        match tokio::task::spawn_blocking(move || shared.refresh()).await {
            Ok(material) => material,
            Err(_) => Arc::clone(&self.0.loaded.lock().material),
        }
    }
}

impl Shared {
    fn refresh(&self) -> Arc<Material> {
        let found = Contents::read(&self.settings);
        let mut loaded = self.loaded.lock();
        let (refused, error) = match found {
            Ok(contents) if contents == loaded.contents => {
                loaded.refused = None;
                return Arc::clone(&loaded.material);
            }
            Ok(contents) => match Material::build(&self.settings, &contents) {
                Ok(material) => {
                    tracing::info!(settings = ?self.settings, "reloaded changed TLS files");
                    let material = Arc::new(material);
                    *loaded = Loaded {
                        contents,
                        material: Arc::clone(&material),
                        refused: None,
                    };
                    return material;
                }
                Err(error) => (Refused::Unusable(contents), error),
            },
            Err(error) => (Refused::Unreadable(error.to_string()), error),
        };
        if loaded.refused.as_ref() != Some(&refused) {
            tracing::error!(error = %error, "changed TLS files cannot be used; those before stay in use");
            loaded.refused = Some(refused);
        }
        Arc::clone(&loaded.material)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.settings).finish()
    }
}
