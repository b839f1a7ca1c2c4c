//! Generates the wire types with protox, so that no protobuf compiler has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["offshoot/v1/worker.proto", "offshoot/v1/generation.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::CountingCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
