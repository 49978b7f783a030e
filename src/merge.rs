//! Merge operators: what becomes of a value when something is merged into it.
//!
//! A merge is written without reading: the log and the memtable take the *operand*, and reads and
//! compactions bring value and operands together by the keyspace's [`MergeOperator`]. So an operator
//! is part of the data: its name is kept with the keyspace, and it must go on giving the same results.
//!
//! Invariants: the code of an operator never takes the database down. What it reports, and a panic, is
//! [`Error::MergeFailed`] for who reads; compactions then leave value and operands as they are.
//! Operators are `Send + Sync` and may be called by several threads at once, while no lock is held that a
//! reader or writer could need. Called by reads, flushes and compactions.

use crate::error::{Error, Result};
use crate::types::{EXPIRY_LEN, MAX_VALUE_LEN};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why an operator could not merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeError(String);

impl MergeError {
    /// With what to tell the user, as a clause: "the operand is not a number".
    pub fn new(reason: impl Into<String>) -> Self {
        MergeError(reason.into())
    }
}

impl std::fmt::Display for MergeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MergeError {}

/// What becomes of the value of a key when operands are merged into it.
///
/// It must be a function of its arguments alone, for ever, and it must not matter where the operands
/// are divided: compactions merge some of them now and the rest later, into what came of the first. With
/// `x` for a value or none, and `a` and `b` for operands in the order in which they were written,
///
/// ```text
/// merge(x, a ++ b) = merge(merge(x, a), b)
/// ```
///
/// also where `merge(x, a)` is `None`: then `b` is merged into nothing. The same database gives
/// different answers otherwise, depending on what was compacted when.
///
/// An operator that breaks this: operands are numbers to be added, and one that says `remove`, and
/// `merge` gives `None` if there is a `remove` among its operands, wherever. Of `remove, 5` it makes
/// nothing at once, and 5 if the `remove` was merged before. One that keeps it starts again from
/// nothing at each `remove`:
///
/// ```
/// use ashlardb::merge::{MergeFn, MergeOperator};
///
/// let sum = MergeFn::new("sum-or-remove", |_key, existing: Option<&[u8]>, operands: &[&[u8]]| {
///     operands.iter().fold(existing.map(<[u8]>::to_vec), |sum, operand| match **operand {
///         [] => None, // `remove`
///         [n, ..] => Some(vec![n + sum.map_or(0, |sum| sum[0])]),
///     })
/// });
/// let merge = |existing: Option<&[u8]>, operands: &[&[u8]]| {
///     sum.merge(b"key", existing, operands).unwrap()
/// };
/// let at_once = merge(Some(&[1]), &[&[2], &[], &[5]]);
/// let in_parts = merge(merge(Some(&[1]), &[&[2], &[]]).as_deref(), &[&[5]]);
/// assert_eq!(at_once, Some(vec![5]));
/// assert_eq!(at_once, in_parts);
/// ```
pub trait MergeOperator: Send + Sync {
    /// Its name, which the keyspace remembers: up to 255 bytes. An operator that gives other results
    /// is another operator and should have another name.
    fn name(&self) -> &str;

    /// The value of `key` after merging `operands`, in the order in which they were written, at least
    /// one, into the existing value, if there is one. `None` removes the key.
    ///
    /// # Errors
    ///
    /// Whatever makes a result impossible; who reads the key gets it as
    /// [`Error::MergeFailed`].
    fn merge(
        &self,
        key: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError>;

    /// One operand that does what these do one after the other, at least two, whatever value they are
    /// merged into, or none; `None`, as by default, if there is no such operand. With it, compactions
    /// keep a key's operands few. Without it, they hold all operands that a key has between two
    /// snapshots in memory at once.
    ///
    /// # Errors
    ///
    /// As for [`merge`](Self::merge); the operands stay as they are.
    fn combine(
        &self,
        key: &[u8],
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        let _ = (key, operands);
        Ok(None)
    }

    /// Refuses an operand when it is written, which is better than later. By default takes all.
    ///
    /// # Errors
    ///
    /// What is wrong with the operand; who writes it gets that as [`Error::MergeFailed`].
    fn check(&self, key: &[u8], operand: &[u8]) -> std::result::Result<(), MergeError> {
        let _ = (key, operand);
        Ok(())
    }
}

impl<T: MergeOperator + ?Sized> MergeOperator for std::sync::Arc<T> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn merge(
        &self,
        key: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        (**self).merge(key, existing, operands)
    }

    fn combine(
        &self,
        key: &[u8],
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        (**self).combine(key, operands)
    }

    fn check(&self, key: &[u8], operand: &[u8]) -> std::result::Result<(), MergeError> {
        (**self).check(key, operand)
    }
}

