//! Where chunks end: at a cut of the tokenizer that the text around it chooses.
//!
//! Content-defined, as in rsync and FastCDC (Xia et al. 2016): an end depends on a few bytes around it, and no end is looked
//! for in the first bytes of a chunk. Two texts that agree from some place on soon agree in their chunks too.

use crate::tokenizer::Cuts;

/// How long chunks are.
pub(super) struct Grain {
    /// A chunk has at least so many bytes…
    min: usize,
    /// …ends at a cut around which the hash has these bits zero…
    mask: u64,
    /// …or else at the first cut after so many.
    max: usize,
}

/// What is encoded anew around an edit: about 180 bytes.
pub(super) const FINE: Grain = Grain { min: 128, mask: 0x7, max: 512 };
/// What a text that was seen before is walked by: about 8 KiB.
pub(super) const COARSE: Grain = Grain { min: 4 << 10, mask: 0x1ff, max: 16 << 10 };

/// Bytes before and after a cut that choose it.
const BEFORE: usize = 16;
const AFTER: usize = 24;

impl Grain {
    /// Where the chunk that begins at `from` ends; `None` if the text has no cut that would do.
    pub(super) fn end(&self, cuts: &Cuts, text: &str, from: usize) -> Option<usize> {
        let mut at = cuts.next(text, from + self.min)?;
        while at - from < self.max && around(text.as_bytes(), at) & self.mask != 0 {
            match cuts.next(text, at + 1) {
                Some(next) => at = next,
                None => return None,
            }
        }
        Some(at)
    }
}

/// A hash of the bytes around `at`: the state of a multiply-and-add over words, its high bits.
fn around(bytes: &[u8], at: usize) -> u64 {
    let mut window = [0; BEFORE + AFTER];
    let (start, end) = (at.saturating_sub(BEFORE), bytes.len().min(at + AFTER));
    // Zeros stand for what lies outside of the text.
    let first = BEFORE - (at - start);
    window[first..first + (end - start)].copy_from_slice(&bytes[start..end]);
    let (words, _) = window.as_chunks::<8>();
    let hash = words.iter().fold(0_u64, |hash, word| {
        (hash.rotate_left(23) ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    hash >> 40
}
