//! What the rows with real processes and files share: chance from a seed, directories that do not
//! stay, and child processes that do not outlive this one.
//!
//! A child is this executable with the hidden sub-command `child`. It ends when its standard input
//! ends, and so with its parent, however that dies. Directories are below one that has the number
//! of this process in its name; what an interrupted run left is removed by the next.

use crate::driver::Violation;
use ashlardb::vfs::{Entropy, SeededEntropy};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use tempfile::TempDir;

/// Random numbers that follow from a seed.
pub struct Dice(SeededEntropy);

impl Dice {
    /// The numbers for this combination.
    pub fn of(parts: &[u64]) -> Dice {
        let mix = |state: u64, part: &u64| {
            SeededEntropy::new(state.rotate_left(17) ^ part.wrapping_mul(0x9E37_79B9)).next_u64()
        };
        Dice(SeededEntropy::new(parts.iter().fold(0x51ED, mix)))
    }

    pub fn next(&self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `n`, which is not 0.
    pub fn below(&self, n: u64) -> u64 {
        self.next() % n
    }

    /// True one time in `n`.
    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A number from `low` to `high`, as likely between 1 and 2 as between 100 and 200.
    pub fn log_uniform(&self, low: u64, high: u64) -> u64 {
        let share = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        let (low, high) = (low.max(1) as f64, high.max(1) as f64);
        (low * (high / low).powf(share)) as u64
    }
}

/// How many scratch directories there are.
static SCRATCHES: Mutex<usize> = Mutex::new(0);

/// A directory that is removed when this is dropped.
pub struct Scratch {
    dir: Option<TempDir>,
    base: PathBuf,
}

impl Scratch {
    /// A new one below the build's directory for temporary files.
    pub fn new(what: &str) -> Result<Scratch, Violation> {
        Scratch::below(Path::new(env!("CARGO_TARGET_TMPDIR")), what)
    }

    /// A new one below `root`.
    pub fn below(root: &Path, what: &str) -> Result<Scratch, Violation> {
        let mut count = SCRATCHES.lock().unwrap();
        if *count == 0 {
            sweep(root);
        }
        let base = root.join(format!("campaign-{}", std::process::id()));
        let dir = std::fs::create_dir_all(&base)
            .and_then(|()| tempfile::Builder::new().prefix(what).tempdir_in(&base));
        let dir = dir.map_err(|error| format!("cannot create a directory: {error}"))?;
        *count += 1;
        Ok(Scratch { dir: Some(dir), base })
    }

    pub fn path(&self) -> &Path {
        self.dir.as_ref().map_or(&self.base, TempDir::path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut count = SCRATCHES.lock().unwrap();
        if let Some(dir) = self.dir.take()
            && let Err(error) = dir.close()
        {
            eprintln!("cannot remove a directory: {error}");
        }
        *count -= 1;
        if *count == 0
            && let Err(error) = std::fs::remove_dir(&self.base)
        {
            eprintln!("cannot remove {}: {error}", self.base.display());
        }
    }
}

/// Removes what runs left that are over. Where processes cannot be looked up, nothing.
fn sweep(root: &Path) {
    if !Path::new("/proc/self").exists() {
        return;
    }
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(|name| name.strip_prefix("campaign-")) else {
            continue;
        };
        if process.parse::<u32>().is_ok()
            && !Path::new("/proc").join(process).exists()
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            eprintln!("cannot remove {}: {error}", entry.path().display());
        }
    }
}

/// A child process; killed when this is dropped.
pub struct Running {
    child: Child,
    _input: Option<ChildStdin>,
}

impl Running {
    /// Starts `child` with these arguments. What it prints is to be read to its end.
    pub fn start(arguments: &[String]) -> io::Result<(Running, ChildStdout)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("child").args(arguments);
        Running::spawn(command)
    }

    /// The same, with a small file system in memory at `mount` that only the child sees and that
    /// is gone with it. Whether that is permitted, [`tmpfs_permitted`] says.
    pub fn start_on_tmpfs(
        mount: &Path,
        bytes: u64,
        arguments: &[String],
    ) -> io::Result<(Running, ChildStdout)> {
        let mut command = tmpfs_command(mount, bytes);
        command.arg(std::env::current_exe()?).arg("child").args(arguments);
        Running::spawn(command)
    }

    fn spawn(mut command: Command) -> io::Result<(Running, ChildStdout)> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok((Running { child, _input: input }, output))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: nothing in the child runs any more.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("cannot kill a child process: {error}");
        }
    }
}

/// Runs what follows with a small file system in memory, in a name space of its own.
fn tmpfs_command(mount: &Path, bytes: u64) -> Command {
    let script = format!("mount -t tmpfs -o size={bytes} tmpfs \"$0\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    // With the rights of root inside, where those are not there anyway.
    command.args(["--map-root-user", "--mount", "sh", "-c", &script]).arg(mount);
    command
}

/// Whether a child can have a file system of its own here.
pub fn tmpfs_permitted(mount: &Path) -> bool {
    cfg!(target_os = "linux")
        && tmpfs_command(mount, 1 << 20)
            .arg("true")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

/// In a child: ends the process when the parent is gone.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let mut rest = [0; 64];
        while !matches!(io::stdin().lock().read(&mut rest), Ok(0) | Err(_)) {}
        std::process::exit(0);
    });
}

/// In a child: one line to the parent, in one piece. A parent that is gone ends the child.
pub fn tell(line: &str) {
    let mut output = io::stdout().lock();
    let told = output.write_all(format!("{line}\n").as_bytes()).and_then(|()| output.flush());
    if told.is_err() {
        std::process::exit(0);
    }
}

/// In a child: what must never happen did. Told to the parent, and the end.
pub fn tell_wrong(what: &str) -> ! {
    tell(&format!("WRONG {}", what.replace('\n', " ")));
    std::process::exit(1);
}
