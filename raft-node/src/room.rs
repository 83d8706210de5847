//! A share of a bounded budget that returns by itself.
//!
//! It travels with what it pays for, so that a caller who gives up while its request still waits somewhere
//! does not make room for more. Invariant: what is taken never exceeds the budget by more than one share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// A budget of bytes or of requests.
#[derive(Debug)]
pub(crate) struct Budget {
    taken: Arc<AtomicUsize>,
    max: usize,
}

/// A share of a [`Budget`]; returns when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    taken: Arc<AtomicUsize>,
    amount: usize,
}

impl Budget {
    pub fn new(max: usize) -> Self {
        Budget {
            taken: Arc::default(),
            max,
        }
    }

    /// Takes a share, as long as the budget is not used up.
    pub fn take(&self, amount: usize) -> Option<Room> {
        let room = Room {
            taken: self.taken.clone(),
            amount,
        };
        let before = self.taken.fetch_add(amount, Ordering::Relaxed);
        (before < self.max).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_used_up_and_comes_back() {
        let budget = Budget::new(10);
        let first = budget.take(9).expect("room");
        let _second = budget.take(100).expect("one may exceed it");
        assert!(budget.take(1).is_none());
        assert!(budget.take(0).is_none());
        drop(first);
        drop(_second);
        assert!(budget.take(1).is_some());
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }
}
