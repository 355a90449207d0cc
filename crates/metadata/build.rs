//! Generates the messages of `/proto` that this crate keeps to itself, without a system protoc.

use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../proto");
    let files = ["metadata.proto", "control.proto"].map(|name| root.join(name));
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let descriptors = protox::compile(&files, [&root]).expect("the proto files compile");
    prost_build::Config::new().compile_fds(descriptors).expect("message code is generated");
}
