//! Intel's matrix extensions: eight registers of sixteen rows of 64 bytes, and products of whole tiles.
//!
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. The instructions are written as
//! assembly, since the compiler's intrinsics for them are not stable; it never uses these registers by itself.
#![expect(unsafe_code, reason = "instructions, and pointers that the callers vouch for")]

use std::arch::asm;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Bytes of a tile's row, at most.
pub(crate) const ROW_BYTES: usize = 64;

/// Whether the processor multiplies tiles of bf16, and the system lets this process use them.
pub(crate) fn is_available() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// AMX-BF16 and AMX-TILE, in EDX of leaf 7.
    const NEEDED: u32 = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & NEEDED == NEEDED && is_permitted()
}

/// Asks Linux for the memory that a thread's tiles are saved to: once for the whole process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: this call reads and writes none of our memory; the kernel changes rcx and r11 besides the result.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL as isize => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// How many rows of how many bytes each tile has: palette 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// `(rows, bytes of a row)` by tile.
    pub(crate) fn new(tiles: [(usize, usize); 8]) -> Self {
        let mut shapes =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (index, (rows, row_bytes)) in tiles.into_iter().enumerate() {
            assert!(
                rows <= ROWS && row_bytes <= ROW_BYTES,
                "a tile of {rows} rows of {row_bytes} bytes. This is a bug."
            );
            // A tile must not be empty.
            shapes.rows[index] = rows.max(1) as u8;
            shapes.row_bytes[index] = row_bytes as u16;
        }
        shapes
    }
}

/// The tiles, in use by this thread until this is dropped; then the next switch of threads need not save them.
#[derive(Debug)]
pub(crate) struct Tiles(());

impl Tiles {
    /// # Safety
    /// [`is_available`] was true.
    #[inline(always)]
    pub(crate) unsafe fn new(shapes: &Shapes) -> Self {
        let tiles = Self(());
        // SAFETY: the caller's promise.
        unsafe { tiles.reshape(shapes) };
        tiles
    }

    /// All tiles become zero, with these shapes.
    ///
    /// # Safety
    /// As [`Self::new`].
    #[inline(always)]
    pub(crate) unsafe fn reshape(&self, shapes: &Shapes) {
        // SAFETY: it reads the 64 bytes of `shapes`, which the compiler knows since memory may be read.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) std::ptr::from_ref(shapes), options(nostack, preserves_flags))
        };
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: no memory is touched.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// # Safety
/// Of all of these: there are [`Tiles`]; pointers are good for the tile's rows, `stride` bytes apart.
#[inline(always)]
pub(crate) unsafe fn zero<const TILE: u8>() {
    // SAFETY: no memory is touched.
    unsafe { asm!("tilezero tmm{}", const TILE, options(nostack, preserves_flags, nomem)) };
}

#[inline(always)]
pub(crate) unsafe fn load<const TILE: u8>(from: *const u8, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm{}, [{} + {}]",
            const TILE,
            in(reg) from,
            in(reg) stride,
            options(nostack, preserves_flags, readonly),
        );
    }
}

#[inline(always)]
pub(crate) unsafe fn store<const TILE: u8>(to: *mut u8, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilestored [{} + {}], tmm{}",
            in(reg) to,
            in(reg) stride,
            const TILE,
            options(nostack, preserves_flags),
        );
    }
}

/// `SUM[m][n] += Σk A[m][k] · B[k/2][n][k%2]`, bf16 into float32; subnormals count as zero.
#[inline(always)]
pub(crate) unsafe fn multiply_bf16<const SUM: u8, const A: u8, const B: u8>() {
    // SAFETY: no memory is touched.
    unsafe {
        asm!(
            "tdpbf16ps tmm{}, tmm{}, tmm{}",
            const SUM, const A, const B,
            options(nostack, preserves_flags, nomem),
        );
    }
}
