//! Memory for weights: in huge pages where the system has them, since a decode that reads all of it in small ones waits for
//! address translation a fifth of the time.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    ops::{Deref, DerefMut, Range},
    sync::{Arc, Mutex, PoisonError},
};

/// 64 bytes that begin at a multiple of 64.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// Small weights share a chunk of so many bytes; also its alignment: that of a huge page.
const CHUNK_BYTES: usize = 16 << 20;
const ALIGNMENT: usize = 2 << 20;

/// Lines that nobody else has, zero at first. Their memory is freed with the last ones of their chunk.
#[derive(Debug)]
pub(super) struct Lines {
    chunk: Arc<Chunk>,
    range: Range<usize>,
}

#[derive(Debug)]
struct Chunk {
    start: *mut Line,
    layout: Layout,
}

#[expect(unsafe_code, reason = "memory with an owner of its own")]
// SAFETY: plain memory; `Lines` give out parts that do not overlap.
unsafe impl Send for Chunk {}
#[expect(unsafe_code, reason = "memory with an owner of its own")]
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Lines {
    pub(super) fn new(len: usize) -> Self {
        /// The chunk that is being filled, and how many of its lines are taken.
        static CURRENT: Mutex<Option<(Arc<Chunk>, usize)>> = Mutex::new(None);
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, taken) = match current.take() {
            Some((chunk, taken)) if taken + len <= chunk.len() => (chunk, taken),
            _ => (Arc::new(Chunk::new(len * size_of::<Line>())), 0),
        };
        if taken + len < chunk.len() {
            *current = Some((Arc::clone(&chunk), taken + len));
        }
        #[expect(unsafe_code, reason = "memory with an owner of its own")]
        // SAFETY: within the chunk, and nobody else has these lines.
        unsafe {
            chunk.start.add(taken).write_bytes(0, len);
        }
        Self { chunk, range: taken..taken + len }
    }
}

impl Clone for Lines {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        #[expect(unsafe_code, reason = "memory with an owner of its own")]
        // SAFETY: within the chunk, written by `new`, and borrowed as `self` is.
        unsafe {
            std::slice::from_raw_parts(self.chunk.start.add(self.range.start), self.range.len())
        }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        #[expect(unsafe_code, reason = "memory with an owner of its own")]
        // SAFETY: as in `deref`; no other `Lines` have this range.
        unsafe {
            std::slice::from_raw_parts_mut(self.chunk.start.add(self.range.start), self.range.len())
        }
    }
}

impl Chunk {
    fn new(bytes: usize) -> Self {
        let bytes = bytes.max(1).next_multiple_of(CHUNK_BYTES);
        let layout =
            Layout::from_size_align(bytes, ALIGNMENT).expect("a size that memory can have. This is a bug.");
        #[expect(unsafe_code, reason = "memory with an owner of its own")]
        // SAFETY: the layout is not of size 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        advise(start, bytes);
        Self { start: start.cast(), layout }
    }

    fn len(&self) -> usize {
        self.layout.size() / size_of::<Line>()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "memory with an owner of its own")]
        // SAFETY: from `alloc` with this layout.
        unsafe {
            dealloc(self.start.cast(), self.layout);
        }
    }
}

/// Asks for huge pages, before any page is touched; it is as well without.
#[cfg(target_os = "linux")]
fn advise(start: *mut u8, bytes: usize) {
    use rustix::mm::{Advice, madvise};
    #[expect(unsafe_code, reason = "a system call on memory that was just allocated")]
    // SAFETY: the advice changes no contents.
    let _ = unsafe { madvise(start.cast(), bytes, Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_: *mut u8, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zero_and_do_not_overlap() {
        let mut all: Vec<Lines> = [1, 5, 300_000, 7, 262_144, 0, 3].map(Lines::new).into();
        for (index, lines) in all.iter_mut().enumerate() {
            assert!(lines.iter().all(|line| line.0 == [0; 64]));
            lines.fill(Line([index as u8 + 1; 64]));
        }
        for (index, lines) in all.iter().enumerate() {
            assert!(lines.iter().chain(lines.clone().iter()).all(|line| line.0 == [index as u8 + 1; 64]));
        }
    }
}
