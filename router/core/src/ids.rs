//! Names for the numbers that pass through the core.

/// A token id of the model's vocabulary. Plain `u32`, so that a prompt is a `&[u32]` that compares with `memcmp`.
pub type TokenId = u32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $inner);
    };
}

id!(
    /// A sequence accepted by one scheduler; never reused.
    SequenceId(u64)
);
id!(
    /// A block of the KV pool, `0..num_blocks`.
    BlockId(u32)
);
id!(
    /// A row slot of the shard's mirror, `0..max_rows`.
    Slot(u32)
);
id!(
    /// A step; counts up from 1 within one life of a scheduler.
    StepId(u64)
);
id!(
    /// Logical time, in microseconds since an origin that the caller chose. The core never reads a clock.
    Tick(u64)
);
