//! How transactions are begun, and repeated until they succeed.

use super::Db;
use super::options::Durability;
use super::transaction::Transaction;
use crate::error::{Error, Result};
use std::time::Duration;

/// How [`Db::transact_with`] goes about it.
#[derive(Clone, Debug)]
#[must_use]
pub struct TransactionOptions {
    tries: Option<u32>,
    durability: Option<Durability>,
    exclusive: bool,
}

impl Default for TransactionOptions {
    fn default() -> Self {
        TransactionOptions { tries: Some(100), durability: None, exclusive: false }
    }
}

impl TransactionOptions {
    /// Up to 100 tries, optimistic, with the database's durability.
    pub fn new() -> Self {
        Self::default()
    }

    /// How often it is tried in all, at least once; `None`: until there is no conflict.
    pub fn tries(mut self, tries: impl Into<Option<u32>>) -> Self {
        self.tries = tries.into();
        self
    }

    /// When the commit is acknowledged. Default: as the database's option says.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Whether it is begun by [`Db::begin_exclusive`]. Default false.
    pub fn exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }
}

impl Db {
    /// Begins a transaction: an optimistic one, which holds nobody up, and whose commit may
    /// conflict.
    #[must_use = "a transaction that is dropped is rolled back"]
    pub fn begin(&self) -> Transaction {
        Transaction::begin(&self.default.handle, false)
    }

    /// Begins an exclusive transaction: waits until no other exclusive one is open, so that they
    /// never conflict with each other. With writes and transactions that are not exclusive it
    /// conflicts as any transaction does. For work that would be repeated too often otherwise, or
    /// is too dear to be. Those that wait come in the order in which they called.
    ///
    /// A thread that begins one while it has another open waits for itself, for ever.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = ashlardb::Db::open(dir.path().join("db"))?;
    /// std::thread::scope(|scope| {
    ///     for _ in 0..4 {
    ///         scope.spawn(|| {
    ///             let tx = db.begin_exclusive();
    ///             let count = tx.get("count")?.map_or(0, |count| count.len());
    ///             tx.put("count", vec![b'|'; count + 1])?;
    ///             tx.commit()
    ///         });
    ///     }
    /// });
    /// assert_eq!(db.get("count")?.unwrap(), "||||");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "a transaction that is dropped is rolled back"]
    pub fn begin_exclusive(&self) -> Transaction {
        Transaction::begin(&self.default.handle, true)
    }

    /// Does `work` in a transaction and commits it; if that conflicts, does it again in another
    /// one, up to 100 times in all. So `work` should change nothing but through the transaction. If
    /// it gives an error, or panics, the transaction is rolled back, and that is the end.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = ashlardb::Db::open(dir.path().join("db"))?;
    /// let next = db.transact(|tx| {
    ///     let last = tx.prefix("order ").next_back().transpose()?;
    ///     let last: u32 = last.map_or(0, |(key, _)| key.escape_ascii().to_string()[6..].parse().unwrap());
    ///     tx.put(format!("order {:05}", last + 1), "2 apples")?;
    ///     Ok(last + 1)
    /// })?;
    /// assert_eq!(next, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `work`; those of [`Transaction::commit`], [`Error::Conflict`] after the last try.
    pub fn transact<R>(&self, work: impl FnMut(&Transaction) -> Result<R>) -> Result<R> {
        self.transact_with(&TransactionOptions::new(), work)
    }

    /// [`transact`](Self::transact) with options, for work that may fail with errors of its own.
    ///
    /// ```
    /// # use ashlardb::{Durability, Error, TransactionOptions};
    /// #[derive(Debug)]
    /// enum Refused {
    ///     TooPoor,
    ///     Database(Error),
    /// }
    /// impl From<Error> for Refused {
    ///     fn from(error: Error) -> Self {
    ///         Refused::Database(error)
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = ashlardb::Db::open(dir.path().join("db"))?;
    /// let options = TransactionOptions::new().tries(1000).durability(Durability::Sync);
    /// let paid = db.transact_with(&options, |tx| {
    ///     tx.put("visits", "1")?; // never happened
    ///     tx.get("purse")?.map(|purse| purse.len()).ok_or(Refused::TooPoor)
    /// });
    /// assert!(matches!(paid, Err(Refused::TooPoor)));
    /// assert!(db.get("visits")?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`transact`](Self::transact); [`Error::InvalidOption`] for no try at all.
    pub fn transact_with<R, E: From<Error>>(
        &self,
        options: &TransactionOptions,
        mut work: impl FnMut(&Transaction) -> std::result::Result<R, E>,
    ) -> std::result::Result<R, E> {
        if options.tries == Some(0) {
            let reason = "must be at least 1, or none for no limit".to_owned();
            return Err(Error::InvalidOption { option: "tries", reason }.into());
        }
        let durability = options.durability.unwrap_or(self.inner().options.durability);
        let mut tries: u32 = 1;
        loop {
            let transaction = if options.exclusive { self.begin_exclusive() } else { self.begin() };
            let result = work(&transaction)?;
            match transaction.commit_with(durability) {
                Ok(()) => return Ok(result),
                Err(Error::Conflict) if options.tries.is_none_or(|most| tries < most) => {}
                Err(error) => return Err(error.into()),
            }
            self.make_way(tries);
            tries = tries.saturating_add(1);
        }
    }

    /// After a conflict: who conflicts again and again waits, for a time of up to 2 ms that chance
    /// says, so that not all come back at once. Each conflict is another one's success, so this is
    /// not needed to get on.
    fn make_way(&self, tries: u32) {
        const TO_BE_PATIENT: u32 = 3;
        let env = &self.inner().home.env;
        if let Some(doublings) = tries.checked_sub(TO_BE_PATIENT) {
            let most_us = 2000.min(16 << doublings.min(7));
            env.clock.sleep(Duration::from_micros(env.entropy.next_u64() % most_us));
        }
    }
}
