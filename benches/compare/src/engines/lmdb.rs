//! LMDB, through the C interface that the crate `heed` wraps: `heed` has no way to reset and renew a
//! read transaction, which LMDB's documentation advises for readers, and which costs a tenth of
//! beginning one.
//!
//! Each put is a transaction. Those that need not be durable use `MDB_NOSYNC | MDB_NOMETASYNC`
//! without `MDB_WRITEMAP`: pages are written with `pwrite`, so a commit survives the death of the
//! process, not power loss. A store opened as durable has neither flag. Each session holds one read
//! transaction and one cursor, renewed for each operation, so that every read sees the newest commit
//! and no old pages are held. `MDB_NOTLS` lets it be used beside a write transaction. The cache is the
//! page cache of the system, without a budget. `MDB_NORDAHEAD` is for stores larger than memory.

use super::{Engine, Key, Outcome, Session};
use crate::settings::Settings;
use lmdb_master_sys as ffi;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};

/// Address space, not disk.
const MAP_BYTES: usize = 64 << 30;

pub struct Lmdb {
    env: *mut ffi::MDB_env,
    dbi: ffi::MDB_dbi,
}

// SAFETY: an environment and a database handle may be used by any thread (lmdb.h, "Caveats");
// transactions are not shared, each session has its own.
unsafe impl Send for Lmdb {}
// SAFETY: as above.
unsafe impl Sync for Lmdb {}

fn check(code: i32) -> Outcome {
    if code == ffi::MDB_SUCCESS {
        return Ok(());
    }
    // SAFETY: mdb_strerror gives a static or thread-static string for any code.
    let text = unsafe { CStr::from_ptr(ffi::mdb_strerror(code)) };
    Err(format!("lmdb: {}", text.to_string_lossy()).into())
}

fn val(bytes: &[u8]) -> ffi::MDB_val {
    ffi::MDB_val { mv_size: bytes.len(), mv_data: bytes.as_ptr().cast_mut().cast::<c_void>() }
}

/// # Safety
/// `val` was filled by LMDB, and its transaction lives on while the slice is used.
unsafe fn bytes<'a>(val: &ffi::MDB_val) -> &'a [u8] {
    // SAFETY: LMDB gives the address and length of bytes inside its map.
    unsafe { std::slice::from_raw_parts(val.mv_data.cast::<u8>(), val.mv_size) }
}

impl Lmdb {
    pub fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        std::fs::create_dir_all(dir)?;
        let path = CString::new(dir.as_os_str().as_bytes())?;
        let unsynced = ffi::MDB_NOSYNC | ffi::MDB_NOMETASYNC;
        let flags = ffi::MDB_NOTLS | if settings.durable { 0 } else { unsynced };
        let (mut env, mut txn, mut dbi) = (null_mut(), null_mut(), 0);
        // SAFETY: plain calls in the order that lmdb.h asks for; the pointers are those it gave.
        unsafe {
            check(ffi::mdb_env_create(&raw mut env))?;
            check(ffi::mdb_env_set_mapsize(env, MAP_BYTES))?;
            check(ffi::mdb_env_open(env, path.as_ptr(), flags, 0o644))?;
            check(ffi::mdb_txn_begin(env, null_mut(), 0, &raw mut txn))?;
            check(ffi::mdb_dbi_open(txn, null(), 0, &raw mut dbi))?;
            check(ffi::mdb_txn_commit(txn))?;
        }
        Ok(Lmdb { env, dbi })
    }

    /// One write transaction around `work`.
    fn write(&self, work: impl FnOnce(*mut ffi::MDB_txn) -> Outcome) -> Outcome {
        let mut txn = null_mut();
        // SAFETY: the transaction is used by this thread only and ended on every path.
        unsafe {
            check(ffi::mdb_txn_begin(self.env, null_mut(), 0, &raw mut txn))?;
            if let Err(error) = work(txn) {
                ffi::mdb_txn_abort(txn);
                return Err(error);
            }
            check(ffi::mdb_txn_commit(txn))
        }
    }

    fn put(&self, txn: *mut ffi::MDB_txn, key: &[u8], value: &[u8]) -> Outcome {
        let (mut key, mut value) = (val(key), val(value));
        // SAFETY: the transaction is live; LMDB copies both.
        check(unsafe { ffi::mdb_put(txn, self.dbi, &raw mut key, &raw mut value, 0) })
    }
}

impl Engine for Lmdb {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        let (mut txn, mut cursor) = (null_mut(), null_mut());
        // SAFETY: the environment is open.
        unsafe {
            check(ffi::mdb_txn_begin(self.env, null_mut(), ffi::MDB_RDONLY, &raw mut txn))?;
            check(ffi::mdb_cursor_open(txn, self.dbi, &raw mut cursor))?;
            ffi::mdb_txn_reset(txn);
        }
        Ok(Box::new(Worker { lmdb: self, txn, cursor }))
    }

    fn settle(&self) -> Outcome {
        // SAFETY: the environment is open.
        check(unsafe { ffi::mdb_env_sync(self.env, 1) })
    }

    fn stats(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::new()
    }

    fn close(self: Box<Self>) -> Outcome {
        self.settle()
    }
}

