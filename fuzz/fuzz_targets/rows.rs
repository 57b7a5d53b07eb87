//! Any bytes as a file of documents. The stored corpus is replayed by the tests of `fledgling-data`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fledgling_data::collect::testing::exercise_rows(bytes));
