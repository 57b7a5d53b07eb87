//! Any text as a task file and its rows. The stored corpus is replayed by the tests of `fledgling-eval`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fledgling_eval::testing::exercise_task(bytes));
