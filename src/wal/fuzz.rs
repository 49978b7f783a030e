//! The entry for fuzzing the readers of this room.

use super::format::{KIND_GROUP, LogHeader, RECORD_HEADER_LEN, log_file_name, seal_record};
use super::keyspaces::KeyspaceNote;
use super::ops::{batches, encode_op, encoded_len};
use super::replay::{Recovery, replay};
use crate::types::{LogId, SeqNo};
use crate::vfs::{Env, OpenMode};
use std::path::Path;

/// Reads `data` as the payload of a record, as a log, and as the records of a log whose header is
/// sound: none of it may panic or use more than a small multiple of its length in memory.
#[doc(hidden)]
pub fn wal_bytes(data: &[u8]) {
    for batch in batches(data) {
        let Ok(batch) = batch else { break };
        for op in batch.ops().flatten() {
            let mut again = Vec::new();
            encode_op(&mut again, op);
            assert_eq!(again.len(), encoded_len(&op));
        }
    }
    if let Ok(note) = KeyspaceNote::decode(data) {
        let mut again = Vec::new();
        note.encode(&mut again);
        assert_eq!(again, data);
    }
    let (id, salt) = (LogId(1), 0);
    let header = LogHeader { id, salt, predecessor: None, last_seqno: SeqNo(0) }.encode(0);
    let mut sealed = vec![0; RECORD_HEADER_LEN];
    sealed.extend_from_slice(data);
    let end = header.len() as u64;
    seal_record(&mut sealed, salt, KIND_GROUP, SeqNo(1), end, end);
    for parts in [[data, &[]], [&header[..], data], [&header[..], &sealed]] {
        for recovery in [Recovery::TolerateTornTail, Recovery::PointInTime, Recovery::Strict] {
            let env = Env::in_memory(1);
            let dir = Path::new("");
            let path = dir.join(log_file_name(id));
            let written = env
                .vfs
                .create_dir_all(dir)
                .and_then(|()| env.vfs.open(&path, OpenMode::CreateNew))
                .and_then(|file| file.write_all_at(&parts.concat(), 0));
            assert!(written.is_ok(), "a file in memory can be written");
            let mut last = SeqNo(0);
            let outcome = replay(&env, dir, 0, id, recovery, &mut |_, seqno, _| {
                last = seqno;
                Ok(())
            });
            if let Ok(replayed) = outcome {
                assert_eq!(replayed.last_seqno.max(last), replayed.last_seqno);
            }
        }
    }
}
