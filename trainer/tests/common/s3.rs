//! A local S3: the server of moto, a Python package.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The bucket that is there.
pub(crate) const BUCKET: &str = "shelf";

/// A server with an empty bucket; it ends with the value.
pub(crate) struct S3 {
    server: Child,
    port: u16,
}

impl S3 {
    /// Starts it. A machine without moto fails the test, and is told what to install.
    pub(crate) fn start() -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let server = Command::new("moto_server")
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto_server cannot be started: `cargo xtask setup` installs it, or `pip install 'moto[server]==5.2.1'`");
        let s3 = Self { server, port };
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(
                started.elapsed() < Duration::from_mins(1),
                "moto_server does not answer"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(s3.ask("PUT", "", b"").0, 200);
        s3
    }

    /// Settings that lead a command here.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", "nobody".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "nothing".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            (
                "AWS_ENDPOINT_URL",
                format!("http://127.0.0.1:{}", self.port),
            ),
        ]
    }

    /// Puts an object into the bucket.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        assert_eq!(self.ask("PUT", &format!("/{key}"), bytes).0, 200, "{key}");
    }

    /// Removes an object.
    pub(crate) fn delete(&self, key: &str) {
        assert_eq!(self.ask("DELETE", &format!("/{key}"), b"").0, 204, "{key}");
    }

    /// The keys in the bucket that begin so.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        between(&self.ask("GET", &format!("?prefix={prefix}"), b"").1, "Key")
    }

    /// Uploads that were begun and never ended.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        between(&self.ask("GET", "?uploads", b"").1, "UploadId")
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        // moto looks for a signature, not at it.
        let head = format!(
            "{method} /{BUCKET}{path} HTTP/1.1\r\nAuthorization: AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer[9..12].parse().unwrap(), answer)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn between(text: &str, tag: &str) -> Vec<String> {
    let tag = format!("<{tag}>");
    text.split(&tag)
        .skip(1)
        .filter_map(|part| Some(part.split_once("</")?.0.to_owned()))
        .collect()
}
