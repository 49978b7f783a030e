//! A store of sessions that end by themselves: `cargo run --example sessions`.
//!
//! Everything in the keyspace lives for half an hour, unless it is written again; what has expired is
//! absent at once, and compaction removes it. The clock is injected, so that nobody has to wait here.

use ashlardb::vfs::Env;
use ashlardb::{Db, Keyspace, KeyspaceOptions, Result};
use std::time::Duration;

const IDLE: Duration = Duration::from_secs(30 * 60);

struct Sessions(Keyspace);

impl Sessions {
    fn open(db: &Db) -> Result<Sessions> {
        Ok(Sessions(db.keyspace_with("sessions", &KeyspaceOptions::new().default_ttl(IDLE))?))
    }

    fn log_in(&self, id: &str, user: &str) -> Result<()> {
        self.0.put(id, user)
    }

    /// Who it is, if the session lives; then it lives on.
    fn touch(&self, id: &str) -> Result<Option<String>> {
        let Some(user) = self.0.get(id)? else { return Ok(None) };
        self.0.put(id, &user)?;
        Ok(Some(String::from_utf8_lossy(&user).into_owned()))
    }

    /// A session that ends soon, whatever happens.
    fn log_in_once(&self, id: &str, user: &str) -> Result<()> {
        self.0.put_with_ttl(id, user, Duration::from_secs(60))
    }

    fn log_out_all(&self) -> Result<()> {
        self.0.clear()
    }
}

fn main() -> Result<()> {
    // A database in memory, whose time goes on when it is told to. With `Db::open(path)` it is the
    // system's clock.
    let env = Env::in_memory(1);
    let db = Db::builder("/sessions").env(env.clone()).open()?;
    let minutes = |n: u64| env.clock.sleep(Duration::from_secs(60 * n));

    let sessions = Sessions::open(&db)?;
    sessions.log_in("a1", "ada")?;
    sessions.log_in("b2", "bob")?;
    sessions.log_in_once("c3", "carol")?;
    minutes(20);
    assert_eq!(sessions.touch("a1")?.as_deref(), Some("ada"));
    assert_eq!(sessions.touch("c3")?, None, "it was for a minute");
    minutes(20);
    assert_eq!(sessions.touch("a1")?.as_deref(), Some("ada"), "it was used meanwhile");
    assert_eq!(sessions.touch("b2")?, None, "it was not");

    // What has expired takes no room any more once it was compacted.
    sessions.0.compact_range::<&str>(..)?;
    println!("{} sessions on the disk", db.segments().iter().map(|s| s.entries).sum::<u64>());
    sessions.log_out_all()?;
    db.close()
}
