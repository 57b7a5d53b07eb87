//! A small HTTP server with the hub's layout and with faults on demand, on 127.0.0.1.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// How a path is answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
    pub(crate) content_type: &'static str,
    pub(crate) etag: Option<&'static str>,
    pub(crate) ranges: bool,
    /// The connection breaks after this many bytes of the body, this many times.
    pub(crate) breaks: Option<(usize, usize)>,
    pub(crate) status: u16,
}

impl Answer {
    pub(crate) fn file(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            content_type: "application/octet-stream",
            etag: Some("\"v1\""),
            ranges: true,
            breaks: None,
            status: 200,
        }
    }

    pub(crate) fn json(value: &serde_json::Value) -> Self {
        Self {
            content_type: "application/json",
            ..Self::file(value.to_string())
        }
    }
}

/// What was asked: path and Range header.
pub(crate) type Asked = Vec<(String, Option<String>, Option<String>)>;

/// A running server; it ends with the test's process.
pub(crate) struct Server {
    pub(crate) url: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<Mutex<Asked>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (answers, asked) = (
            Arc::<Mutex<HashMap<_, _>>>::default(),
            Arc::<Mutex<Asked>>::default(),
        );
        let (their_answers, their_asked) = (Arc::clone(&answers), Arc::clone(&asked));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, asked) = (Arc::clone(&their_answers), Arc::clone(&their_asked));
                thread::spawn(move || answer_one(stream, &answers, &asked));
            }
        });
        Self {
            url,
            answers,
            asked,
        }
    }

    pub(crate) fn put(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// A repository of the hub: its listing and its files, each with its SHA-256 as Git LFS has it.
    pub(crate) fn put_repo(&self, repo: &str, files: &[(&str, Vec<u8>)]) {
        let siblings: Vec<_> = files
            .iter()
            .map(|(name, body)| serde_json::json!({"rfilename": name, "size": body.len(), "lfs": {"sha256": sha256(body), "size": body.len()}}))
            .collect();
        let listing = serde_json::json!({"id": repo, "sha": "c0ffee", "siblings": siblings});
        self.put(
            &format!("/api/models/{repo}/revision/main?blobs=true"),
            Answer::json(&listing),
        );
        for (name, body) in files {
            self.put(
                &format!("/{repo}/resolve/c0ffee/{name}"),
                Answer::file(body.clone()),
            );
        }
    }

    pub(crate) fn asked(&self) -> Asked {
        self.asked.lock().unwrap().clone()
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    format!("{:x}", Sha256::digest(bytes))
}

fn answer_one(
    mut stream: TcpStream,
    answers: &Mutex<HashMap<String, Answer>>,
    asked: &Mutex<Asked>,
) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let (mut range, mut if_range, mut token) = (None, None, None);
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.trim().to_owned()),
            "if-range" => if_range = Some(value.trim().to_owned()),
            "authorization" => token = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    asked
        .lock()
        .unwrap()
        .push((path.clone(), range.clone(), token));
    let mut answers = answers.lock().unwrap();
    let Some(answer) = answers.get_mut(&path) else {
        let _ = stream.write_all(
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\nconnection: close\r\n\r\nnot found",
        );
        return None;
    };
    let unchanged = if_range.is_none() || if_range.as_deref() == answer.etag;
    let start = range
        .filter(|_| answer.ranges && unchanged)
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse::<usize>()
                .ok()
        });
    let body = answer
        .body
        .get(start.unwrap_or(0)..)
        .unwrap_or_default()
        .to_vec();
    let mut head = match start {
        Some(start) => format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {start}-{}/{}\r\n",
            answer.body.len() - 1,
            answer.body.len()
        ),
        None => format!("HTTP/1.1 {} Answer\r\n", answer.status),
    };
    head.push_str(&format!(
        "content-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n",
        answer.content_type,
        body.len()
    ));
    if let Some(etag) = answer.etag {
        head.push_str(&format!("etag: {etag}\r\n"));
    }
    head.push_str("\r\n");
    let sent = match &mut answer.breaks {
        Some((after, times)) if *times > 0 => {
            *times -= 1;
            (*after).min(body.len())
        }
        _ => body.len(),
    };
    drop(answers);
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&body[..sent]).ok()
}
