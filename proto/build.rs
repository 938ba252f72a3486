//! Generates the protobuf types from every .proto file below `neuralfabric/`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut files: Vec<std::path::PathBuf> = Vec::new();
    for dir in ["neuralfabric/v1", "neuralfabric/internal/v1"] {
        println!("cargo:rerun-if-changed={dir}");
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "proto") {
                files.push(path);
            }
        }
    }
    files.sort();
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("neuralfabric.bin"))
        .bytes(".")
        .compile_protos(&files, &[".".into()])?;
    Ok(())
}
