//! Any text to ids and back, and any bytes as a `tokenizer.json`. The stored corpus is replayed by core's tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fledgling_core::testing::exercise_tokenizer(bytes));
