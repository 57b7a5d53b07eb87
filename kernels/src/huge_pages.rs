//! The system's allocator with huge pages for what is large.

use std::alloc::{GlobalAlloc, Layout, System};

/// Asks Linux for huge pages (2 MiB) where a block has several: the tensors of a step are allocated anew each time, and with
/// pages of 4 KiB the kernel's faults take a tenth of it. Elsewhere it is [`System`].
#[derive(Debug, Clone, Copy)]
pub struct HugePages;

/// Smaller blocks stay in pages of 4 KiB.
const LARGE: usize = 4 << 20;

// SAFETY: every block comes from `System` and goes back there; advice does not change its content.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` wants.
        advised(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        advised(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[cfg(target_os = "linux")]
fn advised(block: *mut u8, len: usize) -> *mut u8 {
    const PAGE: usize = 1 << 16; // a multiple of every Linux page
    if len >= LARGE && !block.is_null() {
        let start = block.map_addr(|address| address.next_multiple_of(PAGE));
        let len = (len - (start.addr() - block.addr())) / PAGE * PAGE;
        // SAFETY: the range lies within the block. When the kernel refuses, nothing has changed.
        unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) };
    }
    block
}

#[cfg(not(target_os = "linux"))]
fn advised(block: *mut u8, _len: usize) -> *mut u8 {
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_every_size_hold_what_is_written() {
        for len in [1, 4096, LARGE - 1, LARGE, LARGE + 12_345, 5 * LARGE] {
            for align in [1, 64, 1 << 16] {
                let layout = Layout::from_size_align(len, align).unwrap();
                // SAFETY: the layout has a size, and the block goes back with the same one.
                unsafe {
                    let block = HugePages.alloc_zeroed(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align));
                    let bytes = std::slice::from_raw_parts_mut(block, len);
                    assert!(bytes.iter().all(|&byte| byte == 0));
                    bytes.fill(7);
                    let grown = HugePages.realloc(block, layout, 2 * len);
                    assert!(
                        std::slice::from_raw_parts(grown, len)
                            .iter()
                            .all(|&byte| byte == 7)
                    );
                    let layout = Layout::from_size_align(2 * len, align).unwrap();
                    HugePages.dealloc(grown, layout);
                }
            }
        }
    }
}
