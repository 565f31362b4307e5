//! What model files say of themselves, checked before anything is spawned.
//!
//! A model is a GGUF file, or a directory as Hugging Face lays it out: `config.json` and safetensors. This crate reads
//! *heads* only: metadata, tensor tables, configuration. It never maps or reads a weight, so it answers in milliseconds
//! for a model of any size, and a truncated, corrupt, missing or mis-shaped file becomes one [`ModelError`] whose text
//! is the whole message a user needs.
#![forbid(unsafe_code)]

mod config;
mod error;
mod expected;
mod fp8;
pub mod gguf;
mod safetensors;
mod verify;

pub use config::{Architecture, ModelConfig, RopeScaling};
pub use error::ModelError;
pub use expected::{ExpectedTensor, Naming};
pub use fp8::Fp8Activations;
pub use gguf::Gguf;
pub use safetensors::{Safetensors, SafetensorsTensor};
pub use verify::{LoadFormat, ModelSummary, verify};
