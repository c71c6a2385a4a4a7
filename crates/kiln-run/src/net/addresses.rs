//! Which numbers of a range are in use.

/// Hands out numbers in turn, so that one just given back comes round late: the kernel takes its
/// time to remove the interface and the routes of an instance that has ended.
#[derive(Debug, Clone)]
pub struct Numbers {
    first: u16,
    taken: Vec<bool>,
    next: usize,
}

impl Numbers {
    /// Of instance addresses.
    pub fn instances() -> Self {
        Self::new(1, super::range::INSTANCES)
    }

    /// Of virtual addresses.
    pub fn virtuals() -> Self {
        Self::new(0, super::range::VIRTUALS)
    }

    fn new(first: u16, count: u16) -> Self {
        Self { first, taken: vec![false; usize::from(count)], next: 0 }
    }

    /// A free number, or `None` when all are in use.
    pub fn take(&mut self) -> Option<u16> {
        let count = self.taken.len();
        let at = (0..count).map(|i| (self.next + i) % count).find(|at| !self.taken[*at])?;
        self.taken[at] = true;
        self.next = (at + 1) % count;
        Some(self.first + at as u16)
    }

    /// Marks `number` as in use, as found after a restart. False if it already was, or is outside.
    pub fn reserve(&mut self, number: u16) -> bool {
        let Some(slot) = self.slot(number) else { return false };
        let was_free = !self.taken[slot];
        self.taken[slot] = true;
        self.next = (slot + 1) % self.taken.len();
        was_free
    }

    /// Gives `number` back.
    pub fn give_back(&mut self, number: u16) {
        if let Some(slot) = self.slot(number) {
            self.taken[slot] = false;
        }
    }

    fn slot(&self, number: u16) -> Option<usize> {
        number.checked_sub(self.first).map(usize::from).filter(|slot| *slot < self.taken.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_round_before_it_repeats() {
        let mut numbers = Numbers::new(1, 3);
        assert_eq!(numbers.take(), Some(1));
        numbers.give_back(1);
        assert_eq!(numbers.take(), Some(2));
        assert!(numbers.reserve(3) && !numbers.reserve(3) && !numbers.reserve(4));
        assert_eq!(numbers.take(), Some(1));
        assert_eq!(numbers.take(), None);
        numbers.give_back(2);
        assert_eq!(numbers.take(), Some(2));
    }
}
