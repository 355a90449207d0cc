//! ottla
fn main() {}
