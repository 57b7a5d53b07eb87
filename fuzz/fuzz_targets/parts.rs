//! Any files as the parts of a model: an error or a model, never a panic. The stored corpus is replayed by core's tests.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fledgling_core::testing::exercise_parts(bytes));
