//! Bytes as they are stored, counted and hashed; their first part looked at before the rest; and what gzip and zstd hide.

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use std::{
    fmt,
    io::{self, BufReader, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bytes from anywhere.
pub(super) type Stream = Box<dyn Read + Send>;

/// What one read of stored bytes asks for.
pub(super) const READ_BYTES: usize = 1 << 18;

/// The bytes of an input as they are stored. Clones read on from the same place.
#[derive(Clone)]
pub(super) struct Stored(Arc<Mutex<Tally>>);

struct Tally {
    stream: Stream,
    sha256: Sha256,
    n_bytes: u64,
}

impl Stored {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(Tally {
            stream,
            sha256: Sha256::new(),
            n_bytes: 0,
        })))
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes were read so far.
    pub(super) fn n_bytes(&self) -> u64 {
        self.tally().n_bytes
    }

    /// Reads what is left, and gives the hash of everything in hexadecimal digits.
    pub(super) fn finish(&mut self) -> io::Result<String> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        let digest = self.tally().sha256.clone().finalize();
        Ok(format!("{digest:x}"))
    }
}

impl Read for Stored {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut tally = self.tally();
        let n = tally.stream.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind == io::ErrorKind::Interrupted {
                error
            } else {
                io::Error::new(kind, Unreadable(error))
            }
        })?;
        tally.sha256.update(&buffer[..n]);
        tally.n_bytes += n as u64;
        Ok(n)
    }
}

/// The stored bytes themselves could not be read: no decoder on top of them is to blame.
#[derive(Debug)]
struct Unreadable(io::Error);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot be read: {}", self.0)
    }
}

impl std::error::Error for Unreadable {}

/// A stream whose first bytes can be looked at. An error among them comes when they were read.
pub(super) struct Peek {
    head: Vec<u8>,
    position: usize,
    error: Option<io::Error>,
    ended: bool,
    rest: Stream,
}

impl Peek {
    pub(super) fn new(rest: Stream) -> Self {
        Self {
            head: Vec::new(),
            position: 0,
            error: None,
            ended: false,
            rest,
        }
    }

    /// The first `len` bytes, or fewer where the stream ends or fails before. For use before anything is read.
    pub(super) fn head(&mut self, len: usize) -> &[u8] {
        while self.head.len() < len && !self.ended && self.error.is_none() {
            let have = self.head.len();
            self.head.resize(len, 0);
            let got = self.rest.read(&mut self.head[have..]);
            self.head.truncate(have + *got.as_ref().unwrap_or(&0));
            match got {
                Ok(0) => self.ended = true,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    self.error = Some(error);
                }
                _ => {}
            }
        }
        &self.head[..len.min(self.head.len())]
    }

    /// Whether what [`Peek::head`] gave is all there is.
    pub(super) fn is_whole(&self) -> bool {
        self.ended
    }
}

impl Read for Peek {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position < self.head.len() {
            let n = (&self.head[self.position..]).read(buffer)?;
            self.position += n;
            return Ok(n);
        }
        // A large head is not needed any more.
        self.head = Vec::new();
        self.position = 0;
        match self.error.take() {
            Some(error) => {
                self.ended = true;
                Err(error)
            }
            None if self.ended => Ok(0),
            None => self.rest.read(buffer),
        }
    }
}

/// What a file's first bytes say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Magic {
    Gzip,
    Zstd,
    Zip,
    Tar,
    Parquet,
    Pdf,
}

/// As many bytes as [`magic`] looks at.
pub(super) const MAGIC_BYTES: usize = 512;

pub(super) fn magic(head: &[u8]) -> Option<Magic> {
    let known: [(&[u8], Magic); 6] = [
        (&[0x1f, 0x8b], Magic::Gzip),
        (&[0x28, 0xb5, 0x2f, 0xfd], Magic::Zstd),
        (b"PK\x03\x04", Magic::Zip),
        (b"PK\x05\x06", Magic::Zip),
        (b"PAR1", Magic::Parquet),
        (b"%PDF-", Magic::Pdf),
    ];
    let starts = known.iter().find(|(bytes, _)| head.starts_with(bytes));
    let tar = || (head.get(257..262) == Some(b"ustar".as_slice())).then_some(Magic::Tar);
    starts.map(|(_, magic)| *magic).or_else(tar)
}

/// Takes gzip or zstd off, where there is one.
pub(super) fn decompressed(mut peek: Peek) -> io::Result<(Peek, bool)> {
    let (what, stream): (_, Stream) = match magic(peek.head(MAGIC_BYTES)) {
        Some(Magic::Gzip) => {
            let stored = BufReader::with_capacity(READ_BYTES, peek);
            ("gzip", Box::new(MultiGzDecoder::new(stored)))
        }
        Some(Magic::Zstd) => ("zstd", Box::new(zstd::Decoder::new(peek)?)),
        _ => return Ok((peek, false)),
    };
    let decoding = Decoding {
        stream,
        what,
        n_bytes: 0,
    };
    Ok((Peek::new(Box::new(decoding)), true))
}

/// Says of a decoder's errors which decoder, and how far it came.
pub(super) struct Decoding {
    pub(super) stream: Stream,
    pub(super) what: &'static str,
    pub(super) n_bytes: u64,
}

impl Read for Decoding {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            // Zstd's decoder takes this for a mistake.
            return Ok(0);
        }
        let n = self.stream.read(buffer).map_err(|error| {
            let inner = error.get_ref();
            let decoders = inner
                .and_then(|inner| inner.downcast_ref::<Unreadable>())
                .is_none();
            if decoders && error.kind() != io::ErrorKind::Interrupted {
                let (what, n) = (self.what, self.n_bytes);
                io::Error::new(
                    error.kind(),
                    format!("broken {what} after {n} bytes: {error}"),
                )
            } else {
                error
            }
        })?;
        self.n_bytes += n as u64;
        Ok(n)
    }
}
