//! S3, Google Cloud Storage, Azure and local folders behind one blocking door.
//!
//! Credentials are those of the environment, as each cloud's own tools read them. Bytes are streamed: an upload holds
//! [`N_PARTS_AT_ONCE`] parts, a download one. An object is there whole or not at all, in every store.

use super::{Listing, Object};
use crate::{
    files::{Staged, check_free_space, explain_write},
    output::byte_bar,
};
use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use bytes::Bytes;
use object_store::{
    BackoffConfig, ClientConfigKey, GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutPayload, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
    path::Path as Key,
};
use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};
use tokio::{runtime::Runtime, task::JoinSet};

/// Bytes of a part, and what is sent in one piece. S3 wants at least 5 MiB.
const PART_BYTES: u64 = 8 << 20;
/// Parts of an object at most, below S3's 10,000: a larger object has larger parts.
const MAX_PARTS: u64 = 9000;
/// Parts that are on their way at the same time.
const N_PARTS_AT_ONCE: usize = 4;
/// Largest object that is read into memory.
const MAX_SMALL_BYTES: u64 = 16 << 20;
/// Attempts in a row that bring no byte before a download is given up.
const MAX_FRUITLESS: u32 = 4;

/// A place in an object store: a folder (a prefix) or an object.
#[derive(Debug, Clone)]
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    runtime: Arc<Runtime>,
    kind: Kind,
    key: Key,
    url: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    S3,
    Gcs,
    Azure,
    Local,
}

impl Kind {
    fn of(scheme: &str) -> Option<Self> {
        Some(match scheme {
            "s3" | "s3a" => Self::S3,
            "gs" => Self::Gcs,
            "az" | "adl" | "azure" | "abfs" | "abfss" => Self::Azure,
            "file" => Self::Local,
            _ => return None,
        })
    }

    /// Where its credentials come from.
    fn credentials(self) -> &'static str {
        match self {
            Self::S3 => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a profile: `eval \"$(aws configure export-credentials --format env)\"`), or give the machine a role; AWS_REGION names the region, AWS_ENDPOINT_URL a store that is not Amazon's"
            }
            Self::Gcs => {
                "set GOOGLE_APPLICATION_CREDENTIALS to a key file, run `gcloud auth application-default login`, or give the machine a service account"
            }
            Self::Azure => {
                "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_KEY, or AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID), or give the machine an identity"
            }
            Self::Local => "change the folder's permissions",
        }
    }
}

impl Remote {
    /// The place that `url` names: `s3://BUCKET/PREFIX`, `gs://…`, `az://CONTAINER/PREFIX`, `file:///FOLDER`. Asks nothing of
    /// the network yet.
    ///
    /// # Errors
    /// When the URL is none of these, or a setting in the environment is wrong.
    pub fn open(url: &str) -> Result<Self> {
        let url = url.trim_end_matches('/');
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let kind = Kind::of(scheme).with_context(|| {
            format!("{url:?} names no object store: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER")
        })?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        ensure!(
            kind == Kind::Local || !bucket.is_empty(),
            "{url:?} names no bucket"
        );
        let context = || format!("{url}: the object store cannot be opened");
        let key = if kind == Kind::Local {
            Key::from_absolute_path(local_path(rest, url)?)
        } else {
            Key::parse(prefix)
        };
        Ok(Self {
            store: store(kind, url).with_context(context)?,
            runtime: Arc::new(
                // One thread of its own: it tends idle connections while nobody asks for anything.
                tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .thread_name("object-store")
                    .enable_all()
                    .build()
                    .with_context(context)?,
            ),
            kind,
            key: key.with_context(context)?,
            url: url.to_owned(),
        })
    }

