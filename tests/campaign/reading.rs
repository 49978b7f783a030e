//! Reads everything of a damaged store in every way, and holds it against what must be there.
//!
//! What is delivered must be right, and what is missing must be behind an error: that is checked
//! here. Which errors there may be is for the caller to judge.

use crate::author::Content;
use ashlardb::{Db, Error, Key, RangeIter, SegmentRange, SegmentReader, Value};
use std::collections::{BTreeMap, BTreeSet};

/// What was met while reading.
#[derive(Debug, Default)]
pub struct Met {
    /// The errors.
    pub errors: Vec<Error>,
    /// The keys that gave one, by keyspace.
    pub lost: BTreeSet<(String, Vec<u8>)>,
}

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

fn show(key: &[u8]) -> String {
    key[..key.len().min(40)].escape_ascii().to_string()
}

/// Reads one key; `Ok(true)` if it gave an error.
fn check_get(
    found: Result<Option<Value>, Error>,
    key: &[u8],
    expected: Option<&Vec<u8>>,
    errors: &mut Vec<Error>,
) -> Result<bool, String> {
    match found {
        Err(error) => {
            errors.push(error);
            Ok(true)
        }
        Ok(found) if found.as_deref() == expected.map(Vec::as_slice) => Ok(false),
        Ok(found) => Err(format!(
            "get of {:?} gave {:?} instead of {:?}",
            show(key),
            found.map(|value| show(&value)),
            expected.map(|value| show(value))
        )),
    }
}

/// Walks a range: the pairs are right up to the end, or up to an error, behind which is nothing.
fn check_range<'a>(
    mut found: impl Iterator<Item = Result<(Key, Value), Error>>,
    mut expected: impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>,
    what: &str,
    errors: &mut Vec<Error>,
) -> Result<(), String> {
    loop {
        match (found.next(), expected.next()) {
            (None, None) => return Ok(()),
            (Some(Ok((key, value))), Some(pair)) if *key == **pair.0 && *value == **pair.1 => {}
            (Some(Err(error)), _) => {
                errors.push(error);
                return match found.next() {
                    None => Ok(()),
                    Some(_) => Err(format!("{what} goes on behind an error")),
                };
            }
            (Some(Ok((key, _))), pair) => {
                let expected = pair.map(|(key, _)| show(key));
                return Err(format!("{what} gave {:?} instead of {expected:?}", show(&key)));
            }
            (None, Some((key, _))) => {
                return Err(format!("{what} ends without an error before {:?}", show(key)));
            }
        }
    }
}

/// Some keys that are not there: just behind some that are, and at both ends.
fn absent(pairs: &Pairs) -> impl Iterator<Item = Vec<u8>> {
    let behind = pairs.keys().step_by(5).map(|key| [key, &b"\0"[..]].concat());
    behind.chain([Vec::new(), vec![0xff; 3], b"m".to_vec()]).filter(|key| !pairs.contains_key(key))
}

/// Reads all of a database that should hold this.
pub fn read_all(db: &Db, expected: &Content) -> Result<Met, String> {
    let mut met = Met::default();
    let names = db.keyspaces();
    if !names.iter().eq(expected.keys()) {
        return Err(format!("the keyspaces are {names:?}"));
    }
    for (name, pairs) in expected {
        let space = match db.keyspace(name) {
            Ok(space) => space,
            Err(error) => return Err(format!("keyspace {name:?}: {error}")),
        };
        let mut readable: Vec<&Vec<u8>> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            if check_get(space.get(key), key, Some(value), &mut met.errors)? {
                met.lost.insert((name.clone(), key.clone()));
            } else {
                readable.push(key);
            }
        }
        for key in absent(pairs) {
            check_get(space.get(&key), &key, None, &mut met.errors)?;
        }
        match space.multi_get(&readable) {
            Ok(found) => {
                let right = readable.iter().map(|key| Some(&pairs[*key][..]));
                if !found.iter().map(|value| value.as_deref()).eq(right) {
                    return Err("multi_get differs from get".into());
                }
            }
            Err(error) => return Err(format!("multi_get of readable keys failed: {error}")),
        }
        if readable.len() < pairs.len() {
            let all: Vec<&Vec<u8>> = pairs.keys().collect();
            match space.multi_get(&all) {
                Ok(_) => return Err("multi_get of keys of which one is lost succeeds".into()),
                Err(error) => met.errors.push(error),
            }
        }
        let range = || space.get_range::<&[u8]>(..);
        check_ranges(range, pairs, &mut met.errors)?;
        // A part of it, in the middle.
        let at = |i: usize| pairs.keys().nth(pairs.len() * i / 3);
        if let (Some(low), Some(high)) = (at(1), at(2)) {
            let part = pairs.range(low.clone()..high.clone());
            check_range(
                space.get_range::<&[u8]>(&low[..]..&high[..]),
                part,
                "a part of a range",
                &mut met.errors,
            )?;
        }
    }
    Ok(met)
}

fn check_ranges(
    range: impl Fn() -> RangeIter,
    pairs: &Pairs,
    errors: &mut Vec<Error>,
) -> Result<(), String> {
    check_range(range(), pairs.iter(), "a range", errors)?;
    check_range(range().rev(), pairs.iter().rev(), "a reversed range", errors)
}

/// Reads a part of a keyspace, forwards and backwards, where nothing may fail.
pub fn read_sound_part<'a>(
    range: impl Fn() -> RangeIter,
    expected: impl DoubleEndedIterator<Item = (&'a Vec<u8>, &'a Vec<u8>)> + Clone,
) -> Result<(), String> {
    let mut errors = Vec::new();
    check_range(range(), expected.clone(), "a range beside the damage", &mut errors)?;
    check_range(range().rev(), expected.rev(), "a reversed range beside the damage", &mut errors)?;
    errors.first().map_or(Ok(()), |error| Err(format!("a range beside the damage: {error}")))
}

/// Reads a segment file that should hold these pairs: every `step`th key alone, all in ranges.
pub fn read_segment(
    reader: &SegmentReader,
    pairs: &Pairs,
    step: usize,
) -> Result<Vec<Error>, String> {
    let mut errors = Vec::new();
    for (key, value) in pairs.iter().step_by(step) {
        check_get(reader.get(key), key, Some(value), &mut errors)?;
    }
    for key in absent(pairs).take(16) {
        check_get(reader.get(&key), &key, None, &mut errors)?;
    }
    let range = || -> SegmentRange { reader.get_range::<&[u8]>(..) };
    check_range(range(), pairs.iter(), "a segment's range", &mut errors)?;
    check_range(range().rev(), pairs.iter().rev(), "a segment's reversed range", &mut errors)?;
    Ok(errors)
}

/// All pairs of a sound segment file.
pub fn pairs_of(reader: &SegmentReader) -> Pairs {
    let pair = |pair: Result<(Key, Value), Error>| {
        let (key, value) = pair.expect("a sound segment is read");
        (key.to_vec(), value.to_vec())
    };
    reader.get_range::<&[u8]>(..).map(pair).collect()
}
