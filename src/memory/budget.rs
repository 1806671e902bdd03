//! Bytes that are reserved before they are held.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;

/// What a body costs for each of its bytes while its message is on its way: the body, its form as it is
/// signed and as it is sent, and its record in the spool.
const PER_BYTE: u64 = 4;
/// What a message costs besides: its task, its places in queues, and its call's head.
const PER_MESSAGE: u64 = 4 << 10;
/// The last quarter of a budget is for messages that cost no more than this, so that large ones do not keep
/// small ones away.
const SMALL: u64 = 24 << 10;

/// What a message with a body of so many bytes costs.
pub(super) const fn cost(body: u64) -> u64 {
    PER_MESSAGE + PER_BYTE * body
}

/// Bytes for the bodies of messages. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<MemoryAccount>);

#[derive(Debug)]
struct MemoryAccount {
    own: u64,
    /// Bytes that others do not use at present.
    lent: AtomicU64,
    used: AtomicU64,
    refused: AtomicU64,
}

/// What a budget is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUsage {
    /// The most bytes.
    pub max: u64,
    /// Bytes in use.
    pub used: u64,
    /// Reservations that failed.
    pub refused: u64,
}

/// A reservation failed: as many bytes as may be are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the memory for messages is in use")]
pub struct NoMemory;

/// Bytes of a budget, free again when dropped.
#[derive(Debug)]
pub struct MemoryReservation {
    account: Arc<MemoryAccount>,
    bytes: u64,
}

impl MemoryBudget {
    /// A budget of `own` bytes.
    pub fn new(own: u64) -> Self {
        let (lent, used, refused) = Default::default();
        Self(Arc::new(MemoryAccount { own, lent, used, refused }))
    }

    /// Lends it so many bytes more, until it is called again: what others may use, and do not.
    pub fn lend(&self, bytes: u64) {
        self.0.lent.store(bytes, Relaxed);
    }

    /// Begins a message whose body is still to come.
    ///
    /// # Errors
    /// All of it is in use.
    pub fn begin(&self) -> Result<MemoryReservation, NoMemory> {
        let mut reservation = MemoryReservation { account: Arc::clone(&self.0), bytes: 0 };
        reservation.grow(PER_MESSAGE)?;
        Ok(reservation)
    }

    /// The most bytes that one reservation can have now.
    pub fn largest(&self) -> u64 {
        self.0.max() / 4 * 3
    }

    /// What is in use now.
    pub fn usage(&self) -> MemoryUsage {
        let MemoryAccount { used, refused, .. } = &*self.0;
        MemoryUsage { max: self.0.max(), used: used.load(Relaxed), refused: refused.load(Relaxed) }
    }
}

impl MemoryAccount {
    fn max(&self) -> u64 {
        self.own.saturating_add(self.lent.load(Relaxed))
    }
}

impl MemoryReservation {
    /// Makes room for so many more bytes of the message's body.
    ///
    /// # Errors
    /// The budget does not have them.
    pub fn add_body(&mut self, bytes: usize) -> Result<(), NoMemory> {
        self.grow(PER_BYTE.saturating_mul(bytes as u64))
    }

    /// Makes room for so many more bytes that are no message's body.
    ///
    /// # Errors
    /// The budget does not have them.
    pub fn add_bytes(&mut self, bytes: usize) -> Result<(), NoMemory> {
        self.grow(bytes as u64)
    }

    /// The same bytes, which hold the reservation until the last of their clones is dropped.
    pub fn hold(self, body: Bytes) -> Bytes {
        Bytes::from_owner(ReservedBytes { body, _reservation: self })
    }

    fn grow(&mut self, bytes: u64) -> Result<(), NoMemory> {
        let MemoryAccount { used, refused, .. } = &*self.account;
        let (wanted, max) = (self.bytes.saturating_add(bytes), self.account.max());
        let limit = if wanted <= SMALL { max } else { max / 4 * 3 };
        let grown = |used: u64| used.checked_add(bytes).filter(|used| *used <= limit);
        if used.fetch_update(Relaxed, Relaxed, grown).is_err() {
            refused.fetch_add(1, Relaxed);
            return Err(NoMemory);
        }
        self.bytes = wanted;
        Ok(())
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.account.used.fetch_sub(self.bytes, Relaxed);
    }
}

struct ReservedBytes {
    body: Bytes,
    _reservation: MemoryReservation,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(budget: &MemoryBudget, body: usize) -> Result<Bytes, NoMemory> {
        let mut reservation = budget.begin()?;
        reservation.add_body(body)?;
        Ok(reservation.hold(vec![0; body].into()))
    }

    #[test]
    fn a_message_holds_its_bytes_until_its_last_clone_is_dropped() {
        let budget = MemoryBudget::new(1 << 20);
        let body = message(&budget, 1_000).unwrap();
        assert_eq!((body.len(), budget.usage().used), (1_000, cost(1_000)));
        let part = body.slice(10..20);
        drop(body);
        assert_eq!(budget.usage().used, cost(1_000));
        drop(part);
        assert_eq!((budget.usage().used, budget.usage().refused), (0, 0));
    }

    #[test]
    fn large_messages_leave_room_for_small_ones() {
        let budget = MemoryBudget::new(1 << 20);
        let large: Vec<_> = std::iter::from_fn(|| message(&budget, 16 << 10).ok()).collect();
        assert!(
            budget.usage().used > (1 << 19) && budget.usage().used <= (3 << 18),
            "{}",
            budget.usage().used
        );
        let small: Vec<_> = std::iter::from_fn(|| message(&budget, 1_000).ok()).collect();
        assert!(small.len() > 20 && budget.usage().used <= 1 << 20, "{}", small.len());
        // What was given up half-way is free again.
        let used = budget.usage().used;
        assert!(message(&budget, 1_000).is_err() && message(&budget, usize::MAX).is_err());
        assert_eq!(budget.usage().used, used);
        drop((large, small));
        assert_eq!(budget.usage().used, 0);
        assert!(budget.usage().refused >= 4);
    }

    #[test]
    fn what_others_do_not_use_is_lent() {
        let budget = MemoryBudget::new(1 << 20);
        budget.lend(1 << 20);
        let large: Vec<_> = std::iter::from_fn(|| message(&budget, 16 << 10).ok()).collect();
        assert!(budget.usage().used > 1 << 20, "{:?}", budget.usage());
        // They need it themselves: nothing more is taken before enough has ended.
        budget.lend(0);
        assert!(message(&budget, 0).is_err());
        drop(large);
        assert!(message(&budget, 16 << 10).is_ok());
    }

    #[test]
    fn the_longest_body_fits_alone() {
        let budget = MemoryBudget::new(1 << 20);
        let longest = usize::try_from((budget.largest() - PER_MESSAGE) / PER_BYTE).unwrap();
        assert!(message(&budget, longest).is_ok());
        assert!(message(&budget, longest + 1).is_err());
    }
}
