//! From asynchronous code: `cargo run --example async_tokio`.
//!
//! The library is synchronous: a call may wait for the disk. So calls go to threads that may wait, and
//! tasks await them. Writes of many tasks go through one thread, which takes all that has come meanwhile
//! into one batch and syncs once for all of them.

use ashlardb::{Db, Durability, Error, Result, Value, WriteBatch};
use tokio::sync::{mpsc, oneshot};

struct Put {
    key: Vec<u8>,
    value: Vec<u8>,
    done: oneshot::Sender<Result<()>>,
}

/// A handle for tasks. Cheap to clone.
#[derive(Clone)]
struct AsyncDb {
    db: Db,
    puts: mpsc::Sender<Put>,
}

impl AsyncDb {
    /// The handle, and the thread that writes; it ends with the last handle.
    fn new(db: Db) -> (AsyncDb, tokio::task::JoinHandle<()>) {
        let (puts, mut queue) = mpsc::channel::<Put>(1024);
        let writer = db.clone();
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(first) = queue.blocking_recv() {
                let mut batch = WriteBatch::new();
                let mut waiting = Vec::new();
                let more = std::iter::from_fn(|| queue.try_recv().ok()).take(999);
                for put in std::iter::once(first).chain(more) {
                    batch.put(put.key, put.value);
                    waiting.push(put.done);
                }
                let outcome = writer.write_with(batch, Durability::Sync);
                for done in waiting {
                    // Who does not wait any more need not know.
                    drop(done.send(outcome.clone()));
                }
            }
        });
        (AsyncDb { db, puts }, thread)
    }

    /// Sets a key; once this returns, it survives a loss of power.
    async fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Result<()> {
        let (done, outcome) = oneshot::channel();
        let put = Put { key: key.into(), value: value.into(), done };
        self.puts.send(put).await.map_err(|_| Error::Closed)?;
        outcome.await.map_err(|_| Error::Closed)?
    }

    /// Reads a key on a thread that may wait for the disk.
    async fn get(&self, key: impl AsRef<[u8]> + Send + 'static) -> Result<Option<Value>> {
        let db = self.db.clone();
        let got = tokio::task::spawn_blocking(move || db.get(key)).await;
        got.map_err(|_| Error::Closed)?
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let (db, thread) = AsyncDb::new(Db::open(dir.path())?);
    let tasks: Vec<_> = (0..1000_u32)
        .map(|n| {
            let db = db.clone();
            tokio::spawn(async move { db.put(n.to_be_bytes(), format!("value {n}")).await })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    assert_eq!(db.get(7_u32.to_be_bytes()).await?.expect("it was put"), b"value 7");
    println!("1000 puts, each synced, by {} syncs", db.db.stats().syncs);

    let AsyncDb { db, puts } = db;
    drop(puts);
    thread.await?;
    Ok(db.close()?)
}
