//! What else shows a database, held against what it has: checkpoints, backups that are restored, readers
//! beside it, and a copy that follows its change feed.

use crate::workload::{Runner, State, Trouble, Value, contents, handles, space_of, space_options};
use ashlardb::{Backups, Change, Db, Error, ReadOnlyDb, SeqNo};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A way to have the database once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    Checkpoint,
    /// A backup beside those before, restored.
    Backup,
    /// Opened for reading, beside the writer.
    Reader,
}

/// A copy that lives on what the feed tells.
pub struct Follower {
    state: State,
    at: SeqNo,
    /// The keyspaces of the feed, by id.
    spaces: BTreeMap<u32, u8>,
}

impl Runner {
    /// Makes a copy and compares it. Gives whether everything is durable now.
    pub fn copy(&mut self, copying: Copying, now: &Arc<State>) -> Result<bool, Trouble> {
        self.copies += 1;
        let dir = format!("/copies/{}", self.copies);
        match copying {
            Copying::Checkpoint => self.db().checkpoint(&dir, &mut |_, _| {})?,
            Copying::Backup => {
                let number = self.db().backup("/backups", &mut |_, _| {})?.backup.number;
                let backups = Backups::open_in(&self.env, "/backups")?;
                backups.restore(number, &dir, &mut |_, _| {})?;
            }
            Copying::Reader => {
                let reader = self.config.builder(&self.env).open_read_only()?;
                let found = shown(&reader)?;
                // What failed and cannot be seen may come to light there, as after a crash.
                if !self.history.lock().unwrap().may_recover(&found) {
                    return Err(self.wrong("a reader", &found));
                }
                return Ok(false);
            }
        }
        let builder = self.config.builder_in(&dir, &self.env).create_if_missing(false);
        let copy = builder.open()?;
        let found = contents(&copy, &handles(&copy, &self.config)?)?;
        if found != **now {
            return Err(self.wrong("a copy", &found));
        }
        copy.close()?;
        Ok(true)
    }

    fn wrong(&self, who: &str, found: &State) -> Trouble {
        let what = self.history.lock().unwrap().describe(found);
        Trouble::Wrong(format!("{who}: {what}"))
    }

    /// Brings the copy that follows the feed up to date, and compares it.
    pub fn follow(&mut self, now: &Arc<State>) -> Result<(), Trouble> {
        if !self.config.keeps_logs() {
            return Ok(());
        }
        if self.follower.is_some() {
            // Whatever failed before, and what came in past the log, is told with the next operation.
            self.db().delete("of nothing")?;
        }
        let now_ms = self.env.clock.unix_ms();
        if let Some(follower) = &mut self.follower
            && follower.catch_up(self.db.as_ref().expect("the database is open"), now_ms)?
        {
            if follower.state == **now {
                return Ok(());
            }
            let found = follower.state.clone();
            return Err(self.wrong("a copy that follows the feed", &found));
        }
        let at = self.db().snapshot().seqno();
        let spaces = self.handles.iter().map(|(space, handle)| (handle.id().0, *space)).collect();
        self.follower = Some(Follower { state: State::clone(now), at, spaces });
        Ok(())
    }
}

