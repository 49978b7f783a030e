//! What the system says of this process and of directories.

use std::fs;
use std::path::Path;

/// Counts of bytes, as in `/proc/self/io`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Io {
    /// Handed to write calls.
    pub wchar: u64,
    /// Of pages dirtied, by writes and by maps: what goes to the device, unless it is truncated first
    /// or dirtied again before it went.
    pub written: u64,
    /// Of those, truncated before they were written.
    pub cancelled: u64,
    /// Fetched from the device.
    pub read: u64,
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[must_use]
pub fn io() -> Io {
    let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
    Io {
        wchar: field(&text, "wchar"),
        written: field(&text, "write_bytes"),
        cancelled: field(&text, "cancelled_write_bytes"),
        read: field(&text, "read_bytes"),
    }
}

impl Io {
    #[must_use]
    pub fn since(&self, earlier: &Io) -> Io {
        Io {
            wchar: self.wchar - earlier.wchar,
            written: self.written - earlier.written,
            cancelled: self.cancelled - earlier.cancelled,
            read: self.read - earlier.read,
        }
    }
}

/// The largest resident size since the start or the last [`reset_peak`], in bytes.
#[must_use]
pub fn peak_rss() -> u64 {
    field(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmHWM") << 10
}

/// Resident memory that is no file's, now, in bytes.
#[must_use]
pub fn anon_rss() -> u64 {
    field(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "RssAnon") << 10
}

/// Begins a new peak. Where the system forbids it, the peak is that since the start.
pub fn reset_peak() {
    drop(fs::write("/proc/self/clear_refs", "5"));
}

/// Time on a processor of all threads, in seconds.
#[must_use]
pub fn cpu_seconds() -> f64 {
    // SAFETY: a plain structure of integers that the call fills.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to that structure.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Bytes of disk that the files below a directory take.
#[must_use]
pub fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Writes everything dirty of the file system that holds `dir`, so that it does not fall to the
/// next engine.
pub fn sync_file_system(dir: &Path) {
    use std::os::fd::AsRawFd;
    if let Ok(file) = fs::File::open(dir) {
        // SAFETY: the descriptor is open.
        unsafe { libc::syncfs(file.as_raw_fd()) };
    }
}

/// Model of the processor, cores, memory, kernel.
#[must_use]
pub fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal") >> 20;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let model = model.map_or("unknown processor", |(_, model)| model.trim());
    format!("{model}, {cores} cores, {memory} GiB, Linux {}", kernel.trim())
}