/// An operator made of a function.
///
/// ```
/// use ashlardb::merge::MergeFn;
///
/// let longest = MergeFn::associative("longest", |_key, existing, operands| {
///     let all = existing.into_iter().chain(operands.iter().copied());
///     all.max_by_key(|value| value.len()).map(<[u8]>::to_vec)
/// });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MergeFn<F> {
    name: &'static str,
    function: F,
    is_associative: bool,
}

impl<F> MergeFn<F>
where
    F: Fn(&[u8], Option<&[u8]>, &[&[u8]]) -> Option<Vec<u8>> + Send + Sync,
{
    /// Of `function(key, existing, operands)`, which gives the new value, or `None` to remove the key.
    pub fn new(name: &'static str, function: F) -> Self {
        MergeFn { name, function, is_associative: false }
    }

    /// The same for a function whose operands are like values: merging some into nothing gives one
    /// operand that stands for them all.
    pub fn associative(name: &'static str, function: F) -> Self {
        MergeFn { name, function, is_associative: true }
    }
}

impl<F> MergeOperator for MergeFn<F>
where
    F: Fn(&[u8], Option<&[u8]>, &[&[u8]]) -> Option<Vec<u8>> + Send + Sync,
{
    fn name(&self) -> &str {
        self.name
    }

    fn merge(
        &self,
        key: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        Ok((self.function)(key, existing, operands))
    }

    fn combine(
        &self,
        key: &[u8],
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        Ok(if self.is_associative { (self.function)(key, None, operands) } else { None })
    }
}

/// Appends the operands to the value. Named `ashlar.append`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Append;

impl MergeOperator for Append {
    fn name(&self) -> &'static str {
        "ashlar.append"
    }

    fn merge(
        &self,
        _: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        let mut value = existing.unwrap_or_default().to_vec();
        value.extend(operands.iter().copied().flatten());
        Ok(Some(value))
    }

    fn combine(
        &self,
        _: &[u8],
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        Ok(Some(operands.concat()))
    }
}

/// Adds numbers: values and operands are `i64`, little-endian; a missing value counts as 0. Sums wrap
/// around. Named `ashlar.add-i64`.
///
/// ```
/// # use ashlardb::{Db, merge::AddI64};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let db = Db::builder(dir.path().join("db")).merge_operator(AddI64).open()?;
/// db.merge("visits", 1_i64.to_le_bytes())?;
/// db.merge("visits", 2_i64.to_le_bytes())?;
/// assert_eq!(db.get("visits")?.unwrap(), 3_i64.to_le_bytes());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AddI64;

impl AddI64 {
    fn number(bytes: &[u8]) -> std::result::Result<i64, MergeError> {
        let number = bytes.try_into().map(i64::from_le_bytes);
        number.map_err(|_| MergeError::new(format!("{} bytes are not an i64", bytes.len())))
    }
}

impl MergeOperator for AddI64 {
    fn name(&self) -> &'static str {
        "ashlar.add-i64"
    }

    fn merge(
        &self,
        _: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        let mut sum = existing.map_or(Ok(0), Self::number)?;
        for operand in operands {
            sum = sum.wrapping_add(Self::number(operand)?);
        }
        Ok(Some(sum.to_le_bytes().to_vec()))
    }

    fn combine(
        &self,
        key: &[u8],
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        self.merge(key, None, operands)
    }

    fn check(&self, _: &[u8], operand: &[u8]) -> std::result::Result<(), MergeError> {
        Self::number(operand).map(|_| ())
    }
}

/// Keeps the greatest of value and operands, as byte strings. Named `ashlar.max`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Max;

impl MergeOperator for Max {
    fn name(&self) -> &'static str {
        "ashlar.max"
    }

    fn merge(
        &self,
        _: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        let all = existing.into_iter().chain(operands.iter().copied());
        Ok(all.max().map(<[u8]>::to_vec))
    }

    fn combine(
        &self,
        key: &[u8],
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        self.merge(key, None, operands)
    }
}

/// Unites sets of byte strings: values and operands are sets as [`encode`](SetUnion::encode) gives them.
/// Named `ashlar.set-union`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetUnion;

impl SetUnion {
    /// The bytes of a set: of each element, in order, its length as a little-endian `u32`, then the
    /// element. Of elements that are equal, one stays.
    pub fn encode<T: AsRef<[u8]>>(elements: impl IntoIterator<Item = T>) -> Vec<u8> {
        let elements: Vec<T> = elements.into_iter().collect();
        Self::write(&elements.iter().map(AsRef::as_ref).collect())
    }

