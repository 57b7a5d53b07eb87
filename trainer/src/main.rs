//! The command `fledgling`.
fn main() {}
