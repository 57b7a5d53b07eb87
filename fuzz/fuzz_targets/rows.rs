//! Any bytes as a file of documents. The stored corpus is replayed by the tests of `fledgling-data`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    // The parquet crate panics on some broken files. That is caught, but libFuzzer's hook ends the process before; without
    // the hook only panics that nobody catches do.
    init: drop(std::panic::take_hook()),
    |bytes: &[u8]| fledgling_data::collect::testing::exercise_rows(bytes)
);
