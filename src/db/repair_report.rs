//! What a repair saved, what it could not, and what it cannot know: the report, and the book that it is
//! made from, in which the cursors over damaged segments enter what they meet.

use super::verify::DamagedPlace;
use crate::segment::{Damage, Told};
use crate::sync::{Arc, Mutex};
use std::path::{Path, PathBuf};

/// What [`Builder::repair_into`](crate::Builder::repair_into) did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// What is in the new database.
    pub keyspaces: Vec<SavedKeyspace>,
    /// The places that could not be saved.
    pub lost: Vec<LostPlace>,
    /// What nobody can tell about what was saved.
    pub uncertain: Vec<Uncertainty>,
    /// Damage that lost nothing, and what else is worth knowing. Each names the file.
    pub notices: Vec<String>,
}

impl RepairReport {
    /// Whether the new database holds everything, as it was.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lost.is_empty() && self.uncertain.is_empty()
    }
}

/// A keyspace of the new database.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SavedKeyspace {
    /// Its name.
    pub name: String,
    /// How many keys were saved.
    pub keys: u64,
    /// The length of the keys and their values, in bytes.
    pub bytes: u64,
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostPlace {
    /// Where it was, and the keys that it may have held.
    pub place: DamagedPlace,
    /// How many keys in its key range were saved from older data, or from nobody knows where: their
    /// values may be older than they were, and some may have been removed. A key with merge operands
    /// counts, too, if what they were merged into may have been here.
    pub older: u64,
}

/// Something that was saved and may not be what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Uncertainty {
    /// The keyspace; `None` for all.
    pub keyspace: Option<String>,
    /// The keys: above the first and up to the second; `None` for all.
    pub key_range: Option<(Vec<u8>, Vec<u8>)>,
    /// What may be so.
    pub what: String,
}

/// What cursors over segments tell, while they are read.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) lost: Vec<Lost>,
    pub(super) found: Vec<DamagedPlace>,
    /// Bytes of data blocks that were read.
    pub(super) read: u64,
}

/// A lost place, and how old what it held was: the place of its run among all, newest first.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) place: DamagedPlace,
    pub(super) age: usize,
    pub(super) older: u64,
    /// Whether the lower end of the key range is among the lost keys.
    pub(super) with_low: bool,
    /// The same of the upper end.
    pub(super) with_high: bool,
}

impl Lost {
    /// Whether the key may have been in it.
    pub(super) fn may_hold(&self, key: &[u8]) -> bool {
        match &self.place.key_range {
            Some((low, high)) => {
                (low[..] < *key || self.with_low && low == key)
                    && (*key < high[..] || self.with_high && high == key)
            }
            None => true,
        }
    }

    /// Whether all that it may have held lies in front of the key.
    pub(super) fn is_behind(&self, key: &[u8]) -> bool {
        self.place.key_range.as_ref().is_some_and(|(_, high)| high[..] < *key)
    }
}

/// A book that several cursors write in.
pub(super) type SharedBook = Arc<Mutex<Book>>;

/// Enters what is told of a segment. `age` is that of its run, `first` its first key, if known.
pub(super) fn entering(
    book: &SharedBook,
    file: &Path,
    keyspace: &str,
    age: usize,
    first: Option<Vec<u8>>,
) -> Box<dyn FnMut(Told) + Send> {
    let (book, file, keyspace) = (Arc::clone(book), file.to_path_buf(), keyspace.to_owned());
    Box::new(move |told| {
        let mut book = book.lock();
        match told {
            Told::Read(bytes) => book.read += bytes,
            Told::Found(damage) => {
                book.found.push(DamagedPlace::in_segment(&file, &keyspace, damage));
            }
            Told::Lost { damage, with_high } => {
                let low = damage.key_range.as_ref().map(|(low, _)| low);
                let with_low = damage.block.is_none_or(|block| block == 0) && low == first.as_ref();
                let place = DamagedPlace::in_segment(&file, &keyspace, damage);
                book.lost.push(Lost { place, age, older: 0, with_low, with_high });
            }
        }
    })
}

/// Enters a whole segment as lost.
pub(super) fn enter_whole(
    book: &SharedBook,
    mut place: DamagedPlace,
    keyspace: &str,
    age: usize,
    key_range: Option<(Vec<u8>, Vec<u8>)>,
) {
    place.keyspace = Some(keyspace.to_owned());
    place.key_range = key_range;
    book.lock().lost.push(Lost { place, age, older: 0, with_low: true, with_high: true });
}

/// Enters damage to the end of a segment that lost nothing.
pub(super) fn enter_found(book: &SharedBook, file: &Path, keyspace: &str, damage: Vec<Damage>) {
    let places = damage.into_iter().map(|d| DamagedPlace::in_segment(file, keyspace, d));
    book.lock().found.extend(places);
}

impl RepairReport {
    /// Closes the book of a keyspace.
    pub(super) fn add_book(&mut self, book: &mut Book) {
        for place in book.found.drain(..) {
            let (file, at, what) = (place.file.display(), place.offset, place.what);
            self.notices.push(format!("{file}: damaged at byte {at}: {what}; no keys are lost"));
        }
        for Lost { place, older, .. } in book.lost.drain(..) {
            if older > 0 {
                let (file, at) = (place.file.display(), place.offset);
                let keys = if older == 1 { "1 key".into() } else { format!("{older} keys") };
                let what = format!(
                    "{keys} saved from older data: what was lost at byte {at} of {file} may have \
                     had newer values, or what belongs to these, or removed them"
                );
                let (keyspace, key_range) = (place.keyspace.clone(), place.key_range.clone());
                self.uncertain.push(Uncertainty { keyspace, key_range, what });
            }
            self.lost.push(LostPlace { place, older });
        }
    }

    /// Notes a file that was left out.
    pub(super) fn left_out(&mut self, path: &Path, why: &str) {
        let path: PathBuf = path.to_path_buf();
        self.notices.push(format!("{}: left out: {why}", path.display()));
    }
}
