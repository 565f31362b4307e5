//! Committing: what a step computed becomes known.
//!
//! Per row: its tokens count as computed, the blocks that they fill enter the index, and a sampled token is reported. A
//! sequence that ends may have one more row in flight; what that row samples is dropped when it comes.

use std::ops::Range;

use super::{CommitError, Scheduler, plan::RowInFlight};
use crate::{
    ids::{SequenceId, Slot},
    plan::{Event, FinishReason, Sample, StepOutput},
    sequence::{Leaving, Phase},
};

impl Scheduler {
    /// Takes the answer to the oldest step in flight. Returns what happened since the last commit, in order.
    ///
    /// O(rows), plus what is new; a decoding row costs O(1), and O(block size) when it fills a block.
    ///
    /// # Errors
    /// If `output` is no answer to that step. Then nothing changes.
    pub fn commit(&mut self, output: &StepOutput) -> Result<Vec<Event>, CommitError> {
        self.check_output(output)?;
        let step = self.in_flight.pop_front().expect("the output was checked. This is a bug.");
        self.costs.observe(&step.shape, output.duration_us);
        for copy in step.copies {
            self.cache.copied(copy);
        }
        for block in step.retired_blocks {
            self.cache.free(block);
        }
        let mut samples = output.samples.iter();
        for row in &step.rows {
            let sample = if row.sample { samples.next() } else { None };
            self.commit_row(row, sample);
        }
        self.debug_check();
        Ok(std::mem::take(&mut self.events))
    }

    fn check_output(&self, output: &StepOutput) -> Result<(), CommitError> {
        let Some(step) = self.in_flight.front() else {
            return Err(CommitError::NothingInFlight { got: output.id });
        };
        if step.id != output.id {
            return Err(CommitError::WrongStep { expected: step.id, got: output.id });
        }
        let expected = step.rows.iter().filter(|row| row.sample).count();
        let got = output.samples.len();
        if expected != got {
            return Err(CommitError::WrongSampleCount { step: step.id, expected, got });
        }
        Ok(())
    }

    fn commit_row(&mut self, row: &RowInFlight, sample: Option<&Sample>) {
        let sequence = self.sequence(row.slot);
        sequence.num_steps_in_flight -= 1;
        sequence.num_samples_in_flight -= u32::from(row.sample);
        // After the end, a row may have computed a token that was dropped.
        sequence.num_computed = (sequence.num_computed + row.num_tokens).min(sequence.tokens.len());
        if let Some(sample) = sample
            && sequence.phase != Phase::Draining(Leaving::End)
        {
            self.accept(row.slot, sample);
        }
        self.publish(row.slot);
        self.vacate_if_drained(row.slot);
    }

    /// Appends a token to a sequence that has not ended; it may end it.
    fn accept(&mut self, slot: Slot, sample: &Sample) {
        let sequence = self.sequence(slot);
        let id = sequence.id;
        sequence.tokens.push(sample.token);
        let reason = if sequence.is_stop_token(sample.token) {
            Some(FinishReason::StopToken)
        } else if sequence.has_all_tokens() {
            Some(FinishReason::Length)
        } else {
            None
        };
        self.counters.generated_tokens += 1;
        self.events.push(Event::Token { sequence: id, sample: sample.clone() });
        if let Some(reason) = reason {
            self.finish(slot, id, reason);
        }
    }

    fn finish(&mut self, slot: Slot, id: SequenceId, reason: FinishReason) {
        self.counters.finished += 1;
        self.events.push(Event::Finished { sequence: id, reason });
        self.places.remove(&id);
        self.drain(slot, Leaving::End);
    }

    /// Shares the blocks that a sequence has filled. Where another sequence was faster, its blocks take the place of this
    /// one's, which are freed when no step in flight reads them.
    fn publish(&mut self, slot: Slot) {
        let sequence = self.slots[slot.0 as usize].as_mut();
        let sequence = sequence.expect("a slot in use has a sequence. This is a bug.");
        let mut duplicates = Vec::new();
        let computed = &sequence.tokens[..sequence.num_computed];
        let changed = self.cache.publish(&sequence.namespace, &mut sequence.table, computed, &mut duplicates);
        if !changed.is_empty() {
            let known = &mut sequence.changed_blocks;
            let start = if Range::is_empty(known) { changed.start } else { known.start };
            *known = start..changed.end;
            self.retire(duplicates);
        }
    }
}
