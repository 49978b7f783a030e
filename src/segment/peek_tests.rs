//! Looking into a block without checking all of it, held against checking all of it first.

use super::SegmentOptions;
use super::block::{Block, Lookup};
use super::format::BLOCK_HEADER_LEN;
use super::fuzzing::seal_block;
use super::peek::{Buffers, Peek};
use super::tests::{Random, codecs, mixed, open, read_file, write_in};
use crate::error::Malformed;
use crate::hash::{hash_byte, key_hash};
use crate::types::{Kind, PAGE, SeqNo};
use crate::vfs::Env;
use bytes::Bytes;

/// What a lookup says, comparable.
#[derive(Debug, PartialEq)]
enum Said {
    Found(u64, Kind, Vec<u8>),
    Hidden,
    Absent,
    GoOn,
}

fn lazily(bytes: &[u8], key: &[u8], hash: u64, snapshot: u64) -> Result<Said, Malformed> {
    let mut raw = vec![7; 3];
    let block = Peek::open(bytes, 0, 0, &mut raw)?;
    let _: bool = block.goes_on_with(key, hash)?;
    Ok(match block.lookup(key, hash, SeqNo(snapshot))? {
        Lookup::Found(entry) => {
            Said::Found(entry.seqno.0, entry.kind, block.value(&entry).to_vec())
        }
        Lookup::Hidden => Said::Hidden,
        Lookup::Absent => Said::Absent,
        Lookup::GoOn => Said::GoOn,
    })
}

/// By looking at every entry of a block that was checked.
fn plainly(block: &Block, hashes: &[u8], key: &[u8], hash: u64, snapshot: u64) -> Said {
    let mut here = false;
    for (i, byte) in hashes.iter().enumerate() {
        let entry = block.entry(i).unwrap();
        if *byte != hash_byte(hash) || block.key(i) != key {
            continue;
        }
        here = true;
        if entry.seqno.0 <= snapshot {
            return Said::Found(entry.seqno.0, entry.kind, block.view(&entry.value).to_vec());
        }
    }
    match here {
        false => Said::Absent,
        true if block.key(block.len() - 1) == key => Said::GoOn,
        true => Said::Hidden,
    }
}

/// Blocks of every codec and prefix width, with versions; sealed for salt and offset 0.
fn blocks(random: &mut Random) -> Vec<Vec<u8>> {
    let mut blocks = Vec::new();
    for compression in codecs() {
        for prefix_width in [0, 4, 8] {
            let env = Env::in_memory(random.next());
            let options = SegmentOptions { compression, prefix_width, ..SegmentOptions::default() };
            write_in(&env, options, None, &mixed(random, 150));
            let bytes = read_file(&env);
            for block in open(&env).blocks().take(6) {
                let block = block.unwrap();
                let from = block.offset as usize;
                let mut bytes = bytes[from..from + block.pages as usize * PAGE].to_vec();
                seal_block(&mut bytes, 0, 0);
                blocks.push(bytes);
            }
        }
    }
    blocks
}

#[test]
fn a_look_into_damaged_bytes_says_what_a_whole_check_says_or_fails() {
    let mut random = Random(5);
    let (mut sound, mut refused, mut touched) = (0, 0, 0);
    for original in blocks(&mut random) {
        let whole = Bytes::from(original.clone());
        let (block, _) = Block::decode(&whole, 0, 0).unwrap();
        let keys: Vec<Vec<u8>> =
            (0..block.len()).map(|i| block.key(i).to_vec()).chain([b"none".to_vec()]).collect();
        // The seed of these hashes is not known here: the bytes are put in anew.
        let at = BLOCK_HEADER_LEN + block.hash_bytes_at();
        let is_raw = block.payload_len() == whole.len() - BLOCK_HEADER_LEN;
        for round in 0..60 {
            let mut bytes = original.clone();
            if is_raw {
                for (i, key) in keys.iter().take(block.len()).enumerate() {
                    bytes[at + i] = hash_byte(key_hash(key, 0));
                }
            }
            let broken = round % 3 == 2;
            if round > 0 {
                for _ in 0..=random.below(3) {
                    let len = bytes.len();
                    // Often in the header, the first entries or the trailer.
                    let at = match random.below(4) {
                        0 => 12 + random.below(20),
                        1 => BLOCK_HEADER_LEN + random.below(64),
                        2 => len - 1 - random.below(400),
                        _ => random.below(len),
                    };
                    bytes[at] ^= 1 << random.below(8);
                }
            }
            if !broken {
                seal_block(&mut bytes, 0, 0);
            }
            let bytes = Bytes::from(bytes);
            let eager = Block::decode(&bytes, 0, 0);
            for key in &keys {
                let hash = key_hash(key, 0);
                for snapshot in [u64::MAX, random.next() % 1000, 0] {
                    let lazy = lazily(&bytes, key, hash, snapshot);
                    match &eager {
                        Ok((block, _)) => {
                            let at = block.hash_bytes_at();
                            let hashes = &block.payload()[at..at + block.len()];
                            let expected = plainly(block, hashes, key, hash, snapshot);
                            assert_eq!(lazy, Ok(expected));
                            sound += 1;
                        }
                        Err(_) if broken => {
                            assert!(lazy.is_err(), "a wrong checksum");
                            refused += 1;
                        }
                        Err(_) => touched += usize::from(lazy.is_err()),
                    }
                }
            }
        }
    }
    assert!(sound > 10_000 && refused > 10_000 && touched > 1000, "{sound} {refused} {touched}");
}

