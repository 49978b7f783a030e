//! The commit of a transaction: the check that it read nothing that was written since, and the
//! write.
//!
//! Both under the writer's lock, taken as by any writer that is alone, and once there is room. If
//! much was written since the begin, most of it is checked before that, without the lock, so that
//! nobody waits for long.

use super::Inner;
use super::batch::WriteBatch;
use super::commit::Writer;
use super::options::Durability;
use super::queue::Commits;
use super::syncer::Position;
use super::transaction::Transaction;
use super::transaction_steps::{Touched, touched_in};
use super::written::Chunk;
use crate::error::{Error, Result};
use crate::sync::{Arc, MutexGuard};

/// So much is checked under the lock, in bytes of keys.
const LITTLE: usize = 16 << 10;
/// So often more is checked before. If others write faster than this one checks, they must wait.
const ROUNDS: usize = 4;

impl Inner {
    /// Commits a transaction, unless it conflicts; returns when it is visible, with what it must
    /// wait for to be durable.
    pub(super) fn commit_transaction(
        &self,
        transaction: &mut Transaction,
        durability: Durability,
    ) -> Result<Position> {
        let mut keyspaces = std::mem::take(&mut *transaction.keyspaces.lock());
        for touched in &mut keyspaces {
            touched.reads.end();
        }
        let mut batch = WriteBatch::new();
        for touched in &keyspaces {
            touched.writes.add_to(&mut batch, &touched.core);
        }
        if batch.is_empty() && batch.check().is_ok() {
            self.check_open()?;
            return Ok(self.sync.appended());
        }
        if keyspaces.iter().all(|touched| touched.reads.is_empty()) {
            return self.write_visibly(batch, durability);
        }
        self.check_batch(&batch)?;
        self.settle(&mut batch, durability)?;
        let mut writer = self.enter_unless_conflict(transaction, &keyspaces, batch.bytes())?;
        keyspaces.iter().try_for_each(|touched| touched.core.check_live())?;
        // What it writes is no news to itself.
        transaction.is_recorded = false;
        writer.written.release(transaction.start);
        self.commit_batches(&mut writer, std::iter::once(&batch))
    }

    /// The writer's lock, once there is room for so many bytes, unless something that was read was
    /// written to.
    fn enter_unless_conflict(
        &self,
        transaction: &Transaction,
        keyspaces: &[Touched],
        bytes: u64,
    ) -> Result<MutexGuard<'_, Writer>> {
        let mut start = transaction.start;
        let mut writer = self.enter_with_room(bytes)?;
        for round in 1.. {
            let Some(news) = writer.written.since(start) else {
                tracing::debug!("a transaction conflicts: too much was written since it began");
                return Err(Error::Conflict);
            };
            let amount: usize = news.iter().map(|chunk| chunk.bytes()).sum();
            if amount <= LITTLE || round > ROUNDS {
                self.check_news(keyspaces, &news)?;
                break;
            }
            start = writer.written.end();
            drop(writer);
            self.check_news(keyspaces, &news)?;
            // What it owes for its bytes is paid.
            writer = self.enter_with_room(0)?;
        }
        Ok(writer)
    }

    fn enter_with_room(&self, bytes: u64) -> Result<MutexGuard<'_, Writer>> {
        if let Some(writer) = self.enter_alone(bytes) {
            return Ok(writer);
        }
        loop {
            self.wait_for_room_of(bytes)?;
            if let Some(writer) = self.enter() {
                return Ok(writer);
            }
        }
    }

    fn check_news(&self, keyspaces: &[Touched], news: &[Arc<Chunk>]) -> Result<()> {
        for write in news.iter().flat_map(|chunk| chunk.writes()) {
            // Encoded by this process, so that it can be decoded; if not, nothing is certain.
            let Ok(write) = write else { return Err(Error::Conflict) };
            let Some(touched) = touched_in(keyspaces, write.keyspace) else { continue };
            if touched.reads.are_met_by(&write) {
                if self.options.ignore_conflicts {
                    continue;
                }
                let (keyspace, key) = (write.keyspace, write.key.escape_ascii());
                tracing::debug!(%keyspace, %key, "a transaction conflicts with a write");
                return Err(Error::Conflict);
            }
        }
        Ok(())
    }
}
