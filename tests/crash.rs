//! `kill -9` in the middle of concurrent writes, again and again.
//!
//! A child process opens the database and writes from several threads, through flushes and
//! compactions; each thread tells the parent of every write that was acknowledged. The parent kills
//! the child at a random moment, opens the database itself and checks that every acknowledged
//! write is there, that no thread's sequence has a hole, and that batches, which span two
//! keyspaces, are whole. The next round goes on in the same directory.

#![cfg(unix)]

use ashlardb::vfs::{Entropy, SeededEntropy};
use ashlardb::{Db, Durability, WriteBatch};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const WRITERS: u64 = 4;
const ROUNDS: u64 = 200;
/// After so many rounds a new directory is begun.
const ROUNDS_PER_DIRECTORY: u64 = 20;
const DIRECTORY: &str = "ASHLAR_CRASH_DIRECTORY";
const START: &str = "ASHLAR_CRASH_START";

fn open(dir: &Path) -> Db {
    // Small enough that flushes, compactions and log rotations happen all the time.
    Db::builder(dir)
        .write_buffer_bytes(256 << 10)
        .segment_bytes(128 << 10)
        .level1_bytes(256 << 10)
        .level0_runs(2)
        .open()
        .expect("open")
}

fn key(writer: u64, n: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&writer.to_be_bytes());
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

fn value(writer: u64, n: u64) -> Vec<u8> {
    let len = (n * 31 + writer) % 200;
    (0..len).map(|i| (n + i) as u8).collect()
}

/// Not a test of its own: what the child process runs. Without its environment it does nothing.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    let starts = std::env::var(START).expect("start");
    let starts: Vec<u64> = starts.split(',').map(|n| n.parse().expect("a number")).collect();
    let db = open(Path::new(&dir));
    let other = db.keyspace("other").expect("keyspace");
    std::thread::scope(|scope| {
        for (writer, start) in starts.iter().enumerate() {
            let (db, other, writer) = (db.clone(), other.clone(), writer as u64);
            scope.spawn(move || {
                for n in *start.. {
                    let (key, value) = (key(writer, n), value(writer, n));
                    let mut batch = WriteBatch::new();
                    batch.put(key, &value).put_in(&other, key, n.to_be_bytes());
                    let durability =
                        if n % 64 == 0 { Durability::Sync } else { Durability::Buffered };
                    db.write_with(batch, durability).expect("write");
                    // One write call a line, so that lines of threads do not mix.
                    let line = format!("ack {writer} {n}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).expect("tell");
                    std::io::stdout().flush().expect("tell");
                }
            });
        }
    });
}

/// Runs a child from the given numbers on, kills it after a while, and returns the last
/// acknowledged number of each writer.
fn run_and_kill(dir: &Path, starts: &[u64], lifetime: Duration) -> Vec<Option<u64>> {
    let list: Vec<String> = starts.iter().map(u64::to_string).collect();
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, dir)
        .env(START, list.join(","))
        .stdout(Stdio::piped())
        .spawn()
        .expect("start a child");
    let stdout = child.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let mut acknowledged = vec![None; WRITERS as usize];
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { break };
            // The last line may be cut off: then its write counts as not acknowledged.
            let mut words = line.split(' ');
            if words.next() == Some("ack")
                && let Some(Ok(writer)) = words.next().map(str::parse::<usize>)
                && let Some(Ok(n)) = words.next().map(str::parse::<u64>)
                && acknowledged[writer].is_none_or(|last| n == last + 1)
            {
                acknowledged[writer] = Some(n);
            }
        }
        acknowledged
    });
    std::thread::sleep(lifetime);
    // SIGKILL: nothing in the child runs any more.
    child.kill().expect("kill");
    child.wait().expect("wait");
    reader.join().expect("acknowledgements")
}

/// Checks one writer's entries from `from` on and returns the number after the last.
fn check(db: &Db, writer: u64, from: u64, acknowledged: Option<u64>) -> u64 {
    let other = db.keyspace("other").expect("keyspace");
    let range = key(writer, from)..key(writer + 1, 0);
    let mut pairs = db.get_range(range.clone()).zip(other.get_range(range.clone()));
    let mut next = from;
    for (mine, theirs) in &mut pairs {
        let ((k, v), (other_k, n)) = (mine.expect("an entry"), theirs.expect("an entry"));
        assert_eq!(&k[..], key(writer, next), "writer {writer} has a hole");
        assert_eq!(k, other_k, "a batch of writer {writer} is torn");
        assert_eq!(&v[..], value(writer, next));
        assert_eq!(&n[..], next.to_be_bytes());
        next += 1;
    }
    let counts = (db.get_range(range.clone()).count(), other.get_range(range).count());
    assert_eq!(counts.0, counts.1, "a batch of writer {writer} is torn");
    assert!(
        acknowledged.is_none_or(|last| last < next),
        "writer {writer}: {acknowledged:?} was acknowledged, {next} is missing"
    );
    next
}

#[test]
fn no_acknowledged_write_is_lost_when_the_process_is_killed() {
    let rng = SeededEntropy::new(20_261_120);
    let mut written = 0;
    let mut dir = tempfile::tempdir().expect("a directory");
    let mut starts = vec![0; WRITERS as usize];
    for round in 0..ROUNDS {
        if round % ROUNDS_PER_DIRECTORY == 0 {
            dir = tempfile::tempdir().expect("a directory");
            starts.fill(0);
        }
        let path = dir.path().join("db");
        let lifetime = Duration::from_millis(20 + rng.next_u64() % 150);
        let acknowledged = run_and_kill(&path, &starts, lifetime);
        let db = open(&path);
        for (writer, last) in acknowledged.iter().enumerate() {
            let from = starts[writer];
            starts[writer] = check(&db, writer as u64, from, *last);
            written += starts[writer] - from;
        }
        if (round + 1) % ROUNDS_PER_DIRECTORY == 0 {
            for (writer, next) in starts.iter().enumerate() {
                assert_eq!(check(&db, writer as u64, 0, None), *next);
            }
            let report = db.verify(&mut |_, _| {}).expect("verify");
            assert!(report.is_sound(), "{report:?}");
        }
    }
    println!("{ROUNDS} kills, {written} batches");
    assert!(written > ROUNDS, "the children hardly wrote anything");
}
