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

/// A hash (FNV-1a, its high bits) of the bytes around `at`.
fn around(bytes: &[u8], at: usize) -> u64 {
    let window = &bytes[at.saturating_sub(BEFORE)..bytes.len().min(at + AFTER)];
    let hash = window.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 40
}
