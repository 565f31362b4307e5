//! The invariants of the scheduler as code.

use std::collections::BTreeMap;

use super::{Place, Scheduler};
use crate::{
    blocks::Owner,
    ids::{BlockId, SequenceId, Slot},
    radix::Lock,
    sequence::{Phase, Sequence},
};

impl Scheduler {
    /// Which sequence has `slot` now; also one that drains.
    #[must_use]
    pub fn occupant(&self, slot: Slot) -> Option<SequenceId> {
        self.slots[slot.0 as usize].as_ref().map(|sequence| sequence.id)
    }

    /// Panics unless everything that must hold does. O(blocks + tokens): for tests and simulations.
    pub fn check_invariants(&self) {
        self.check_places();
        self.check_tables();
        self.check_owners();
        let stats = self.stats();
        assert_eq!(
            stats.free_blocks + stats.cached_blocks + stats.held_blocks,
            stats.total_blocks,
            "conservation"
        );
        assert!(self.in_flight.len() <= self.config.max_in_flight as usize, "too many steps in flight");
    }

    fn occupied(&self) -> impl Iterator<Item = (Slot, &Sequence)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(slot, sequence)| Some((Slot(slot as u32), sequence.as_ref()?)))
    }

    fn check_places(&self) {
        let mut places = BTreeMap::new();
        for sequence in self.waiting.iter() {
            assert!(sequence.num_overtaken <= sequence.num_positions(), "its patience is bounded");
            assert!(sequence.table.blocks().is_empty(), "a waiting sequence holds no blocks");
            assert_eq!(sequence.num_steps_in_flight, 0, "a waiting sequence has no step in flight");
            places.insert(sequence.id, Place::Waiting(sequence.rank));
        }
        let (mut num_prefilling, mut num_draining, mut num_running) = (0, 0, 0);
        for (slot, sequence) in self.occupied() {
            match sequence.phase {
                Phase::Draining(leaving) => {
                    assert!(sequence.num_steps_in_flight > 0, "nothing drains for longer than its last step");
                    num_draining += 1;
                    if leaving == crate::sequence::Leaving::End {
                        continue;
                    }
                }
                phase => {
                    assert_eq!(self.running.get(&sequence.rank), Some(&slot), "it runs");
                    num_running += 1;
                    num_prefilling += u32::from(phase == Phase::Prefilling);
                }
            }
            assert_eq!(places.insert(sequence.id, Place::Slot(slot)), None, "a sequence stands in one place");
        }
        assert_eq!(self.places, places);
        assert_eq!((self.num_prefilling, self.num_draining), (num_prefilling, num_draining));
        assert_eq!(self.running.len(), num_running);
        assert_eq!(
            self.vacant_slots.len() + self.occupied().count(),
            self.slots.len(),
            "slots are conserved"
        );
        for (slot, sequence) in self.occupied() {
            let in_flight = self.in_flight.iter().flat_map(|step| &step.rows).filter(|row| row.slot == slot);
            assert_eq!(sequence.num_steps_in_flight as usize, in_flight.clone().count());
            assert_eq!(sequence.num_samples_in_flight as usize, in_flight.filter(|row| row.sample).count());
        }
    }

    fn check_tables(&self) {
        let block_size = self.config.block_size as usize;
        let (_, index) = self.cache.parts();
        for (_, sequence) in self.occupied() {
            let table = &sequence.table;
            let num_indexed = table.num_indexed();
            assert!(sequence.num_computed <= sequence.tokens.len());
            assert!(sequence.num_planned <= table.blocks().len() * block_size, "rows have blocks");
            assert!(sequence.num_computed <= sequence.num_planned);
            assert!(
                sequence.copy.is_none() || sequence.num_sent_blocks.is_none(),
                "its copy goes with its first row"
            );
            if self.config.prefix_cache {
                assert_eq!(
                    num_indexed,
                    sequence.num_computed / block_size,
                    "what is computed is shared at once"
                );
            }
            if let Some(lock) = table.lock() {
                let (tokens, blocks) = index.locked_prefix(lock);
                assert_eq!(
                    tokens,
                    &sequence.tokens[..num_indexed * block_size],
                    "shared blocks hold its tokens"
                );
                assert_eq!(blocks, &table.blocks()[..num_indexed], "the table names the index's blocks");
            } else {
                assert_eq!(num_indexed, 0);
            }
        }
    }

    fn check_owners(&self) {
        let (pool, index) = self.cache.parts();
        let mut owners = vec![Owner::Free; pool.num_total() as usize];
        let mut claim = |block: BlockId, owner| {
            let before = std::mem::replace(&mut owners[block.0 as usize], owner);
            assert_eq!(before, Owner::Free, "{block:?} has two owners");
        };
        for (_, sequence) in self.occupied() {
            let private = &sequence.table.blocks()[sequence.table.num_indexed()..];
            private.iter().for_each(|block| claim(*block, Owner::Sequence));
        }
        for step in &self.in_flight {
            step.retired_blocks.iter().for_each(|block| claim(*block, Owner::Sequence));
        }
        index.blocks().for_each(|block| claim(block, Owner::Index));
        for (block, owner) in owners.into_iter().enumerate() {
            assert_eq!(pool.owner(BlockId(block as u32)), owner, "block {block} belongs to who says so");
        }
        index.check_invariants(self.locks());
    }

    fn locks(&self) -> Vec<&Lock> {
        let of_tables = self.occupied().filter_map(|(_, sequence)| sequence.table.lock());
        let of_copies = self.in_flight.iter().flat_map(|step| &step.copies).map(|copy| copy.source());
        let of_waiting_copies =
            self.occupied().filter_map(|(_, sequence)| Some(sequence.copy.as_ref()?.source()));
        of_tables.chain(of_copies).chain(of_waiting_copies).collect()
    }
}
