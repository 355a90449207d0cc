//! Generates the message types and their codec from the tables in `schema/`.
//!
//! The tables are data in a notation of our own: a message per block, a field per line, the fields of a struct indented
//! below it. What comes out is one module per message. Every assumption about the tables that the generated code relies
//! on (ranges, tags only in flexible versions, no element without bytes) is asserted here, so a bad table fails the build.

#[path = "build/emit.rs"]
mod emit;
#[path = "build/schema.rs"]
mod schema;

use std::fs;
use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let json = std::env::var_os("CARGO_FEATURE_JSON").is_some();
    for path in ["build.rs", "build", "schema"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let read = |name: &str| fs::read_to_string(root.join("schema").join(name)).expect("the schema table is readable");
    let write = |name: &str, text: String| fs::write(out.join(name), text).expect("OUT_DIR is writable");

    let messages = schema::parse_messages(&read("messages.txt"));
    let records = schema::parse_messages(&read("coordinator-records.txt"));
    let apis = schema::parse_apis(&read("apis.txt"));
    write("api_key.rs", emit::api_keys(&apis, &messages));
    write("messages.rs", emit::messages(&messages, json));
    write("records.rs", emit::messages(&records, json));
}