impl Drop for Lmdb {
    fn drop(&mut self) {
        // SAFETY: sessions borrow this, so none is left.
        unsafe { ffi::mdb_env_close(self.env) };
    }
}

struct Worker<'a> {
    lmdb: &'a Lmdb,
    txn: *mut ffi::MDB_txn,
    cursor: *mut ffi::MDB_cursor,
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        // SAFETY: both are this session's own; a cursor of a read transaction is closed by hand.
        unsafe {
            ffi::mdb_cursor_close(self.cursor);
            ffi::mdb_txn_abort(self.txn);
        }
    }
}

impl Worker<'_> {
    fn step(
        &mut self,
        op: ffi::MDB_cursor_op,
        key: &mut ffi::MDB_val,
    ) -> Outcome<Option<ffi::MDB_val>> {
        let mut value = val(&[]);
        // SAFETY: the cursor belongs to the renewed transaction.
        match unsafe { ffi::mdb_cursor_get(self.cursor, key, &raw mut value, op) } {
            ffi::MDB_NOTFOUND => Ok(None),
            code => check(code).map(|()| Some(value)),
        }
    }

    /// Puts the cursor on the first entry of a scan.
    fn begin(
        &mut self,
        start: Option<&Key>,
        reverse: bool,
        key: &mut ffi::MDB_val,
    ) -> Outcome<Option<ffi::MDB_val>> {
        let Some(start) = start else {
            return self.step(if reverse { ffi::MDB_LAST } else { ffi::MDB_FIRST }, key);
        };
        *key = val(start);
        let at = self.step(ffi::MDB_SET_RANGE, key)?;
        if !reverse {
            return Ok(at);
        }
        match at {
            None => self.step(ffi::MDB_LAST, key),
            // SAFETY: the transaction is not reset before the scan ends.
            Some(value) if unsafe { bytes(key) } == start.as_slice() => Ok(Some(value)),
            Some(_) => self.step(ffi::MDB_PREV, key),
        }
    }
}

impl Session for Worker<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Outcome {
        self.lmdb.write(|txn| self.lmdb.put(txn, key, value))
    }

    /// Durable if the store was opened so.
    fn put_sync(&mut self, key: &Key, value: &[u8]) -> Outcome {
        self.put(key, value)
    }

    fn delete(&mut self, key: &Key) -> Outcome {
        self.lmdb.write(|txn| {
            let mut key = val(key);
            // SAFETY: the transaction is live.
            match unsafe { ffi::mdb_del(txn, self.lmdb.dbi, &raw mut key, null_mut()) } {
                ffi::MDB_NOTFOUND => Ok(()),
                code => check(code),
            }
        })
    }

    fn write_batch(&mut self, keys: &[Key], values: &[u8], value_bytes: usize) -> Outcome {
        self.lmdb.write(|txn| {
            let values = values.chunks_exact(value_bytes);
            keys.iter().zip(values).try_for_each(|(key, value)| self.lmdb.put(txn, key, value))
        })
    }

    fn get(&mut self, key: &Key, found: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let (mut key, mut value) = (val(key), val(&[]));
        // SAFETY: the transaction is this session's and reset; the value is used before it is reset
        // again.
        unsafe {
            check(ffi::mdb_txn_renew(self.txn))?;
            let code = ffi::mdb_get(self.txn, self.lmdb.dbi, &raw mut key, &raw mut value);
            if code == ffi::MDB_SUCCESS {
                found(bytes(&value));
            }
            ffi::mdb_txn_reset(self.txn);
            if code == ffi::MDB_NOTFOUND { Ok(false) } else { check(code).map(|()| true) }
        }
    }

    fn scan(
        &mut self,
        start: Option<&Key>,
        limit: u64,
        reverse: bool,
        entry: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Outcome<u64> {
        // SAFETY: as in `get`; the cursor is renewed with its transaction.
        unsafe {
            check(ffi::mdb_txn_renew(self.txn))?;
            check(ffi::mdb_cursor_renew(self.txn, self.cursor))?;
        }
        let next = if reverse { ffi::MDB_PREV } else { ffi::MDB_NEXT };
        let mut key = val(&[]);
        let mut at = self.begin(start, reverse, &mut key)?;
        let mut count = 0;
        while let Some(value) = at {
            // SAFETY: the transaction is reset below only.
            unsafe { entry(bytes(&key), bytes(&value)) };
            count += 1;
            if count == limit {
                break;
            }
            at = self.step(next, &mut key)?;
        }
        // SAFETY: as above.
        unsafe { ffi::mdb_txn_reset(self.txn) };
        Ok(count)
    }
}