    /// The place `name` (one name, or several with `/`) below this one.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        let key = name
            .split('/')
            .fold(self.key.clone(), object_store::path::Path::join);
        Self {
            key,
            url: format!("{}/{name}", self.url),
            ..self.clone()
        }
    }

    /// The address, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The file or folder, when the store is a local one.
    pub fn local_path(&self) -> Option<PathBuf> {
        (self.kind == Kind::Local)
            .then(|| self.url.strip_prefix("file://").map(PathBuf::from))
            .flatten()
    }

    /// What lies directly below.
    ///
    /// # Errors
    /// When the store cannot be reached or refuses; with what to set.
    pub fn list(&self) -> Result<Listing> {
        let key = (!self.key.as_ref().is_empty()).then_some(&self.key);
        let list = self
            .runtime
            .block_on(self.store.list_with_delimiter(key))
            .map_err(|error| self.explain(&error))?;
        let name = |key: &Key| key.filename().unwrap_or_default().to_owned();
        Ok(Listing {
            folders: list.common_prefixes.iter().map(name).collect(),
            objects: list
                .objects
                .iter()
                .map(|meta| (name(&meta.location), object(meta)))
                .collect(),
        })
    }

    /// What is known of the object. Nothing, when there is none.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn head(&self) -> Result<Option<Object>> {
        match self.runtime.block_on(self.store.head(&self.key)) {
            Ok(meta) => Ok(Some(object(&meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.explain(&error)),
        }
    }

    /// The bytes of a small object. Nothing, when there is none.
    ///
    /// # Errors
    /// As [`Self::list`], or when it has more than 16 MiB.
    pub fn read(&self) -> Result<Option<Bytes>> {
        let read = async {
            let result = self.store.get(&self.key).await?;
            if result.meta.size > MAX_SMALL_BYTES {
                return Ok(None);
            }
            result.bytes().await.map(Some)
        };
        match self.runtime.block_on(read) {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => bail!("{}: larger than 16 MiB", self.url),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.explain(&error)),
        }
    }

    /// Writes a small object, in place of what is there.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn write(&self, bytes: Bytes) -> Result<()> {
        self.runtime
            .block_on(self.store.put(&self.key, PutPayload::from_bytes(bytes)))
            .map_err(|error| self.explain(&error))?;
        Ok(())
    }

    /// Writes a file, in place of what is there. It must not grow meanwhile.
    ///
    /// # Errors
    /// When the file cannot be read; otherwise as [`Self::list`].
    pub fn upload(&self, path: &Path) -> Result<()> {
        let cannot = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(cannot)?;
        let len_bytes = file.metadata().with_context(cannot)?.len();
        if len_bytes <= PART_BYTES {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).with_context(cannot)?;
            return self.write(bytes.into());
        }
        self.runtime.block_on(async {
            let started = self.store.put_multipart(&self.key).await;
            let mut upload = started.map_err(|error| self.explain(&error))?;
            let sent = self.send_parts(upload.as_mut(), file, len_bytes).await;
            let done = match sent.with_context(cannot) {
                Ok(Ok(())) => upload
                    .complete()
                    .await
                    .map_err(|error| self.explain(&error)),
                Ok(Err(error)) => Err(self.explain(&error)),
                Err(error) => Err(error),
            };
            if done.is_err() {
                // The first error is the one to tell; parts that stay go by the bucket's own rule.
                let _ = upload.abort().await;
            }
            done.map(drop)
        })
    }

    /// The outer error is the file's, the inner one the store's.
    async fn send_parts(
        &self,
        upload: &mut dyn MultipartUpload,
        mut file: File,
        len_bytes: u64,
    ) -> std::io::Result<object_store::Result<()>> {
        let part_bytes = PART_BYTES.max(len_bytes.div_ceil(MAX_PARTS)) as usize;
        let mut on_their_way = JoinSet::new();
        let mut left = len_bytes;
        while left > 0 {
            let mut bytes = vec![0; part_bytes.min(left as usize)];
            file.read_exact(&mut bytes)?;
            left -= bytes.len() as u64;
            on_their_way.spawn(upload.put_part(bytes.into()));
            if on_their_way.len() >= N_PARTS_AT_ONCE
                && let Some(part) = on_their_way.join_next().await
                && let Err(error) = part.map_err(Into::into).flatten()
            {
                return Ok(Err(error));
            }
        }
        while let Some(part) = on_their_way.join_next().await {
            if let Err(error) = part.map_err(Into::into).flatten() {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// Downloads the object to `target`, which gets its name when it is whole. A connection that breaks off is taken up
    /// where it was, as long as the object is the same.
    ///
    /// # Errors
    /// When there is no such object, it changes meanwhile, or the disk is full; otherwise as [`Self::list`].
    pub fn download(&self, target: &Path) -> Result<()> {
        let found = self
            .head()?
            .with_context(|| format!("{}: there is no such object", self.url))?;
        check_free_space(target, found.len_bytes)?;
        let mut staged = Staged::create(target, true)?;
        let bar = byte_bar(
            self.key.filename().unwrap_or_default(),
            Some(found.len_bytes),
        );
        let (mut done, mut fruitless) = (0, 0);
        while done < found.len_bytes {
            bar.set_position(done);
            let end = found.len_bytes.min(done + PART_BYTES);
            let options = GetOptions {
                range: Some(GetRange::Bounded(done..end)),
                if_match: found.etag.clone(),
                ..GetOptions::default()
            };
            let part = async { self.store.get_opts(&self.key, options).await?.bytes().await };
            match self.runtime.block_on(part) {
                Ok(bytes) if bytes.len() as u64 == end - done => {
                    staged
                        .write_all(&bytes)
                        .map_err(|error| explain_write(error, target))?;
                    (done, fruitless) = (end, 0);
                }
                Err(
                    error @ (object_store::Error::Precondition { .. }
                    | object_store::Error::NotFound { .. }),
                ) => {
                    return Err(self.explain(&error).context("it changed while it was read"));
                }
                other => {
                    fruitless += 1;
                    if fruitless >= MAX_FRUITLESS {
                        return Err(match other {
                            Ok(_) => anyhow!("{}: its end is missing", self.url),
                            Err(error) => self.explain(&error),
                        });
                    }
                    thread::sleep(Duration::from_millis(200 << fruitless));
                }
            }
        }
        bar.finish_and_clear();
        staged.commit()
    }

    /// Removes the object, if it is there.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn remove(&self) -> Result<()> {
        match self.runtime.block_on(self.store.delete(&self.key)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.explain(&error)),
        }
    }

    /// Removes everything below; the object `first` of each folder before the others.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn remove_all(&self, first: &str) -> Result<()> {
        let Listing { folders, objects } = self.list()?;
        if objects.contains_key(first) {
            self.below(first).remove()?;
        }
        for name in objects.keys().filter(|name| *name != first) {
            self.below(name).remove()?;
        }
        for name in folders {
            self.below(&name).remove_all(first)?;
        }
        // Only a local store has folders of their own, and half-written files in them.
        match self.local_path() {
            Some(path) if path.is_dir() => std::fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display())),
            _ => Ok(()),
        }
    }

    /// What a store's refusal means, and what to do.
    fn explain(&self, error: &object_store::Error) -> Error {
        let text = short(&error.to_string());
        let (url, credentials) = (&self.url, self.kind.credentials());
        // Where a machine asks for its role, on the clouds.
        let metadata = [
            "/latest/api/token",
            "/latest/meta-data/",
            "169.254.169.254",
            "169.254.170.2",
            "metadata.google",
        ];
        if metadata.iter().any(|part| text.contains(part)) {
            return anyhow!("{url}: no credentials: {credentials} ({text})");
        }
        if text.contains("NoSuchBucket") {
            return anyhow!(
                "{url}: there is no such bucket: make it, or check its name and region ({text})"
            );
        }
        match error {
            object_store::Error::NotFound { .. } => anyhow!("{url}: not found ({text})"),
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => {
                anyhow!("{url}: access denied: {credentials} ({text})")
            }
            object_store::Error::Precondition { .. } => anyhow!("{url}: {text}"),
            _ if self.kind == Kind::Local => anyhow!("{url}: {text}"),
            _ if ["error sending request", "HTTP error", "timed out"]
                .iter()
                .any(|part| text.contains(part)) =>
            {
                anyhow!(
                    "{url}: the object store cannot be reached: check the network, and the address where it is not the cloud's own (AWS_ENDPOINT_URL) ({text})"
                )
            }
            _ => anyhow!("{url}: {text}"),
        }
    }
}

