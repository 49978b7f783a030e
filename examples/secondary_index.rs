//! An index that is never wrong: `cargo run --example secondary_index`.
//!
//! Users by id, and an index by city. Each change writes both in one transaction that has read what it
//! changes, so that the index has exactly what the users have, whatever other threads do.

use ashlardb::{Db, Keyspace, Result};

struct Users {
    db: Db,
    by_id: Keyspace,
    by_city: Keyspace,
}

/// A city, then the user: so all of a city stand together.
fn place(city: &[u8], id: &str) -> Vec<u8> {
    [city, b"\0", id.as_bytes()].concat()
}

impl Users {
    fn open(db: &Db) -> Result<Users> {
        let (by_id, by_city) = (db.keyspace("users")?, db.keyspace("users by city")?);
        Ok(Users { db: db.clone(), by_id, by_city })
    }

    /// Where somebody lives from now on.
    fn move_to(&self, id: &str, city: &str) -> Result<()> {
        // Run again if others wrote what it read, until nobody did.
        self.db.transact(|tx| {
            if let Some(old) = tx.get_in(&self.by_id, id)? {
                tx.delete_in(&self.by_city, place(&old, id))?;
            }
            tx.put_in(&self.by_id, id, city)?;
            tx.put_in(&self.by_city, place(city.as_bytes(), id), "")
        })
    }

    fn in_city(&self, city: &str) -> Result<Vec<String>> {
        let prefix = place(city.as_bytes(), "");
        let ids = self.by_city.prefix(&prefix).map(|entry| {
            let (key, _) = entry?;
            Ok(String::from_utf8_lossy(&key[prefix.len()..]).into_owned())
        });
        ids.collect()
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let db = Db::open(dir.path())?;
    let users = Users::open(&db)?;
    const CITIES: [&str; 3] = ["Bath", "Cork", "Dover"];

    // Four threads move the same three users to and fro.
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4_usize)
            .map(|thread| {
                let users = &users;
                scope.spawn(move || {
                    (0..300).try_for_each(|n: usize| {
                        let city = CITIES[(n * 7 + thread) % 3];
                        users.move_to(["ada", "bob", "carol"][n % 3], city)
                    })
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;

    let mut found = 0;
    for city in CITIES {
        let ids = users.in_city(city)?;
        for id in &ids {
            assert_eq!(users.by_id.get(id)?.expect("the user is there"), city.as_bytes());
        }
        println!("{city}: {}", ids.join(", "));
        found += ids.len();
    }
    assert_eq!(found, 3, "each user lives in one city");
    Ok(db.close()?)
}
