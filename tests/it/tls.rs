//! TLS: the whole way with certificates of our own, and clients that do not know what they talk to.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use super::common::*;

/// An authority, and a certificate for 127.0.0.1 from it.
pub struct Certificates {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority
            .distinguished_name
            .push(rcgen::DnType::CommonName, format!("CA {}", dir.display()));
        let ca_key = KeyPair::generate().unwrap();
        let ca = authority.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(authority, ca_key);
        let key = KeyPair::generate().unwrap();
        let cert =
            CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let cert = cert.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: String| {
            fs::write(dir.join(name), text).unwrap();
            dir.join(name)
        };
        Self {
            ca: write("ca.pem", ca.pem()),
            cert: write("cert.pem", cert.pem()),
            key: write("key.pem", key.serialize_pem()),
        }
    }

    /// A configuration file of a server that uses them, with more below `[serve]`.
    fn config(&self, more: &str) -> PathBuf {
        let path = self.ca.with_file_name("farmhand.toml");
        let text = format!("[serve]\ntls_cert = \"cert.pem\"\ntls_key = \"key.pem\"\n{more}\n");
        fs::write(&path, text).unwrap();
        path
    }
}

struct Home {
    dir: tempfile::TempDir,
    certificates: Certificates,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(&dir.path().join("tls"));
        Self { dir, certificates }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn serve(&self, more: &str) -> ServerProcess {
        let config = self.certificates.config(more);
        let arguments = ["--config", config.to_str().unwrap()];
        let server =
            ServerProcess::logging(self.path(), &self.path().join("s"), &arguments, &self.log());
        assert!(server.url.starts_with("https://"), "{}", server.url);
        server
    }

    fn log(&self) -> PathBuf {
        self.path().join("log")
    }

    /// Waits until the server has said this.
    fn logged(&self, says: &str) {
        until(|| fs::read_to_string(self.log()).unwrap().contains(says));
    }

    /// A client, on a machine that trusts another authority only.
    fn client(&self) -> Command {
        let other = Certificates::new(&self.path().join("other"));
        let mut command = farmhand(self.path());
        let empty = self.path().join("empty");
        fs::create_dir_all(&empty).unwrap();
        command.env("SSL_CERT_FILE", other.ca).env("SSL_CERT_DIR", empty);
        command.env("FARMHAND_UPLOAD_RETRIES", "3");
        command.current_dir(self.path()).stdin(Stdio::null());
        command
    }
}

/// A connection that trusts this authority.
fn try_connect(
    address: SocketAddr,
    ca: &Path,
    alpn: &[&[u8]],
) -> std::io::Result<StreamOwned<ClientConnection, std::net::TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, Connection::new(address).stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

fn connect(address: SocketAddr, ca: &Path) -> StreamOwned<ClientConnection, std::net::TcpStream> {
    try_connect(address, ca, &[]).unwrap()
}

/// Sends a request that closes the connection, and returns all that comes.
fn send(mut stream: impl Read + Write, head: &str, body: &[u8]) -> String {
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream.flush().unwrap();
    let mut answer = String::new();
    // Without an error: the end is said, not broken off.
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[test]
fn a_checkout_over_https_needs_the_right_authority() {
    let home = Home::new();
    let server = home.serve("");
    let project = home.path().join("project");
    copy(&fixture("blend-project"), &project);
    let ca = home.certificates.ca.to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output =
            home.client().args(arguments).args(["--server", &server.url]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = run(&["checkout", "project", "--as", "demo", "--ca", ca]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "demo\n", ""));
    assert!(tree(&home.path().join("s/jobs/demo")) == tree(&project));

    let (code, out, err) = run(&["checkout", "project", "--as", "demo"]);
    assert_eq!((code, out.as_str(), err.lines().count()), (5, "", 1), "{err}");
    for says in ["cannot trust", &server.url, "UnknownIssuer", "--ca"] {
        assert!(err.contains(says), "{err}");
    }
    // An authority that did not sign it; files that are none.
    let other = home.path().join("other/ca.pem");
    assert_eq!(run(&["push", "project", "--ca", other.to_str().unwrap()]).0, 5);
    let key = home.certificates.key.to_str().unwrap();
    for (file, says) in [("missing.pem", "cannot read the certificates"), (key, "no certificates")]
    {
        let (code, _, err) = run(&["push", "project", "--ca", file]);
        assert!(code == 2 && err.contains(file) && err.contains(says), "{err}");
    }
    let (code, out, _) = run(&["store", "list", "--ca", ca]);
    assert!(code == 0 && out.contains("demo"), "{out}");
    assert_eq!(run(&["store", "list"]).0, 5);
    let checks = home.client().args(["conformance", &server.url, "--ca", ca]).output().unwrap();
    assert!(checks.status.success(), "{checks:?}");
    // Small machines have no root certificates, and need none for one of our own.
    let mut bare = home.client();
    bare.env("SSL_CERT_FILE", "/nonexistent").args([
        "push",
        "project",
        "--server",
        &server.url,
        "--ca",
        ca,
    ]);
    assert!(bare.output().unwrap().status.success());
}

#[test]
fn clients_that_do_not_speak_tls_harm_nobody() {
    let home = Home::new();
    let server = home.serve("head_timeout = \"1s\"\nmax_connections = 4");
    // More than there is room for, if they were not counted out again.
    let mut plain: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for connection in &mut plain {
        connection.send(HEALTH.as_bytes());
        assert!(connection.try_answer().is_none(), "plain HTTP is answered");
    }
    let mut silent: Vec<_> = (0..8).map(|_| server.connect()).collect();
    let mut half: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for connection in &mut half {
        connection.send(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]);
    }
    let stream = connect(server.address(), &home.certificates.ca);
    assert!(send(stream, HEALTH, b"").starts_with("HTTP/1.1 200"));
    for connection in silent.iter_mut().chain(&mut half) {
        assert!(connection.is_closed(), "it is still waited for");
    }
    home.logged("no TLS");
    home.logged("TLS took too long");
}

