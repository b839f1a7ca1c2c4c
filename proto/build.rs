//! Generates the wire types with protox, so that no protobuf compiler has to be installed, and keeps the descriptors for
//! reflection.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["offshoot/v1/worker.proto", "offshoot/v1/generation.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::CountingCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