    fn write(elements: &BTreeSet<&[u8]>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(elements.iter().map(|e| 4 + e.len()).sum());
        for element in elements {
            // Longer than 4 GiB no value can be, so no element either; that is found when it is written.
            let len = u32::try_from(element.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(element);
        }
        bytes
    }

    /// The elements of a set, in order.
    ///
    /// # Errors
    ///
    /// These are not the bytes of a set.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Vec<&[u8]>, MergeError> {
        let mut elements: Vec<&[u8]> = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = rest.split_first_chunk::<4>().and_then(|(len, behind)| {
                behind.split_at_checked(u32::from_le_bytes(*len) as usize)
            });
            let (element, behind) =
                taken.ok_or_else(|| MergeError::new("an element of a set is cut short"))?;
            if elements.last().is_some_and(|last| *last >= element) {
                return Err(MergeError::new("the elements of a set are out of order"));
            }
            elements.push(element);
            rest = behind;
        }
        Ok(elements)
    }
}

impl MergeOperator for SetUnion {
    fn name(&self) -> &'static str {
        "ashlar.set-union"
    }

    fn merge(
        &self,
        _: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        let mut united = BTreeSet::new();
        for set in existing.into_iter().chain(operands.iter().copied()) {
            united.extend(Self::decode(set)?);
        }
        Ok(Some(Self::write(&united)))
    }

    fn combine(
        &self,
        key: &[u8],
        operands: &[&[u8]],
    ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
        self.merge(key, None, operands)
    }

    fn check(&self, _: &[u8], operand: &[u8]) -> std::result::Result<(), MergeError> {
        Self::decode(operand).map(|_| ())
    }
}

/// The ready-made operator of this name.
#[must_use]
pub fn ready_made(name: &str) -> Option<std::sync::Arc<dyn MergeOperator>> {
    let all: [std::sync::Arc<dyn MergeOperator>; 4] = [
        std::sync::Arc::new(Append),
        std::sync::Arc::new(AddI64),
        std::sync::Arc::new(Max),
        std::sync::Arc::new(SetUnion),
    ];
    all.into_iter().find(|operator| operator.name() == name)
}

/// Calls an operator and takes what it does wrong for an error.
fn guarded<T>(
    operator: &dyn MergeOperator,
    call: impl FnOnce() -> std::result::Result<T, MergeError>,
) -> Result<T> {
    let outcome = caught(call).and_then(|result| result.map_err(|MergeError(reason)| reason));
    outcome.map_err(|reason| failed(operator, reason))
}

/// Calls code of the user's and takes a panic for an error: a clause about "it".
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> std::result::Result<T, String> {
    // What that code's own state looks like after a panic is for its author; none of ours is at hand
    // while it runs.
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("it panicked: {}", said.unwrap_or_default())
    })
}

fn failed(operator: &dyn MergeOperator, reason: String) -> Error {
    let name = caught(|| operator.name().to_owned());
    let operator = name.unwrap_or_else(|why| format!("(asked for its name, {why})"));
    Error::MergeFailed { operator, reason }
}

fn within(
    limit: usize,
    operator: &dyn MergeOperator,
    value: Option<Vec<u8>>,
) -> Result<Option<Vec<u8>>> {
    match value {
        Some(value) if value.len() > limit => {
            let what = format!("its result of {} bytes is too long for a value", value.len());
            Err(failed(operator, what))
        }
        value => Ok(value),
    }
}

/// The longest result that can be stored, in bytes: an expiry takes some of a value.
pub(crate) fn longest_result(expires: bool) -> usize {
    MAX_VALUE_LEN - if expires { EXPIRY_LEN } else { 0 }
}

/// [`MergeOperator::merge`], guarded. A result longer than `limit` is an error.
pub(crate) fn merge(
    operator: &dyn MergeOperator,
    key: &[u8],
    existing: Option<&[u8]>,
    operands: &[&[u8]],
    limit: usize,
) -> Result<Option<Vec<u8>>> {
    let value = guarded(operator, || operator.merge(key, existing, operands))?;
    within(limit, operator, value)
}

/// [`MergeOperator::combine`], guarded. A result longer than `limit` is an error.
pub(crate) fn combine(
    operator: &dyn MergeOperator,
    key: &[u8],
    operands: &[&[u8]],
    limit: usize,
) -> Result<Option<Vec<u8>>> {
    let operand = guarded(operator, || operator.combine(key, operands))?;
    within(limit, operator, operand)
}

/// [`MergeOperator::check`], guarded.
pub(crate) fn check(operator: &dyn MergeOperator, key: &[u8], operand: &[u8]) -> Result<()> {
    guarded(operator, || operator.check(key, operand))
}

#[cfg(test)]
mod tests;
