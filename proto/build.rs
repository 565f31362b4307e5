//! Compiles `shard.proto` to one descriptor set, from which both languages take their types:
//! tonic/prost here, and the Python shard through [`DESCRIPTORS`](src/lib.rs).

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=shard.proto");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile(["shard.proto"], ["."])?;
    fs::write(out_dir.join("descriptors.binpb"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
