//! Any text to ids and back. The stored corpus is replayed by core's tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fledgling_core::testing::exercise_tokenizer(bytes));
