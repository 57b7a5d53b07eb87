//! The files in zip and tar archives, one after the other, never a whole one in memory.

use super::{
    Flaw,
    bytes::{Decoding, READ_BYTES, Stream},
    names,
};
use crate::config::Counts;
use flate2::{CrcReader, read::DeflateDecoder};
use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tar::EntryType;
use tempfile::TempPath;
use zip::{CompressionMethod, ZipArchive, result::ZipError};

/// What tar may spend on a header with its long name: real ones take a few blocks.
const MOST_HEADER_BYTES: u64 = 1 << 20;
const TAR_BLOCK_BYTES: u64 = 512;

/// A file in an archive.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) stream: Result<Stream, Flaw>,
}

/// The files in an archive. An error of the archive itself ends it.
pub(super) trait Members: Send {
    /// The next file that is to be read; those of unknown endings are counted.
    fn next_member(&mut self, skipped: &mut Counts) -> Result<Option<Member>, Flaw>;
}

/// Where a zip archive lies.
pub(super) enum ZipPlace {
    /// The input itself; how far it is read is to be told.
    Input(PathBuf, Arc<AtomicU64>),
    /// A copy, removed with this.
    Copy(TempPath),
}

pub(super) struct Zip {
    archive: ZipArchive<BufReader<File>>,
    place: ZipPlace,
    next_idx: usize,
}

impl Zip {
    pub(super) fn open(place: ZipPlace) -> Result<Self, Flaw> {
        let file = place
            .file()
            .map_err(|error| Flaw::whole(0, error.to_string()))?;
        let archive = ZipArchive::new(BufReader::new(file)).map_err(|error| zip_flaw(&error))?;
        Ok(Self {
            archive,
            place,
            next_idx: 0,
        })
    }

    /// The content of the file `idx`, read by a handle of its own.
    fn stream(&mut self, idx: usize) -> Result<Stream, Flaw> {
        let member = self
            .archive
            .by_index_raw(idx)
            .map_err(|error| zip_flaw(&error))?;
        let refused = |reason: &str| Err(Flaw::whole(0, reason.to_owned()));
        let entry = member.entry();
        if entry.encrypted() {
            return refused("is encrypted");
        }
        let (method, crc32, len) = (entry.compression(), entry.crc32(), entry.compressed_size());
        let Some(start) = member.data_start() else {
            return refused("broken zip: the file's place is missing");
        };
        let mut file = self
            .place
            .file()
            .map_err(|error| Flaw::whole(0, error.to_string()))?;
        file.seek(SeekFrom::Start(start))
            .map_err(|error| Flaw::whole(0, error.to_string()))?;
        let stored = self.place.counted(file.take(len));
        let stream: Stream = match method {
            CompressionMethod::Stored => stored,
            CompressionMethod::Deflated => Box::new(DeflateDecoder::new(stored)),
            other => return refused(&format!("is compressed by {other}, which is not supported")),
        };
        Ok(Box::new(Decoding {
            stream: Box::new(Checked {
                reader: CrcReader::new(stream),
                crc32,
            }),
            what: "zip",
            n_bytes: 0,
        }))
    }
}

fn zip_flaw(error: &ZipError) -> Flaw {
    Flaw::whole(0, format!("broken zip: {error}"))
}

impl Members for Zip {
    fn next_member(&mut self, skipped: &mut Counts) -> Result<Option<Member>, Flaw> {
        while self.next_idx < self.archive.len() {
            let idx = self.next_idx;
            self.next_idx += 1;
            let entry = self
                .archive
                .by_index_data(idx)
                .map_err(|error| zip_flaw(&error))?;
            let name = match entry.name() {
                Ok(name) => name.into_owned(),
                Err(_) => String::from_utf8_lossy(entry.name_raw()).into_owned(),
            };
            if entry.is_dir() || entry.is_symlink() || !names::is_taken(&name, skipped) {
                continue;
            }
            let stream = self.stream(idx);
            return Ok(Some(Member { name, stream }));
        }
        Ok(None)
    }
}