/// The folder of `file://` + `rest`.
fn local_path<'a>(rest: &'a str, url: &str) -> Result<&'a Path> {
    let path = Path::new(rest);
    ensure!(
        path.is_absolute(),
        "{url:?}: write a local folder with its whole path, file:///FOLDER"
    );
    Ok(path)
}

fn object(meta: &ObjectMeta) -> Object {
    Object {
        len_bytes: meta.size,
        etag: meta.e_tag.clone(),
        modified: meta.last_modified.to_rfc3339(),
    }
}

/// One line, without the body of a long answer.
fn short(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn store(kind: Kind, url: &str) -> Result<Arc<dyn ObjectStore>> {
    // Fails only when there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_mins(1),
    };
    // A part must get through a slow line; a host that is not there is told soon by the time-out of connecting, 5 s.
    let (timeout, limit) = (ClientConfigKey::Timeout, "300 seconds");
    Ok(match kind {
        Kind::S3 => {
            let mut builder = AmazonS3Builder::from_env()
                .with_url(url)
                .with_retry(retry)
                .with_config(AmazonS3ConfigKey::Client(timeout), limit);
            // Whoever names an endpoint without TLS means it, as for Amazon's own tools.
            let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
            let endpoint = names.iter().find_map(|name| std::env::var(name).ok());
            if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
                builder = builder.with_allow_http(true);
            }
            Arc::new(builder.build()?)
        }
        Kind::Gcs => Arc::new(
            GoogleCloudStorageBuilder::from_env()
                .with_url(url)
                .with_retry(retry)
                .with_config(GoogleConfigKey::Client(timeout), limit)
                .build()?,
        ),
        Kind::Azure => Arc::new(
            MicrosoftAzureBuilder::from_env()
                .with_url(url)
                .with_retry(retry)
                .with_config(AzureConfigKey::Client(timeout), limit)
                .build()?,
        ),
        Kind::Local => Arc::new(LocalFileSystem::new().with_fsync(true)),
    })
}
