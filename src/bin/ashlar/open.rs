//! Opening databases and finding keyspaces: commands that only look create neither.

use crate::args::Bounds;
use crate::bytes::from_argument;
use crate::failure::Failure;
use crate::progress::Progress;
use ashlardb::{
    Builder, DEFAULT_KEYSPACE, Db, Error, Keyspace, ReadOnlyDb, ReadOnlyKeyspace, Task,
};
use std::ops::Bound;
use std::path::Path;
use std::sync::Mutex;

/// Opens a database that must exist.
pub fn existing(path: &Path) -> Result<Db, Failure> {
    Ok(with_bars(Db::builder(path)).create_if_missing(false).ready_made_operators(true).open()?)
}

/// Opens a database that must exist, only to read, also while another process has it open.
pub fn to_read(path: &Path) -> Result<ReadOnlyDb, Failure> {
    Ok(with_bars(Db::builder(path)).ready_made_operators(true).open_read_only()?)
}

/// A keyspace to read; the default one if there is no name.
pub fn keyspace_to_read(db: &ReadOnlyDb, name: Option<&str>) -> Result<ReadOnlyKeyspace, Failure> {
    Ok(db.keyspace(name.unwrap_or(DEFAULT_KEYSPACE))?)
}

/// Opens a database, or creates it.
pub fn or_create(path: &Path) -> Result<Db, Failure> {
    Ok(with_bars(Db::builder(path)).create_if_missing(true).ready_made_operators(true).open()?)
}

/// Shows a bar for what takes long: recovery of a large log, a flush, a compaction.
fn with_bars(builder: Builder) -> Builder {
    /// Less, in bytes or entries, is done before anybody has seen a bar.
    const WORTH_A_BAR: u64 = 4 << 20;
    let shown: Mutex<Option<(Task, Progress)>> = Mutex::new(None);
    builder.on_progress(move |now| {
        let Ok(mut shown) = shown.lock() else { return };
        if now.done == now.total {
            *shown = None;
            return;
        }
        if now.total < WORTH_A_BAR && now.task != Task::KeyMap {
            return;
        }
        if shown.as_ref().is_none_or(|(task, _)| *task != now.task) {
            let (bar, what) = match now.task {
                Task::Recovery => (Progress::bytes(Some(0)), "reading the log"),
                Task::Compaction => (Progress::bytes(Some(0)), "compacting"),
                Task::Flush => (Progress::steps(), "flushing"),
                Task::Ingest => (Progress::steps(), "taking in files"),
                _ => (Progress::steps(), "filling the key map"),
            };
            bar.message(what.to_owned());
            *shown = Some((now.task, bar));
        }
        if let Some((_, bar)) = &*shown {
            bar.set(now.done, now.total);
        }
    })
}

/// A keyspace that must exist; the default one if there is no name.
pub fn keyspace(db: &Db, name: Option<&str>) -> Result<Keyspace, Failure> {
    let name = name.unwrap_or(DEFAULT_KEYSPACE);
    if name != DEFAULT_KEYSPACE && !db.keyspaces().iter().any(|k| k == name) {
        return Err(Error::KeyspaceNotFound { name: name.to_owned() }.into());
    }
    Ok(db.keyspace(name)?)
}

/// A keyspace, created if it is missing; the default one if there is no name.
pub fn keyspace_or_create(db: &Db, name: Option<&str>) -> Result<Keyspace, Failure> {
    Ok(db.keyspace(name.unwrap_or(DEFAULT_KEYSPACE))?)
}

/// A range of keys.
pub type Range = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The range that `--from`, `--to` and `--prefix` leave together.
pub fn range(bounds: &Bounds, hex: bool) -> Result<Range, Failure> {
    let key = |argument: &Option<_>| {
        argument.as_deref().map(|argument| from_argument(argument, hex)).transpose()
    };
    let (from, to, prefix) = (key(&bounds.from)?, key(&bounds.to)?, key(&bounds.prefix)?);
    let end = prefix.as_deref().and_then(after_prefix);
    let start = from.into_iter().chain(prefix).max();
    let end = to.into_iter().chain(end).min();
    Ok((
        start.map_or(Bound::Unbounded, Bound::Included),
        end.map_or(Bound::Unbounded, Bound::Excluded),
    ))
}

/// The first key after all that start with `prefix`, if there is one.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(from: Option<&str>, to: Option<&str>, prefix: Option<&str>) -> Range {
        let [from, to, prefix] = [from, to, prefix].map(|k| k.map(Into::into));
        range(&Bounds { from, to, prefix }, true).expect("valid hexadecimal")
    }

    #[test]
    fn from_to_and_prefix_intersect() {
        use Bound::{Excluded, Included, Unbounded};
        assert_eq!(bounds(None, None, None), (Unbounded, Unbounded));
        assert_eq!(bounds(Some("01"), None, None), (Included(vec![1]), Unbounded));
        assert_eq!(bounds(None, None, Some("01")), (Included(vec![1]), Excluded(vec![2])));
        assert_eq!(bounds(None, None, Some("01ff")), (Included(vec![1, 255]), Excluded(vec![2])));
        assert_eq!(bounds(None, None, Some("ffff")), (Included(vec![255, 255]), Unbounded));
        assert_eq!(
            bounds(Some("0105"), Some("05"), Some("01")),
            (Included(vec![1, 5]), Excluded(vec![2]))
        );
    }
}
