//! The interface in twenty lines: `cargo run --example quickstart`.

use ashlardb::{Db, WriteBatch};

fn main() -> ashlardb::Result<()> {
    let dir = format!("ashlardb-quickstart-{}", std::process::id());
    let db = Db::open(std::env::temp_dir().join(dir))?;

    // Keys and values are bytes; a write is acknowledged once a crash of the process cannot lose it.
    db.put("apple", "red")?;
    db.put("banana", "yellow")?;
    db.put("cherry", "red")?;
    assert_eq!(db.get("banana")?.as_deref(), Some(&b"yellow"[..]));

    // A batch happens as a whole or not at all, over several keyspaces too.
    let before = db.snapshot();
    let eaten = db.keyspace("eaten")?;
    let mut batch = WriteBatch::new();
    batch.delete("apple").put_in(&eaten, "apple", "yesterday");
    db.write(batch)?;
    assert!(before.get("apple")?.is_some() && db.get("apple")?.is_none());

    // Ranges come in the order of the keys, from either end.
    for entry in db.get_range("a".."c").chain(db.prefix("ch")) {
        let (key, value) = entry?;
        println!("{} is {}", key.escape_ascii(), value.escape_ascii());
    }

    // From here on, a power cut cannot lose any of it either.
    db.sync()?;
    db.close()
}
