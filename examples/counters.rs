//! Counting without reading: `cargo run --example counters`.
//!
//! Several threads count words. A merge says "add one" without looking at the value, so nothing is lost
//! between threads, and no count is read before somebody asks for it.

use ashlardb::Db;
use ashlardb::merge::AddI64;

const TEXT: &str = "the stone which the builders refused is become the head stone of the corner";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    // A database that was opened with an operator needs it each time: it is part of the data.
    let db = Db::builder(dir.path()).merge_operator(AddI64).open()?;

    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    TEXT.split(' ').try_for_each(|word| db.merge(word, 1_i64.to_le_bytes()))
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;

    for entry in db.get_range::<&str>(..) {
        let (word, count) = entry?;
        let count = i64::from_le_bytes(count[..].try_into()?);
        println!("{count:>3} {}", word.escape_ascii());
    }
    assert_eq!(db.get("the")?.expect("it was counted"), 16_i64.to_le_bytes());

    // A put starts anew.
    db.put("the", 0_i64.to_le_bytes())?;
    db.merge("the", 5_i64.to_le_bytes())?;
    assert_eq!(db.get("the")?.expect("it is there"), 5_i64.to_le_bytes());
    Ok(db.close()?)
}
