//! The queue of waiting sequences: in order of rank, and by how much each has to compute.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
};

use crate::{policy::Rank, sequence::Sequence};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct WaitingQueue {
    by_rank: BTreeMap<Rank, Waiting>,
    by_length: BTreeSet<Length>,
}

/// Higher priority first, then fewer tokens to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Length {
    priority: Reverse<i32>,
    pub(super) num_left: u32,
    pub(super) rank: Rank,
}

#[derive(Debug)]
struct Waiting {
    sequence: Sequence,
    num_left: u32,
}

impl WaitingQueue {
    pub(super) fn len(&self) -> usize {
        self.by_rank.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_rank.is_empty()
    }

    /// Adds a sequence that had `num_left` tokens to compute when it came, and may have more or fewer when it runs.
    pub(super) fn insert(&mut self, num_left: u32, sequence: Sequence) {
        self.by_length.insert(Length::new(num_left, sequence.rank));
        self.by_rank.insert(sequence.rank, Waiting { sequence, num_left });
    }

    /// Takes the sequence of `rank` out.
    pub(super) fn remove(&mut self, rank: Rank) -> Option<Sequence> {
        let Waiting { sequence, num_left } = self.by_rank.remove(&rank)?;
        self.by_length.remove(&Length::new(num_left, rank));
        Some(sequence)
    }

    pub(super) fn get(&self, rank: Rank) -> &Sequence {
        &self.by_rank.get(&rank).expect("the caller found it there. This is a bug.").sequence
    }

    /// Tokens that the sequence of `rank` had to compute when it came.
    pub(super) fn num_left(&self, rank: Rank) -> u32 {
        self.by_rank.get(&rank).expect("the caller found it there. This is a bug.").num_left
    }

    pub(super) fn get_mut(&mut self, rank: Rank) -> &mut Sequence {
        &mut self.by_rank.get_mut(&rank).expect("the caller found it there. This is a bug.").sequence
    }

    /// The one that is served next after `rank`; the very next one without.
    pub(super) fn after(&self, rank: Option<Rank>) -> Option<Rank> {
        let start = rank.map_or(Unbounded, Excluded);
        self.by_rank.range((start, Unbounded)).next().map(|(rank, _)| *rank)
    }

    /// The shortest that is longer than `length`, among those of equal priority; the shortest of `priority` without.
    pub(super) fn longer(&self, priority: i32, length: Option<Length>) -> Option<Length> {
        let first = Length::new(0, Rank::new(priority, crate::ids::SequenceId(0)));
        let start = Excluded(length.unwrap_or(first));
        self.by_length.range((start, Unbounded)).next().copied().filter(|next| next.priority.0 == priority)
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        assert_eq!(self.by_rank.len(), self.by_length.len(), "each stands in both orders");
        self.by_rank.values().map(|waiting| &waiting.sequence)
    }
}

impl Length {
    fn new(num_left: u32, rank: Rank) -> Self {
        Self { priority: Reverse(rank.priority()), num_left, rank }
    }
}