impl Follower {
    /// Takes in what is new. Gives whether the feed had all of it.
    fn catch_up(&mut self, db: &Db, now_ms: u64) -> Result<bool, Trouble> {
        let feed = match db.changes_since(self.at) {
            Err(Error::ChangesGone { .. }) => return Ok(false),
            feed => feed?,
        };
        for batch in feed {
            let batch = match batch {
                Err(Error::ChangesGone { .. }) => return Ok(false),
                batch => batch?,
            };
            if batch.last < self.at || batch.changes.is_empty() {
                return Err(Trouble::Wrong(format!("the feed gives {batch:?} at {}", self.at)));
            }
            self.at = batch.last;
            for change in &batch.changes {
                if !self.apply(change, now_ms)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn apply(&mut self, change: &Change, now_ms: u64) -> Result<bool, Trouble> {
        let has_expired = |expires_ms: &Option<u64>| expires_ms.is_some_and(|ms| ms <= now_ms);
        match change {
            Change::Keyspaces(live) => {
                let named = live.iter().map(|k| Ok((k.id.0, space_of(&k.name)?)));
                let spaces: BTreeMap<u32, u8> = named.collect::<Result<_, Trouble>>()?;
                let before = std::mem::replace(&mut self.spaces, spaces);
                let gone = before.iter().filter(|(id, _)| !self.spaces.contains_key(id));
                gone.for_each(|(_, space)| drop(self.state.remove(space)));
                for space in self.spaces.values() {
                    self.state.entry(*space).or_default();
                }
            }
            Change::Put { keyspace, key, value, expires_ms } => {
                let space = self.space(keyspace.id.0)?;
                let contents = self.state.entry(space).or_default();
                contents.remove(&key[..]);
                let value = Value::read(space, value).filter(|_| !has_expired(expires_ms));
                contents.extend(value.map(|v| (key.to_vec(), v.expiring(*expires_ms))));
            }
            Change::Merge { expires_ms, .. } if has_expired(expires_ms) => {}
            Change::Merge { keyspace, key, operand, expires_ms } => {
                let space = self.space(keyspace.id.0)?;
                let contents = self.state.entry(space).or_default();
                let operand = Value::read(space, operand).unwrap_or_default();
                contents.entry(key.to_vec()).or_default().append(operand.expiring(*expires_ms));
            }
            Change::Delete { keyspace, key } => {
                let space = self.space(keyspace.id.0)?;
                self.state.entry(space).or_default().remove(&key[..]);
            }
            Change::DeleteRange { keyspace, start, end } => {
                let space = self.space(keyspace.id.0)?;
                let is_in =
                    |key: &[u8]| *key >= start[..] && end.as_ref().is_none_or(|e| *key < e[..]);
                self.state.entry(space).or_default().retain(|key, _| !is_in(key));
            }
            Change::Clear { keyspace } => {
                let space = self.space(keyspace.id.0)?;
                self.state.entry(space).or_default().clear();
            }
            // It does not have what came in past the log.
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn space(&self, id: u32) -> Result<u8, Trouble> {
        let space = self.spaces.get(&id).copied();
        space.ok_or_else(|| Trouble::Wrong(format!("the feed has not told of keyspace {id}")))
    }

    /// All that expires is gone.
    pub fn pass(&mut self) {
        self.state = State::clone(&crate::workload::after_an_age(&self.state));
    }
}

/// Everything that a reader shows, in both directions.
fn shown(reader: &ReadOnlyDb) -> Result<State, Trouble> {
    let mut state = State::new();
    for name in reader.keyspaces() {
        let space = space_of(&name)?;
        let handle = reader.keyspace_with(&name, &space_options(space))?;
        let mut found = BTreeMap::new();
        for entry in handle.get_range::<&[u8]>(..) {
            let (key, value) = entry?;
            found.insert(key.to_vec(), value.to_vec());
        }
        let mut back = BTreeMap::new();
        for entry in handle.get_range::<&[u8]>(..).rev() {
            let (key, value) = entry?;
            back.insert(key.to_vec(), value.to_vec());
        }
        let got = |(key, value): (&Vec<u8>, &Vec<u8>)| -> Result<bool, Error> {
            Ok(handle.get(key)?.as_deref() == Some(value))
        };
        let all_got = found.iter().map(got).collect::<Result<Vec<_>, _>>()?;
        if found != back || all_got.contains(&false) {
            return Err(Trouble::Wrong(format!("a reader of {name} contradicts itself")));
        }
        let told = |(key, value): (Vec<u8>, Vec<u8>)| Some((key, Value::read(space, &value)?));
        state.insert(space, found.into_iter().filter_map(told).collect());
    }
    Ok(state)
}
