//! Downloads that survive: resumed by Range, checked by SHA-256, renamed only when whole.

use crate::{
    files::{check_free_space, explain_write, human_bytes},
    output::byte_bar,
    sums::sha256_file,
};
use anyhow::{Context, Error, Result, anyhow, bail};
use indicatif::ProgressBar;
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use ureq::{Agent, Body, http::Response};

/// An unreachable host costs this much at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// A server that says nothing for this long has stalled.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts in a row that bring no byte before we give up.
const MAX_FRUITLESS: u32 = 4;

/// What to fetch and what is known of it beforehand.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where it is.
    pub url: String,
    /// Name for people.
    pub what: String,
    /// Its SHA-256 in hexadecimal, when known.
    pub sha256: Option<String>,
    /// Its size, when known.
    pub len_bytes: Option<u64>,
}

/// An HTTP client with short time-outs. The token goes to the endpoint it belongs to, not along redirects.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    token: Option<String>,
}

/// How one attempt ended.
enum Attempt {
    Whole,
    Again(Error),
}

impl Client {
    /// A client that sends `token` as a bearer token.
    pub fn new(token: Option<String>) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("fledgling/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(STALL_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .build()
            .into();
        Self { agent, token }
    }

    fn get(&self, url: &str, headers: &[(&str, String)]) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.call()
    }

    /// A small JSON document (16 MiB at most).
    ///
    /// # Errors
    /// When the host cannot be reached or answers with anything else.
    pub fn json(&self, url: &str) -> Result<serde_json::Value> {
        let mut response = self
            .get(url, &[])
            .with_context(|| format!("{url} cannot be reached"))?;
        check_status(&response, url)?;
        let text = response
            .body_mut()
            .with_config()
            .limit(16 << 20)
            .read_to_string()
            .with_context(|| format!("{url}: the answer broke off"))?;
        serde_json::from_str(&text).with_context(|| format!("{url} answered with something that is no JSON: is there a proxy or a login page in between?"))
    }

    /// Downloads to `target`, continuing what an earlier attempt left in `target` + `.part`.
    ///
    /// # Errors
    /// When the host cannot be reached, refuses, sends something else, keeps breaking off, or the SHA-256 differs.
    /// What was downloaded stays for the next attempt, unless it is wrong.
    pub fn download(&self, wanted: &Wanted, target: &Path) -> Result<()> {
        let mut part = Part::open(target)?;
        let bar = byte_bar(&wanted.what, wanted.len_bytes);
        let mut fruitless = 0;
        loop {
            let before = part.len_bytes;
            match self.attempt(wanted, &mut part, &bar)? {
                Attempt::Whole => break,
                Attempt::Again(error) => {
                    fruitless = if part.len_bytes > before {
                        0
                    } else {
                        fruitless + 1
                    };
                    if fruitless >= MAX_FRUITLESS {
                        bar.abandon();
                        return Err(error.context(format!(
                            "{}: the download breaks off again and again ({} are kept; run the same command to continue)",
                            wanted.url,
                            human_bytes(part.len_bytes)
                        )));
                    }
                    thread::sleep(Duration::from_millis(200 << fruitless));
                }
            }
        }
        bar.finish_and_clear();
        part.finish(wanted, target)
    }

    fn attempt(&self, wanted: &Wanted, part: &mut Part, bar: &ProgressBar) -> Result<Attempt> {
        if wanted.len_bytes.is_some_and(|len| part.len_bytes > len) {
            part.restart()?;
        }
        if part.len_bytes > 0 && wanted.len_bytes == Some(part.len_bytes) {
            return Ok(Attempt::Whole);
        }
        // Without a way to know that the file is still the same, a continued one could be two halves of different files.
        if part.len_bytes > 0 && part.etag.is_none() && wanted.sha256.is_none() {
            part.restart()?;
        }
        let mut response = match self.get(&wanted.url, &part.range_headers()) {
            Ok(response) => response,
            // Once it has answered, a lost connection is worth another try; a host that never did is not.
            Err(error) if !part.reached => {
                return Err(Error::new(error).context(format!("{} cannot be reached", wanted.url)));
            }
            Err(error) => {
                return Ok(Attempt::Again(
                    Error::new(error).context("the connection failed"),
                ));
            }
        };
        part.reached = true;
        match response.status().as_u16() {
            206 if content_range_start(&response) == Some(part.len_bytes) => {}
            206 | 416 => {
                part.restart()?;
                return Ok(Attempt::Again(anyhow!(
                    "the server continued at another place than asked"
                )));
            }
            200 => part.restart()?,
            status @ (408 | 429 | 500..) => {
                return Ok(Attempt::Again(anyhow!("the server answered {status}")));
            }
            _ => check_status(&response, &wanted.url)?,
        }
        refuse_web_page(&response, &wanted.url)?;
        part.remember_etag(header(&response, "etag"))?;
        let total = response
            .body()
            .content_length()
            .map(|rest| part.len_bytes + rest)
            .or(wanted.len_bytes);
        if let Some(total) = total {
            bar.set_length(total);
            check_free_space(&part.path, total - part.len_bytes.min(total))?;
        }
        if let Err(error) = part.append(response.body_mut().as_reader(), bar)? {
            return Ok(Attempt::Again(error));
        }
        match total {
            Some(total) if part.len_bytes < total => Ok(Attempt::Again(anyhow!(
                "{} of {total} bytes came",
                part.len_bytes
            ))),
            _ => Ok(Attempt::Whole),
        }
    }
}

