//! The entry for fuzzing the readers of this room.

use super::backup::{BackupManifest, encode_sealed};
use super::edit::Edit;
use super::manifest::{encode_pair, encode_record, read};
use super::state::ManifestState;
use crate::checksum::checksum;
use std::path::Path;

/// Reads `data` as an edit, as a manifest, and as records and an edit behind a sound header; as the manifest
/// of a backup, and as the payload of one: none of it may panic or use more than a small multiple of its
/// length in memory.
#[doc(hidden)]
pub fn manifest_bytes(data: &[u8]) {
    let path = Path::new("MANIFEST");
    if let Ok(edit) = Edit::decode(data) {
        let mut bytes = Vec::new();
        edit.encode(&mut bytes);
        assert_eq!(Edit::decode(&bytes), Ok(edit.clone()));
        if let Ok(state) = ManifestState::default().with(&edit) {
            let again = ManifestState::default().with(&state.snapshot_edit());
            assert_eq!(again, Ok(state));
        }
    }
    let mut header = b"ASHLRMAN\x01\0\0\0".to_vec();
    header.resize(56, 0);
    header.extend_from_slice(&checksum(0, 0, &header).to_le_bytes());
    let mut first = header.clone();
    encode_pair(&mut first, 0, 0, 0, &Edit::default());
    let mut sealed = header.clone();
    encode_record(&mut sealed, 0, 0, 0, data);
    for bytes in [data.to_vec(), [&header, data].concat(), [&first, data].concat(), sealed] {
        if let Ok(loaded) = read(&bytes, path) {
            assert!(loaded.whole == loaded.notices.is_empty());
        }
    }
    for bytes in [data.to_vec(), encode_sealed(&BackupManifest::default(), 0, data)] {
        if let Ok(backup) = BackupManifest::decode(&bytes, path) {
            assert!(BackupManifest::decode(&backup.encode(0), path).is_ok_and(|b| b == backup));
        }
    }
}
