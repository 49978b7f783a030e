//! Value segments: what is written is read, and whatever else is there is told from it.

use super::*;
use crate::error::ErrorKind;
use crate::vfs::Entropy;

fn path() -> PathBuf {
    PathBuf::from("v.val")
}

fn values() -> Vec<Vec<u8>> {
    let noise = |n: u64, len: usize| -> Vec<u8> {
        let entropy = crate::vfs::SeededEntropy::new(n);
        (0..len).map(|_| entropy.next_u64() as u8).collect()
    };
    vec![b"".to_vec(), b"short".to_vec(), vec![7; 100_000], noise(1, 5000), noise(2, 300_000)]
}

fn written(env: &Env, compression: Compression) -> (Vec<Reference>, ValueIdentity) {
    let id = SegmentId(9);
    let mut writer = ValueWriter::create(env, path(), id, KeyspaceId(3), compression).unwrap();
    let references = values().iter().map(|value| writer.add(value).unwrap()).collect();
    (references, writer.finish().unwrap())
}

fn reader(env: &Env) -> Result<ValueReader> {
    ValueReader::open_in(env, &path())
}

fn bytes(env: &Env) -> Vec<u8> {
    let file = env.vfs.open(&path(), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn replace(env: &Env, bytes: &[u8]) {
    let file = env.vfs.open(&path(), OpenMode::ReadWrite).unwrap();
    file.set_len(0).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

#[test]
fn values_are_read_as_they_were_written() {
    let all = [Compression::None, Compression::Lz4, Compression::Zstd(1)];
    for compression in all.into_iter().filter(|c| c.available().is_ok()) {
        let env = Env::in_memory(1);
        let (references, identity) = written(&env, compression);
        let reader = reader(&env).unwrap();
        assert_eq!(reader.identity(), identity);
        assert_eq!(identity.file_len, bytes(&env).len() as u64);
        assert_eq!(reader.bytes(), references.iter().map(Reference::record_len).sum::<u64>());
        for (reference, value) in references.iter().zip(values()) {
            assert_eq!(reader.get(reference).unwrap(), value);
            assert_eq!(Reference::decode(&reference.encode()), Ok(*reference));
            assert_eq!(reference.raw as usize, value.len());
        }
        let shrank = references[2].stored < references[2].raw;
        assert_eq!(shrank, compression != Compression::None);
        assert_eq!(references[3].stored, 5000, "noise stays as it is");
        let mut done = 0;
        let report = reader.verify(&mut |at| done = at).unwrap();
        assert_eq!((report.values, report.damage.len(), done), (5, 0, reader.bytes()));
    }
    assert!(Reference::decode(&[0; REFERENCE_LEN - 1]).is_err());
    assert!(Reference::decode(&[0; REFERENCE_LEN + 1]).is_err());
}

#[test]
fn a_reference_to_something_else_is_noticed() {
    let env = Env::in_memory(1);
    let (references, _) = written(&env, Compression::None);
    let wrong = |change: &dyn Fn(&mut Reference)| {
        let mut reference = references[3];
        change(&mut reference);
        let error = reader(&env).unwrap().get(&reference).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
    };
    wrong(&|r| r.offset += 1);
    wrong(&|r| r.offset = references[2].offset);
    wrong(&|r| r.offset = u64::MAX - 10);
    wrong(&|r| r.stored -= 1);
    wrong(&|r| r.stored = u32::MAX);
    wrong(&|r| r.raw += 1);
    wrong(&|r| r.checksum ^= 1);
    // The same values in the same places of another file.
    env.vfs.remove_file(&path()).unwrap();
    let (others, _) = written(&env, Compression::None);
    assert_eq!(others[3].offset, references[3].offset);
    wrong(&|_| {});
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let env = Env::in_memory(1);
    let id = SegmentId(9);
    let create = || ValueWriter::create(&env, path(), id, KeyspaceId(3), Compression::default());
    let mut writer = create().unwrap();
    let values = [b"".to_vec(), b"value".to_vec(), vec![1; 300], b"last".to_vec()];
    let references: Vec<_> = values.iter().map(|value| writer.add(value).unwrap()).collect();
    writer.finish().unwrap();
    let sound = bytes(&env);
    for at in 0..sound.len() {
        for bit in 0..8 {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << bit;
            replace(&env, &bytes);
            match reader(&env) {
                // Of values, that one alone is lost.
                Ok(reader) => {
                    let good = |(r, value): &(&Reference, &Vec<u8>)| match reader.get(r) {
                        Ok(read) => {
                            assert_eq!(read, **value);
                            true
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Corruption);
                            false
                        }
                    };
                    assert_eq!(references.iter().zip(&values).filter(good).count(), 3, "{at}");
                    let report = reader.verify(&mut |_| {}).unwrap();
                    assert_eq!(report.damage.len(), 1, "{at}: {report:?}");
                    let place = references.iter().rfind(|r| r.offset <= at as u64).unwrap();
                    assert_eq!(report.damage[0].offset, place.offset);
                }
                Err(error) => {
                    assert!(at >= sound.len() - FOOTER_LEN, "{at}: {error}");
                    assert_ne!(error.kind(), ErrorKind::Io);
                    // Mended, unless it says that it is newer.
                    if error.kind() == ErrorKind::Corruption {
                        let (reader, wrong) =
                            ValueReader::salvage(open_file(&env, &path()).unwrap(), path())
                                .unwrap();
                        assert!(wrong.is_some());
                        assert_eq!(reader.get(&references[1]).unwrap(), b"value"[..]);
                    }
                }
            }
        }
    }
    for len in 0..sound.len() {
        replace(&env, &sound[..len]);
        assert_eq!(reader(&env).unwrap_err().kind(), ErrorKind::Corruption, "{len}");
    }
}

#[test]
fn a_footer_that_does_not_make_sense_is_refused() {
    let footer = |change: &dyn Fn(&mut Vec<u8>)| {
        let env = Env::in_memory(1);
        written(&env, Compression::None);
        let mut bytes = bytes(&env);
        let at = bytes.len() - FOOTER_LEN;
        let mut footer = bytes.split_off(at);
        change(&mut footer);
        let len = u64::from_le_bytes(footer[48..56].try_into().unwrap());
        let sum = checksum(0, len, &footer[..88]);
        footer[88..].copy_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&footer);
        replace(&env, &bytes);
        reader(&env).map_or_else(|error| Some(error.kind()), |_| None)
    };
    assert_eq!(footer(&|_| {}), None);
    assert_eq!(footer(&|f| f[56] = 2), Some(ErrorKind::Unsupported));
    assert_eq!(footer(&|f| f[56] = 0), Some(ErrorKind::Corruption));
    assert_eq!(footer(&|f| f[64] = 1), Some(ErrorKind::Corruption));
    assert_eq!(footer(&|f| f[79] = 1), Some(ErrorKind::Corruption));
    assert_eq!(footer(&|f| f[16] ^= 1), Some(ErrorKind::Corruption), "where the values end");
    assert_eq!(footer(&|f| f[24..32].fill(0)), Some(ErrorKind::Corruption), "no values");
    assert_eq!(footer(&|f| f[24..32].fill(0xff)), Some(ErrorKind::Corruption));
    assert_eq!(footer(&|f| f[48..56].fill(0xff)), Some(ErrorKind::Corruption), "its length");
    assert_eq!(footer(&|f| f[80] ^= 1), Some(ErrorKind::Corruption), "its magic");
}