impl ZipPlace {
    fn file(&self) -> io::Result<File> {
        match self {
            Self::Input(path, _) => File::open(path),
            Self::Copy(path) => File::open(path),
        }
    }

    fn counted(&self, reader: io::Take<File>) -> Stream {
        let reader = BufReader::with_capacity(READ_BYTES, reader);
        match self {
            Self::Input(_, progress) => Box::new(Counted {
                reader,
                progress: Arc::clone(progress),
            }),
            Self::Copy(_) => Box::new(reader),
        }
    }
}

struct Counted<R> {
    reader: R,
    progress: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.progress.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Compares the checksum at the end.
struct Checked<R> {
    reader: CrcReader<R>,
    crc32: u32,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        if n == 0 && !buffer.is_empty() && self.reader.crc().sum() != self.crc32 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the checksum is wrong",
            ));
        }
        Ok(n)
    }
}

/// The tar crate's entries borrow their archive, so that they cannot be kept beside it. Here it reads each header alone, from
/// an archive that begins there, and the contents are read by what follows.
pub(super) struct Tar(Arc<Mutex<TarState>>);

struct TarState {
    stream: Stream,
    /// Of the member at hand.
    left: u64,
    padding: u64,
    /// The stream failed, and whoever read said so.
    failed: bool,
}

impl Tar {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(TarState {
            stream,
            left: 0,
            padding: 0,
            failed: false,
        })))
    }
}

impl TarState {
    fn skip(&mut self) -> io::Result<()> {
        let len = self.left.saturating_add(self.padding);
        let n = io::copy(&mut (&mut self.stream).take(len), &mut io::sink())?;
        // The last block may lack its padding.
        if n < self.left {
            Err(cut_off())
        } else {
            Ok(())
        }
    }

    /// Reads up to the content of the next member: its name and type.
    fn header(&mut self) -> io::Result<Option<(String, EntryType)>> {
        self.skip()?;
        (self.left, self.padding) = (0, 0);
        let limited = (&mut self.stream).take(MOST_HEADER_BYTES);
        let mut archive = tar::Archive::new(limited);
        let Some(entry) = archive.entries()?.next().transpose()? else {
            return Ok(None);
        };
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        // A sparse file has less in the archive than its size.
        let len = if kind.is_gnu_sparse() {
            entry.header().entry_size()?
        } else {
            entry.size()
        };
        drop(entry);
        self.left = len;
        self.padding = (TAR_BLOCK_BYTES - len % TAR_BLOCK_BYTES) % TAR_BLOCK_BYTES;
        Ok(Some((name, kind)))
    }
}

fn lock(state: &Mutex<TarState>) -> MutexGuard<'_, TarState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the tar archive is cut off")
}

impl Members for Tar {
    fn next_member(&mut self, skipped: &mut Counts) -> Result<Option<Member>, Flaw> {
        let mut state = lock(&self.0);
        loop {
            if state.failed {
                return Ok(None);
            }
            let header = state.header().map_err(|error| {
                state.failed = true;
                Flaw::whole(0, format!("broken tar: {error}"))
            })?;
            let Some((name, kind)) = header else {
                return Ok(None);
            };
            if (kind.is_file() || kind.is_gnu_sparse()) && names::is_taken(&name, skipped) {
                let stream = if kind.is_file() {
                    Ok(Box::new(TarMember(Arc::clone(&self.0))) as Stream)
                } else {
                    let reason = "is a sparse file, which is not supported in an archive";
                    Err(Flaw::whole(0, reason.to_owned()))
                };
                return Ok(Some(Member { name, stream }));
            }
        }
    }
}

struct TarMember(Arc<Mutex<TarState>>);

impl Read for TarMember {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = lock(&self.0);
        let len = buffer
            .len()
            .min(usize::try_from(state.left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        let read = match state.stream.read(&mut buffer[..len]) {
            Ok(0) => Err(cut_off()),
            read => read,
        };
        match &read {
            Ok(n) => state.left -= *n as u64,
            Err(error) => state.failed |= error.kind() != io::ErrorKind::Interrupted,
        }
        read
    }
}
