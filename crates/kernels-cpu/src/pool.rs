//! Worker threads, and a barrier that spins before it parks.
//!
//! `run(f)` calls `f(0)`, `f(1)`, ... once on each thread and returns when all are done. `for_each` and
//! `for_ranges` cut the work into pieces; whoever is free takes the next one, so that a core slowed down by
//! something else does not hold up the rest. Who computes what is therefore chance; kernels see to it that the
//! result is not.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Rounds of spinning before a waiting thread sleeps: some tens of microseconds, longer than the gap
/// between two parallel regions of a step, shorter than anything a person notices.
const SPINS: u32 = 20_000;

/// Pieces for each thread: what a slow core can hold up is a piece.
pub(crate) const PIECES: usize = 4;

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Counts parallel regions; a change is the signal to start.
    epoch: AtomicU64,
    /// Workers still busy with the present region.
    running: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    quit: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the thread that holds `Pool::caller`, while no worker runs
// (`running == 0`), and read only after the release-acquire pair on `epoch`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A fixed set of threads; the caller of [`Pool::run`] is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    caller: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; at least one.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            quit: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..threads.max(1))
            .map(|idx| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("dokja-{idx}"))
                    .spawn(move || work(&shared, idx))
                    .expect("the system refused to start a worker thread")
            })
            .collect();
        Pool {
            shared,
            workers,
            caller: Mutex::new(()),
        }
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(thread_idx)` once on every thread, and waits for all.
    ///
    /// # Panics
    /// Passes on a panic of `f`. Must not be called from inside `f`.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return f(0);
        }
        let _one_caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        shared.running.store(self.workers.len(), Ordering::Relaxed);
        // SAFETY: no worker runs, so nobody reads the cell; the lifetime is erased, but `run` does not
        // return before every worker has finished with `f`.
        unsafe {
            *shared.job.get() =
                Some(std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(f));
        }
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if *shared
            .sleepers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            > 0
        {
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        let mut spins = 0;
        while shared.running.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let theirs = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Calls `f` once with each of `0..count`, in ascending order, on whichever thread is free.
    pub fn for_each(&self, count: usize, f: &(dyn Fn(usize) + Sync)) {
        if self.threads() == 1 || count <= 1 {
            return (0..count).for_each(f);
        }
        let next = AtomicUsize::new(0);
        self.run(&|_| {
            loop {
                let idx = next.fetch_add(1, Ordering::Relaxed);
                if idx >= count {
                    break;
                }
                f(idx);
            }
        });
    }

    /// Cuts `0..len` into contiguous ranges with borders at multiples of `grain`, and calls `f` on each: some
    /// for each thread where there are enough grains, and no more than one where there are few.
    pub fn for_ranges(&self, len: usize, grain: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let threads = self.threads();
        let grains = len.div_ceil(grain.max(1));
        if threads == 1 || grains <= 1 {
            if len > 0 {
                f(0..len);
            }
            return;
        }
        let pieces = match grains >= PIECES * threads {
            true => PIECES * threads,
            false => grains.min(threads),
        };
        self.for_each(pieces, &|idx| {
            let start = (grains * idx / pieces * grain).min(len);
            let end = (grains * (idx + 1) / pieces * grain).min(len);
            if start < end {
                f(start..end);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        drop(self.shared.sleepers.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, idx: usize) {
    let mut seen = 0;
    loop {
        seen = wait_for_next(shared, seen);
        if shared.quit.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch changed, so `run` has written the job and waits for us.
        let job = unsafe { (*shared.job.get()).expect("a region has a job") };
        // SAFETY: as above; the closure lives until `running` reaches zero.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(idx) })) {
            *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// Returns the new epoch: spins for a while, then sleeps.
fn wait_for_next(shared: &Shared, seen: u64) -> u64 {
    for _ in 0..SPINS {
        let epoch = shared.epoch.load(Ordering::Acquire);
        if epoch != seen {
            return epoch;
        }
        std::hint::spin_loop();
    }
    let mut sleepers = shared
        .sleepers
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    *sleepers += 1;
    let epoch = loop {
        let epoch = shared.epoch.load(Ordering::SeqCst);
        if epoch != seen {
            break epoch;
        }
        sleepers = shared
            .wake
            .wait(sleepers)
            .unwrap_or_else(PoisonError::into_inner);
    };
    *sleepers -= 1;
    epoch
}

/// A pointer that threads may share, for outputs whose parts no two threads both write.
#[derive(Clone, Copy)]
pub struct SharedMut<T>(*mut T);

// SAFETY: `slice` is unsafe; its caller promises disjoint ranges.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// Shares `data` for the length of a parallel region.
    pub fn new(data: &mut [T]) -> SharedMut<T> {
        SharedMut(data.as_mut_ptr())
    }

    /// The part `range` of what was shared.
    ///
    /// # Safety
    /// `range` lies inside the slice given to `new`, which is still borrowed, and no other thread
    /// reads or writes it during the life of the result.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        // SAFETY: by the contract above.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }

    /// The same memory from element `start` on.
    #[inline(always)]
    pub fn offset(self, start: usize) -> SharedMut<T> {
        SharedMut(self.0.wrapping_add(start))
    }

    /// The first element.
    #[inline(always)]
    pub fn ptr(&self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_once_per_region() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for _ in 0..200 {
                let hits: Vec<_> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
                pool.run(&|idx| {
                    hits[idx].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn each_item_is_taken_once() {
        for (threads, count) in [(1, 5), (2, 0), (2, 1), (3, 100)] {
            let hits: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            Pool::new(threads).for_each(count, &|idx| {
                hits[idx].fetch_add(1, Ordering::Relaxed);
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn ranges_cover_each_item_once_at_grain_borders() {
        let pool = Pool::new(3);
        for len in [0, 1, 5, 16, 17, 1000] {
            let seen: Vec<_> = (0..len).map(|_| AtomicUsize::new(0)).collect();
            pool.for_ranges(len, 4, &|range| {
                assert_eq!(range.start % 4, 0);
                for i in range {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_in_a_worker_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(&|idx| assert_eq!(idx, 0))));
        assert!(caught.is_err());
        pool.run(&|_| {});
    }
}
