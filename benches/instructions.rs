//! What one operation costs in instructions, which is the same each time where the clock is not: for
//! comparing two versions of the engine. Each kind of work runs in a process of its own under callgrind.
//!
//! `cargo bench --bench instructions` (needs `valgrind`) prints a line for each; with names of kinds behind
//! `--`, only those.

use ashlardb::{Background, Compression, Db, WriteBatch};
use std::hint::black_box;
use std::process::Command;

const KINDS: [&str; 10] = [
    "put",
    "batch of 8 puts, a key",
    "get from a segment",
    "get from the memtable",
    "get of an absent key",
    "multi_get of 8, a key",
    "scan, a key",
    "scan backwards, a key",
    "seek and one step",
    "flush, a key",
];

const KEYS: u64 = 200_000;

/// A key for each number, in no order.
fn key(n: u64) -> [u8; 16] {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^= z >> 27;
    let mut key = [0; 16];
    key[..8].copy_from_slice(&z.to_be_bytes());
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

/// Instructions are counted while this runs.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
}

/// Does one kind of work, and gives how many operations that were.
fn work(kind: &str) -> u64 {
    let dir = tempfile::tempdir().expect("a directory");
    let db = Db::builder(dir.path().join("db"))
        .background(Background::Manual)
        .compression(Compression::None)
        .cache_bytes(256 << 20)
        .write_buffer_bytes(128 << 20)
        .open()
        .expect("open");
    let puts = || (0..KEYS).for_each(|n| db.put(key(n), [n as u8; 100]).expect("put"));
    let gets = || {
        for n in 0..KEYS {
            assert!(black_box(db.get(key(n * 7919 % KEYS)).expect("get")).is_some());
        }
    };
    match kind {
        "put" => {
            measured(&mut || puts());
            return KEYS;
        }
        "batch of 8 puts, a key" => {
            measured(&mut || {
                for first in (0..KEYS).step_by(8) {
                    let mut batch = WriteBatch::new();
                    for n in first..first + 8 {
                        batch.put(key(n), [n as u8; 100]);
                    }
                    db.write(batch).expect("write");
                }
            });
            return KEYS;
        }
        _ => puts(),
    }
    if kind == "get from the memtable" {
        measured(&mut || gets());
        return KEYS;
    }
    db.flush().expect("flush");
    db.fill_key_map().expect("the key map");
    // Brings every block into the cache.
    gets();
    match kind {
        "get from a segment" => measured(&mut || gets()),
        "get of an absent key" => measured(&mut || {
            for n in KEYS..2 * KEYS {
                assert!(db.get(key(n)).expect("get").is_none());
            }
        }),
        "multi_get of 8, a key" => measured(&mut || {
            for first in (0..KEYS).step_by(8) {
                let keys: Vec<_> = (first..first + 8).map(|n| key(n * 7919 % KEYS)).collect();
                let found = db.multi_get(&keys).expect("multi_get");
                assert!(black_box(found).iter().all(Option::is_some));
            }
        }),
        "scan, a key" => measured(&mut || {
            assert_eq!(db.get_range::<&[u8]>(..).count() as u64, KEYS);
        }),
        "scan backwards, a key" => measured(&mut || {
            assert_eq!(db.get_range::<&[u8]>(..).rev().count() as u64, KEYS);
        }),
        "seek and one step" => {
            measured(&mut || {
                for n in 0..KEYS / 4 {
                    let mut range = db.get_range(key(n * 7919 % KEYS)..);
                    assert!(range.next_entry().is_some_and(|entry| entry.is_ok()));
                }
            });
            return KEYS / 4;
        }
        "flush, a key" => {
            puts();
            measured(&mut || db.flush().expect("flush"));
        }
        other => panic!("there is no {other:?}"),
    }
    KEYS
}

/// Does it in another process, and gives the instructions that an operation took.
fn count(kind: &str) -> u64 {
    let me = std::env::current_exe().expect("this program");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*measured*", "--callgrind-out-file=/dev/null"])
        .arg(me)
        .args(["--do", kind])
        .output()
        .expect("valgrind is there");
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split("Collected : ").nth(1));
    let total: u64 = collected.and_then(|n| n.trim().parse().ok()).unwrap_or_else(|| {
        panic!("valgrind says {said}");
    });
    let done: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a count");
    total / done
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--test", ..] => {}
        ["--do", kind] => println!("{}", work(kind)),
        ref wanted => {
            for kind in KINDS {
                if wanted.is_empty() || wanted.contains(&kind) {
                    println!("{kind:<24} {:>6}", count(kind));
                }
            }
        }
    }
}
