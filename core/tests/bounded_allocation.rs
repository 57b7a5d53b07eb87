//! A reader of foreign bytes must not allocate out of proportion to them: an allocator that counts watches it.

use fledgling_core::gguf::Header;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the counters are plain thread-local cells without a
// destructor, so they neither allocate nor outlive their thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.set(LIVE.get() + layout.size());
        PEAK.set(PEAK.get().max(LIVE.get()));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().saturating_sub(layout.size()));
        // SAFETY: `ptr` came out of `alloc` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes allocated at the peak of reading `bytes`, beyond what was there before.
fn peak_of_parsing(bytes: &[u8]) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    drop(Header::parse(bytes));
    PEAK.get() - before
}

/// A pair of the smallest size takes 13 bytes, and a key and a value in memory.
const LIMIT_PER_BYTE: usize = 16;

#[test]
fn a_hostile_header_allocates_in_proportion_to_its_size() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/gguf");
    let mut n_files = 0;
    for entry in std::fs::read_dir(dir).expect("the corpus is in the repository") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a file");
        let limit = LIMIT_PER_BYTE * bytes.len() + 1024;
        let peak = peak_of_parsing(&bytes);
        assert!(
            peak <= limit,
            "{}: {peak} bytes for {}",
            path.display(),
            bytes.len()
        );
        n_files += 1;
    }
    assert!(
        n_files >= 10,
        "the corpus in {dir} has only {n_files} files"
    );
}

#[test]
fn counts_without_the_bytes_behind_them_allocate_nothing() {
    for (n_tensors, n_pairs) in [
        (60_000_u64, 60_000_u64),
        (65_536, 0),
        (1 << 60, 0),
        (0, 1 << 60),
    ] {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_pairs.to_le_bytes());
        assert!(
            peak_of_parsing(&bytes) < 1024,
            "{n_tensors} tensors, {n_pairs} pairs"
        );
    }
    for type_id in [0_u32, 7, 8, 12] {
        for len in [1_u64 << 26, 1 << 32, 1 << 60] {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.extend(
                [
                    0_u64.to_le_bytes(),
                    1_u64.to_le_bytes(),
                    1_u64.to_le_bytes(),
                ]
                .concat(),
            );
            bytes.push(b'k');
            bytes.extend([9_u32.to_le_bytes(), type_id.to_le_bytes()].concat());
            bytes.extend(len.to_le_bytes());
            assert!(
                peak_of_parsing(&bytes) < 1024,
                "{len} elements of type {type_id}"
            );
        }
    }
}
