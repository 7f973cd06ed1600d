//! The memory that reading one input may take, enforced by the allocator of the target.
//!
//! The fuzzer's own limit is on the whole process, looked at once a second: an allocation that is made and
//! freed between two looks, or never touched, would go unseen.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that are allocated.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Bytes that may be.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Runs `check`; aborts where it holds more than `base` bytes and 64 for each of the `len` of its input.
///
/// 64 is what the smallest thing of a file becomes at most in memory: a tensor of 33 bytes in a GGUF file has
/// a name, a shape and places in two sorted lists.
pub fn within(base: usize, len: usize, check: impl FnOnce()) {
    let budget = base + 64 * len;
    LIMIT.store(LIVE.load(Ordering::Relaxed) + budget, Ordering::Relaxed);
    check();
    LIMIT.store(usize::MAX, Ordering::Relaxed);
}

fn taken(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    if live > LIMIT.load(Ordering::Relaxed) {
        let limit = LIMIT.swap(usize::MAX, Ordering::Relaxed);
        eprintln!("over budget: {bytes} bytes more are {live}, {limit} are allowed");
        std::process::abort();
    }
}

// SAFETY: every call is handed on to the system's allocator; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        taken(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}