#[test]
fn buffers_are_used_again_and_lent_once() {
    let mut buffers = Buffers::take();
    buffers.room(PAGE)[0] = 5;
    let address = buffers.room(PAGE).as_ptr();
    // Whoever reads while they are lent gets others.
    let mut others = Buffers::take();
    assert_ne!(others.room(PAGE).as_ptr(), address);
    others.give_back();
    buffers.give_back();
    let mut again = Buffers::take();
    assert_eq!(again.room(PAGE).as_ptr(), address);
    assert_eq!(again.room(2 * PAGE).len(), 2 * PAGE);
    assert_eq!(again.parts(1).0, [5]);
}

#[test]
fn lookups_without_a_cache_read_every_block_of_every_shape() {
    let mut random = Random(11);
    for compression in codecs() {
        let env = Env::in_memory(random.next());
        let options = SegmentOptions { compression, ..SegmentOptions::default() };
        // Some values are longer than a page, some than any block of several entries.
        let lens = [0, 1, 100, 256, 257, 5000, 40_000, 70_000, 300_000];
        let versions: Vec<_> = (0..200u32)
            .map(|n| {
                let len = lens[random.below(lens.len())];
                let byte = random.next() as u8;
                let value = (0..len).map(|i| byte ^ (i / 7) as u8).collect::<Vec<u8>>();
                (n.to_be_bytes().to_vec(), 0, Kind::Put, value)
            })
            .collect();
        write_in(&env, options, None, &versions);
        let reader = open(&env);
        for _ in 0..3 {
            for (key, _, _, value) in &versions {
                assert_eq!(reader.get(key).unwrap().unwrap(), *value);
            }
        }
        assert_eq!(reader.get(b"none").unwrap(), None);
    }
}

#[test]
fn a_lookup_never_passes_over_an_entry_that_it_cannot_read() {
    let mut random = Random(8);
    let mut refused = 0;
    for original in blocks(&mut random) {
        let (block, _) = Block::decode(&Bytes::from(original.clone()), 0, 0).unwrap();
        if block.payload_len() != original.len() - BLOCK_HEADER_LEN {
            continue;
        }
        let hashes = BLOCK_HEADER_LEN + block.hash_bytes_at();
        for i in 0..block.len() {
            let key = block.key(i);
            let mut bytes = original.clone();
            for at in 0..block.len() {
                bytes[hashes + at] = hash_byte(key_hash(block.key(at), 0));
            }
            let entry = block.entry(i).unwrap();
            let seqno_len = if entry.seqno == SeqNo(0) { 0 } else { 8 };
            // A reserved flag of the version that is looked for; older ones may stand behind it.
            bytes[BLOCK_HEADER_LEN + entry.key.start - seqno_len - 1] |= 0x80;
            seal_block(&mut bytes, 0, 0);
            let hash = key_hash(key, 0);
            assert!(lazily(&bytes, key, hash, entry.seqno.0).is_err(), "entry {i}");
            refused += 1;
        }
    }
    assert!(refused > 100, "{refused}");
}
