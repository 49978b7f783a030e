//! The only door to the operating system: files, directories, time and chance.
//!
//! Everything above sees [`Vfs`], [`Clock`] and [`Entropy`], bundled in an [`Env`]; a database given
//! other ones runs deterministically in memory. [`OsVfs`] is the real thing, [`MemVfs`] a file
//! system in memory, [`SimVfs`] one that crashes and fails when told to.
//!
//! Invariants: no other room calls `std::fs`, reads a clock or draws a random number. Paths are
//! passed through as they are. All traits are `Send + Sync`; calls may come from any thread.
//! Called by every room that touches a file.

mod mem;
mod os;
mod read_only;
mod sim;

pub use mem::MemVfs;
pub use os::OsVfs;
pub(crate) use read_only::{NoFile, ReadOnlyVfs};
pub use sim::{Call, Failure, SimVfs};

use crate::sync::atomic::{AtomicU64, Ordering};
use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How [`Vfs::open`] treats the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A new file, for reading and writing; it must not exist.
    CreateNew,
}

/// A file system. A new or renamed entry is durable only after [`Vfs::sync_dir`].
#[expect(clippy::missing_errors_doc, reason = "each method fails as the operating system does")]
pub trait Vfs: Send + Sync + Debug {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>>;
    /// Creates a directory and the missing ones above it; succeeds if it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, in no particular order.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Whether something exists at the path.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Renames a file, replacing the target at once if there is one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, where nothing may be yet: the same bytes, which stay until both names
    /// are removed. `Unsupported` where there is no such thing, as by default, or another error of the
    /// operating system: [`CrossesDevices`](io::ErrorKind::CrossesDevices), say.
    fn hard_link(&self, _existing: &Path, _new: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Removes a file. Open handles go on working.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Makes the entries of a directory durable: creations, links, renames, removals.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Takes the exclusive lock that the file at `path` (created if missing) stands for.
    /// `None`: someone else has it. Dropping the result releases it.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>>;
}

/// An open file. Positions are in bytes from its start; there is no cursor to share.
#[expect(clippy::missing_errors_doc, reason = "each method fails as the operating system does")]
pub trait VfsFile: Send + Sync + Debug {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` at `offset`, extending the file where needed. After an error any part
    /// may have been written.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Makes the bytes and the length durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// Reads exactly `buf.len()` bytes at `offset`, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.read_at(buf, offset)? == buf.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// A held lock; dropping it releases it.
pub trait VfsLock: Send + Sync + Debug {}

/// The time, in two forms.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since the Unix epoch. May jump, either way.
    fn unix_ms(&self) -> u64;
    /// Time since some fixed moment. Never runs backwards.
    fn monotonic(&self) -> Duration;
    /// Lets this much time pass.
    fn sleep(&self, duration: Duration);
}

/// A source of random numbers: for identity and for seeds, not for secrets.
pub trait Entropy: Send + Sync + Debug {
    /// Sixty-four random bits.
    fn next_u64(&self) -> u64;
}

/// Everything a database takes from outside.
#[derive(Clone, Debug)]
pub struct Env {
    /// The files.
    pub vfs: Arc<dyn Vfs>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
}

impl Default for Env {
    /// The operating system's files, clock and randomness.
    fn default() -> Self {
        Env { vfs: Arc::new(OsVfs), clock: Arc::new(os::OsClock), entropy: Arc::new(os::OsEntropy) }
    }
}

impl Env {
    /// A world in memory: empty files, a clock that stands at zero and moves only when slept on,
    /// random numbers from `seed`. Clones share the world.
    #[must_use]
    pub fn in_memory(seed: u64) -> Self {
        Env {
            vfs: Arc::new(MemVfs::default()),
            clock: Arc::new(ManualClock::default()),
            entropy: Arc::new(SeededEntropy::new(seed)),
        }
    }

    /// A random (version 4) UUID from the injected source.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.entropy.next_u64().to_le_bytes());
        bytes[8..].copy_from_slice(&self.entropy.next_u64().to_le_bytes());
        uuid::Builder::from_random_bytes(bytes).into_uuid().into_bytes()
    }
}

/// A clock that moves only when told to, or when slept on.
#[derive(Debug, Default)]
pub struct ManualClock {
    ns: AtomicU64,
}

impl ManualClock {
    /// Lets time pass.
    pub fn advance(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.ns.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn unix_ms(&self) -> u64 {
        self.ns.load(Ordering::Relaxed) / 1_000_000
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.ns.load(Ordering::Relaxed))
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
    }
}

/// Random numbers that follow from a seed (SplitMix64, Steele, Lea and Flood, OOPSLA 2014).
#[derive(Debug)]
pub struct SeededEntropy {
    state: AtomicU64,
}

impl SeededEntropy {
    /// The sequence of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        SeededEntropy { state: AtomicU64::new(seed) }
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
