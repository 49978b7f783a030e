//! Salvage of damaged segments: everything but what the damage touches, and nothing else.

use super::tests::{PATH, Random, Version, env_with, mixed, options, read_file, write};
use super::{Damage, Properties, Salvage, Told};
use crate::compression::Compression;
use crate::cursor::{Cursor, Seek};
use crate::sync::{Arc, Mutex};
use crate::types::PAGE;
use crate::vfs::{OpenMode, VfsFile};
use std::path::Path;

struct Owned(Arc<dyn VfsFile>);

impl super::FileSource for Owned {
    fn file(&self) -> crate::Result<Arc<dyn VfsFile>> {
        Ok(Arc::clone(&self.0))
    }
}

/// What is saved of these bytes, and what is told to be lost.
fn salvage(bytes: &[u8], known: &Properties) -> (Vec<Version>, Vec<Damage>) {
    let env = env_with(bytes);
    let file = env.vfs.open(Path::new(PATH), OpenMode::Read).unwrap();
    let segment = Salvage::open(Arc::new(Owned(file)), PATH.into()).unwrap();
    let lost: Arc<Mutex<Vec<Damage>>> = Arc::default();
    let told = Arc::clone(&lost);
    let span = (Some(known.first_key.clone()), None);
    let mut cursor = segment.cursor(
        known.hash_seed,
        span,
        Box::new(move |place| {
            if let Told::Lost { damage, .. } = place {
                told.lock().push(damage);
            }
        }),
    );
    let mut found = Vec::new();
    cursor.seek(Seek::First).unwrap();
    while cursor.valid() {
        let value = cursor.value().to_vec();
        found.push((cursor.key().to_vec(), cursor.seqno().0, cursor.kind(), value));
        cursor.next().unwrap();
    }
    drop(cursor);
    let lost = lost.lock().clone();
    (found, lost)
}

#[test]
fn one_flipped_bit_costs_the_block_that_it_is_in_and_nothing_else() {
    let mut random = Random(11);
    let versions = mixed(&mut random, 600);
    let options = super::SegmentOptions { hash_seed: Some(5), ..options(Compression::None) };
    let (env, info) = write(options, &versions);
    let bytes = read_file(&env);
    let blocks: Vec<_> = super::tests::open(&env).blocks().map(|block| block.unwrap()).collect();
    assert!(blocks.len() > 5);
    let mut starts = vec![0];
    for block in &blocks {
        starts.push(starts[starts.len() - 1] + block.entries as usize);
    }
    let data = info.data_bytes as usize;
    let end = bytes.len();
    let places = (0..data).step_by(1013).chain((data..end).step_by(61)).chain(end - 96..end);
    let bits = places.map(|at| (at, random.below(8)));
    let bits: Vec<_> = bits.collect();
    for (at, bit) in bits {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << bit;
        let (found, lost) = salvage(&damaged, &info.properties);
        let mut expected = versions.clone();
        if at < data {
            let hit = blocks.iter().rposition(|block| block.offset <= at as u64).unwrap();
            expected.drain(starts[hit]..starts[hit + 1]);
            assert_eq!(lost.len(), 1, "byte {at}");
            assert_eq!((lost[0].offset, lost[0].block), (blocks[hit].offset, Some(hit as u32)));
            let (above, up_to) = lost[0].key_range.clone().unwrap();
            let inside = |key: &[u8]| above[..] <= *key && *key <= up_to[..];
            assert!(inside(&blocks[hit].first_key) && inside(&blocks[hit].last_key));
        } else {
            assert_eq!(lost, [], "byte {at}");
        }
        assert!(found == expected, "byte {at}, bit {bit}: {} of {}", found.len(), expected.len());
    }
}

#[test]
fn blocks_are_found_without_an_index_and_without_an_end() {
    let versions = mixed(&mut Random(3), 500);
    let options = super::SegmentOptions { hash_seed: Some(5), ..options(Compression::None) };
    let (env, info) = write(options, &versions);
    let sound = read_file(&env);
    let data = info.data_bytes as usize;
    // The index and the first block are gone; then everything behind the data but the uuid.
    let mut damaged = sound.clone();
    damaged[data + 2..data + 40].fill(0xee);
    damaged[50] ^= 1;
    let (found, lost) = salvage(&damaged, &info.properties);
    assert_eq!(lost.len(), 1);
    assert_eq!((lost[0].offset, lost[0].block), (0, None));
    assert!(versions.ends_with(&found) && found.len() > versions.len() / 2);
    assert_eq!(lost[0].key_range.as_ref().unwrap().1, found[0].0);
    let mut damaged = sound;
    let footer = damaged.len() - 96;
    damaged[data..footer].fill(0);
    damaged[footer + 16..].fill(7);
    let (found, lost) = salvage(&damaged, &info.properties);
    assert!(found == versions, "{} of {}", found.len(), versions.len());
    assert!(lost.iter().all(|place| place.offset as usize >= data / PAGE * PAGE));
}
