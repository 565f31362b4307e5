//! Generated types of the step protocol, and the descriptor set that they come from.
//!
//! Nothing generated is kept in git: `build.rs` compiles `shard.proto` into `OUT_DIR`, and Python builds its
//! message classes from the same bytes, [`DESCRIPTORS`], so that the two sides cannot drift apart.
//! Only `router/service/src/shard/grpc.rs` and `server/anaphora/wire.py` may see these types.

/// The serialised `google.protobuf.FileDescriptorSet` of every `.proto` file.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

/// `anaphora.shard.v1`: what a router tells a shard to compute, step by step.
#[allow(missing_docs, unreachable_pub, reason = "generated code")]
#[allow(
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod shard {
    tonic::include_proto!("anaphora.shard.v1");
}