/// One that says nothing does not keep the server from ending, either.
#[test]
fn a_shutdown_does_not_wait_for_a_handshake() {
    let home = Home::new();
    let mut server = home.serve("head_timeout = \"1h\"\ngrace = \"1h\"");
    let mut silent = server.connect();
    let stream = connect(server.address(), &home.certificates.ca);
    assert!(send(stream, HEALTH, b"").starts_with("HTTP/1.1 200"));
    server.terminate();
    assert!(silent.is_closed());
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn headers_are_unfolded_and_early_answers_seen_over_tls() {
    let home = Home::new();
    let server = home.serve("");
    let ca = &home.certificates.ca;
    let content = random(16 << 20);
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\
             X-Shaman-Original-Filename: =?utf-8?q?one?=\n =?utf-8?q?two?=\r\n\r\n",
            content.len()
        )
    };
    let path = format!("/api/v3/shaman/files/{}", address(&content));
    let stored = send(connect(server.address(), ca), &head(&path), &content);
    assert!(stored.starts_with("HTTP/1.1 204"), "{stored}");
    home.logged("name=\"onetwo\"");
    for _ in 0..5 {
        let again = send(connect(server.address(), ca), &head(&path), &content);
        assert!(again.starts_with("HTTP/1.1 208"), "{again}");
        let refused =
            send(connect(server.address(), ca), &head(&format!("/t/wrong{path}")), &content);
        assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    }
}

#[test]
fn only_http_1_is_offered() {
    let home = Home::new();
    let server = home.serve("");
    let ca = &home.certificates.ca;
    let stream = try_connect(server.address(), ca, &[b"h2", b"http/1.1"]).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert!(send(stream, HEALTH, b"").starts_with("HTTP/1.1 200"));
    assert!(try_connect(server.address(), ca, &[b"h2"]).is_err());
}

#[test]
fn a_new_certificate_is_read_when_the_server_is_told_to() {
    let home = Home::new();
    let server = home.serve("");
    let old = home.certificates.ca.with_file_name("old-ca.pem");
    fs::copy(&home.certificates.ca, &old).unwrap();
    let works = |ca: &Path| match try_connect(server.address(), ca, &[]) {
        Ok(stream) => send(stream, HEALTH, b"").starts_with("HTTP/1.1 200"),
        Err(_) => false,
    };
    assert!(works(&old));
    let mut under_way = connect(server.address(), &old);

    // A key that does not fit is not taken.
    let next = Certificates::new(&home.path().join("next"));
    fs::copy(&next.key, &home.certificates.key).unwrap();
    server.hang_up();
    home.logged("the certificate remains as it was");
    home.logged("do not go together");
    assert!(works(&old) && !works(&next.ca));

    fs::copy(&next.cert, &home.certificates.cert).unwrap();
    server.hang_up();
    until(|| works(&next.ca));
    home.logged("read the certificate and its key again");
    assert!(!works(&old));
    assert!(send(&mut under_way, HEALTH, b"").starts_with("HTTP/1.1 200"), "connections go on");
}

#[test]
fn a_certificate_that_cannot_be_used_is_said() {
    let home = Home::new();
    let other = Certificates::new(&home.path().join("other"));
    let Certificates { cert, key, .. } = &home.certificates;
    let missing = home.path().join("missing.pem");
    let junk = home.path().join("junk.pem");
    fs::write(&junk, "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n").unwrap();
    for (cert, key, says) in [
        (Some(cert), None, vec!["serve.tls_cert", "serve.tls_key"]),
        (None, Some(key), vec!["serve.tls_cert", "serve.tls_key"]),
        (Some(&missing), Some(key), vec!["cannot read", "missing.pem", "No such file"]),
        (Some(cert), Some(&missing), vec!["cannot read", "missing.pem", "No such file"]),
        (Some(key), Some(key), vec!["no certificate in", "key.pem"]),
        (Some(&junk), Some(key), vec!["no certificate in", "junk.pem"]),
        (Some(cert), Some(cert), vec!["no private key in", "cert.pem"]),
        (Some(cert), Some(&other.key), vec!["do not go together", "cert.pem", "key.pem"]),
    ] {
        let mut command = farmhand(home.path());
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--storage", "s"])
            .current_dir(home.path());
        for (name, path) in [("FARMHAND_SERVE_TLS_CERT", cert), ("FARMHAND_SERVE_TLS_KEY", key)] {
            command.envs(path.map(|path| (name, path)));
        }
        let output = command.output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), err.lines().count()), (Some(2), 1), "{err}");
        for part in says {
            assert!(err.contains(part), "{err} does not say {part}");
        }
    }
    assert!(!home.path().join("s").exists());
}
