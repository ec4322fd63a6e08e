//! Certificates for servers.

use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::artifacts;
use crate::scratch::Folder;

/// An authority that certifies servers. Its files are removed together with this value.
pub struct Authority {
    folder: Folder,
    certificate: PathBuf,
    certified: AtomicUsize,
}

impl Authority {
    /// Makes a new one.
    pub fn new() -> Self {
        let folder = Folder::new("authority");
        let certificate = make(folder.path(), "authority", &[]);
        Self { folder, certificate, certified: AtomicUsize::new(0) }
    }

    /// Returns the file with its certificate. Whoever trusts it trusts its servers.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Makes a certificate for the server at this host, and returns the files of the certificate and of the key.
    pub fn certify(&self, host: &str) -> [PathBuf; 2] {
        let server = format!("server-{}", self.certified.fetch_add(1, Ordering::Relaxed));
        let (own, key) = (self.certificate.display().to_string(), self.key("authority"));
        let (name, key) = (names(host), key.display().to_string());
        let signed =
            ["-CA", &own, "-CAkey", &key, "-addext", &name, "-addext", "basicConstraints=critical,CA:FALSE"];
        let certificate = make(self.folder.path(), &server, &signed);
        let key = self.key(&server);
        // The server may run as another user.
        fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("let the server read its key");
        [certificate, key]
    }

    /// Makes one that has expired.
    pub fn certify_expired(&self, host: &str) -> [PathBuf; 2] {
        let [certificate, key] = self.certify(host);
        let folder = self.folder.path().display();
        let (settings, request) = (certificate.with_extension("cnf"), certificate.with_extension("csr"));
        let (index, expired) = (certificate.with_extension("index"), certificate.with_extension("expired"));
        let written = format!(
            "[ca]\ndefault_ca = own\n[own]\ndatabase = {}\nrand_serial = yes\nnew_certs_dir = {folder}\ndefault_md = sha256\n\
             policy = any\nx509_extensions = names\n[any]\ncommonName = supplied\n[names]\n{}\n\
             basicConstraints = critical,CA:FALSE\nauthorityKeyIdentifier = keyid\n",
            index.display(),
            names(host).replacen('=', " = ", 1)
        );
        fs::write(&settings, written).expect("write the authority's settings");
        fs::write(&index, "").expect("write the authority's index");
        let mut ask = Command::new("openssl");
        ask.args(["req", "-new", "-subj", "/CN=server", "-key"]).arg(&key).arg("-out").arg(&request);
        run(&mut ask);
        let mut sign = Command::new("openssl");
        sign.args([
            "ca",
            "-batch",
            "-notext",
            "-startdate",
            "20200101000000Z",
            "-enddate",
            "20200102000000Z",
        ]);
        sign.arg("-config").arg(&settings).arg("-cert").arg(&self.certificate);
        sign.arg("-keyfile").arg(self.key("authority")).arg("-in").arg(&request).arg("-out").arg(&expired);
        run(&mut sign);
        [expired, key]
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

/// The extension that names the host.
fn names(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(_) => format!("subjectAltName=IP:{host}"),
        Err(_) => format!("subjectAltName=DNS:{host}"),
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
    run(&mut openssl);
    certificate
}

fn run(openssl: &mut Command) {
    artifacts::run(
        openssl,
        "install OpenSSL 3 or later (Debian's package openssl), or let scripts/test do it",
    );
}
