//! The element types of GGUF tensors: how many elements a block holds, and in how many bytes.

/// One element type of a GGUF tensor. Rows are stored in blocks of [`GgmlType::block_size`] elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgmlType {
    /// The number that stands in the file.
    pub id: u32,
    /// The name that llama.cpp and the `gguf` package use.
    pub name: &'static str,
    /// Elements in one block; the innermost dimension must be a multiple of it.
    pub block_size: u64,
    /// Bytes of one block.
    pub block_bytes: u64,
}

const fn entry(id: u32, name: &'static str, block_size: u64, block_bytes: u64) -> GgmlType {
    GgmlType { id, name, block_size, block_bytes }
}

/// Every type of the format that still exists, as `gguf.constants.GGML_QUANT_SIZES` has them. 4, 5, 31 to 33 and 36 to
/// 38 were removed from the format.
pub const GGML_TYPES: &[GgmlType] = &[
    entry(0, "F32", 1, 4),
    entry(1, "F16", 1, 2),
    entry(2, "Q4_0", 32, 18),
    entry(3, "Q4_1", 32, 20),
    entry(6, "Q5_0", 32, 22),
    entry(7, "Q5_1", 32, 24),
    entry(8, "Q8_0", 32, 34),
    entry(9, "Q8_1", 32, 40),
    entry(10, "Q2_K", 256, 84),
    entry(11, "Q3_K", 256, 110),
    entry(12, "Q4_K", 256, 144),
    entry(13, "Q5_K", 256, 176),
    entry(14, "Q6_K", 256, 210),
    entry(15, "Q8_K", 256, 292),
    entry(16, "IQ2_XXS", 256, 66),
    entry(17, "IQ2_XS", 256, 74),
    entry(18, "IQ3_XXS", 256, 98),
    entry(19, "IQ1_S", 256, 50),
    entry(20, "IQ4_NL", 32, 18),
    entry(21, "IQ3_S", 256, 110),
    entry(22, "IQ2_S", 256, 82),
    entry(23, "IQ4_XS", 256, 136),
    entry(24, "I8", 1, 1),
    entry(25, "I16", 1, 2),
    entry(26, "I32", 1, 4),
    entry(27, "I64", 1, 8),
    entry(28, "F64", 1, 8),
    entry(29, "IQ1_M", 256, 56),
    entry(30, "BF16", 1, 2),
    entry(34, "TQ1_0", 256, 54),
    entry(35, "TQ2_0", 256, 66),
    entry(39, "MXFP4", 32, 17),
    entry(40, "NVFP4", 64, 36),
    entry(41, "Q1_0", 128, 18),
];

/// Types that occur in files but that nobody dequantises to weights: integers, and formats of intermediate results.
const NOT_WEIGHTS: &[&str] = &["Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "Q1_0"];

impl GgmlType {
    /// The type with this number, or `None` if the format has none.
    pub fn from_id(id: u32) -> Option<Self> {
        GGML_TYPES.iter().copied().find(|entry| entry.id == id)
    }

    /// Whether a shard can load a weight of this type.
    pub fn is_weight(self) -> bool {
        !NOT_WEIGHTS.contains(&self.name)
    }

    /// Bytes of a tensor of this type. `shape` has its outermost dimension first; `None` if the innermost dimension is
    /// not a whole number of blocks, or if the product does not fit 64 bits.
    pub fn num_bytes(self, shape: &[u64]) -> Option<u64> {
        let innermost = shape.last().copied().unwrap_or(1);
        if !innermost.is_multiple_of(self.block_size) {
            return None;
        }
        let elements = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size))?;
        (elements / self.block_size).checked_mul(self.block_bytes)
    }
}

/// The names of all types that weights can have, for messages.
pub(crate) fn weight_type_names() -> String {
    GGML_TYPES.iter().filter(|entry| entry.is_weight()).map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}