/// The bytes so far, and the `ETag` that says which version of the file they belong to.
struct Part {
    path: PathBuf,
    etag_path: PathBuf,
    file: File,
    len_bytes: u64,
    etag: Option<String>,
    /// Whether the server has answered at all.
    reached: bool,
}

impl Part {
    fn open(target: &Path) -> Result<Self> {
        let folder = crate::files::folder_of(target);
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let (path, etag_path) = (
            with_suffix(target, ".part"),
            with_suffix(target, ".part.etag"),
        );
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|error| explain_write(error, &path))?;
        let len_bytes = file.metadata()?.len();
        let etag = fs::read_to_string(&etag_path).ok();
        Ok(Self {
            path,
            etag_path,
            file,
            len_bytes,
            etag,
            reached: false,
        })
    }

    fn range_headers(&self) -> Vec<(&'static str, String)> {
        if self.len_bytes == 0 {
            return Vec::new();
        }
        let range = ("Range", format!("bytes={}-", self.len_bytes));
        self.etag
            .clone()
            .map(|etag| ("If-Range", etag))
            .into_iter()
            .chain([range])
            .collect()
    }

    fn restart(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .map_err(|error| explain_write(error, &self.path))?;
        self.len_bytes = 0;
        self.etag = None;
        Ok(())
    }

    fn remember_etag(&mut self, etag: Option<&str>) -> Result<()> {
        // A weak ETag promises no equal bytes (RFC 9110, 8.8.1).
        self.etag = etag
            .filter(|etag| !etag.starts_with("W/"))
            .map(str::to_owned);
        match &self.etag {
            Some(etag) => fs::write(&self.etag_path, etag)
                .map_err(|error| explain_write(error, &self.etag_path)),
            None => remove_if_there(&self.etag_path),
        }
    }

    /// The inner error is the network's, the outer one the disk's.
    fn append(&mut self, mut body: impl Read, bar: &ProgressBar) -> Result<Result<(), Error>> {
        let mut chunk = vec![0; 128 << 10];
        loop {
            bar.set_position(self.len_bytes);
            let n_read = match body.read(&mut chunk) {
                Ok(0) => return Ok(Ok(())),
                Ok(n_read) => n_read,
                Err(error) => {
                    return Ok(Err(Error::new(error).context("the connection broke off")));
                }
            };
            self.file
                .write_all(&chunk[..n_read])
                .map_err(|error| explain_write(error, &self.path))?;
            self.len_bytes += n_read as u64;
        }
    }

    fn finish(self, wanted: &Wanted, target: &Path) -> Result<()> {
        self.file
            .sync_all()
            .map_err(|error| explain_write(error, &self.path))?;
        if let Some(expected) = &wanted.sha256 {
            let got = sha256_file(&self.path)?;
            if !got.eq_ignore_ascii_case(expected) {
                remove_if_there(&self.path)?;
                remove_if_there(&self.etag_path)?;
                bail!(
                    "{}: the SHA-256 is {got}, expected was {expected}. The file was changed or broken on the way; nothing was kept",
                    wanted.url
                );
            }
        }
        fs::rename(&self.path, target).map_err(|error| explain_write(error, target))?;
        remove_if_there(&self.etag_path)
    }
}

fn check_status(response: &Response<Body>, url: &str) -> Result<()> {
    match response.status().as_u16() {
        200..=299 => Ok(()),
        401 | 403 => bail!(
            "{url}: access denied ({}). The repository may be private or gated, or not exist: accept its terms on its page and set HF_TOKEN",
            response.status()
        ),
        404 => bail!(
            "{url}: not found (404). Check the spelling of the repository, the revision and the file"
        ),
        _ => bail!("{url}: the server answered {}", response.status()),
    }
}

fn refuse_web_page(response: &Response<Body>, url: &str) -> Result<()> {
    if response
        .body()
        .mime_type()
        .is_some_and(|mime| mime.starts_with("text/html"))
    {
        bail!(
            "{url} sent a web page, not a file: is it the page about the file, or a login page in between?"
        );
    }
    Ok(())
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// `Content-Range: bytes 100-199/200` starts at 100.
fn content_range_start(response: &Response<Body>) -> Option<u64> {
    header(response, "content-range")?
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
