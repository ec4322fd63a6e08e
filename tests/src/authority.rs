//! Certificates for servers.

use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::artifacts;
use crate::scratch::Folder;

/// An authority that certifies servers. Its files are removed together with this value.
pub struct Authority {
    folder: Folder,
    certificate: PathBuf,
}

impl Authority {
    /// Makes a new one.
    pub fn new() -> Self {
        let folder = Folder::new("authority");
        let certificate = make(folder.path(), "authority", &[]);
        Self { folder, certificate }
    }

    /// Returns the file with its certificate. Whoever trusts it trusts its servers.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Makes a certificate for the server at this host, and returns the files of the certificate and of the key.
    pub(crate) fn certify(&self, host: &str) -> [PathBuf; 2] {
        let name = match host.parse::<IpAddr>() {
            Ok(_) => format!("subjectAltName=IP:{host}"),
            Err(_) => format!("subjectAltName=DNS:{host}"),
        };
        let (own, key) = (self.certificate.display().to_string(), self.key("authority"));
        let key = key.display().to_string();
        let signed =
            ["-CA", &own, "-CAkey", &key, "-addext", &name, "-addext", "basicConstraints=critical,CA:FALSE"];
        let certificate = make(self.folder.path(), "server", &signed);
        // The server may run as another user.
        fs::set_permissions(self.key("server"), Permissions::from_mode(0o644))
            .expect("let the server read its key");
        [certificate, self.key("server")]
    }

    fn key(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).with_extension("key")
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes a key and its certificate, and returns the file of the certificate.
fn make(folder: &Path, name: &str, options: &[&str]) -> PathBuf {
    let file = folder.join(name);
    let certificate = file.with_extension("pem");
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-days", "2", "-subj", &format!("/CN={name}")]).args(options);
    openssl.arg("-keyout").arg(file.with_extension("key")).arg("-out").arg(&certificate);
    artifacts::run(
        &mut openssl,
        "install OpenSSL 3 or later (Debian's package openssl), or let scripts/test do it",
    );
    certificate
}
