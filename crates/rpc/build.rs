//! Generates the gRPC code from `/proto` without a system protoc.

use std::path::PathBuf;

/// Every service of the internal planes.
const PROTOS: &[&str] =
    &["replication.proto", "broker.proto", "transactions.proto", "lag.proto", "raft.proto", "controller.proto"];

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../proto");
    let files: Vec<PathBuf> = PROTOS.iter().map(|name| root.join(name)).filter(|path| path.exists()).collect();
    println!("cargo:rerun-if-changed={}", root.display());
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, [&root]).expect("the proto files compile");
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors).expect("gRPC code is generated");
}
