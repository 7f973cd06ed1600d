//! Worker threads, and a barrier that spins before it parks.
//!
//! `run(f)` calls `f(0)`, `f(1)`, ... once on each thread and returns when all are done. `for_each`,
//! `for_ranges` and `for_each_cut` cut the work into pieces. Each thread has its share of them, the same one whenever
//! the same work comes again, so that what it wrote last time is in its own cache; who has done their own takes what
//! is left of the others'. They end when the pieces are done: a worker that was not there, because something else
//! has its core, is not waited for, and finds the region closed. Who computes what is therefore chance in the end;
//! kernels see to it that the result is not.
//!
//! A cache line that two threads write goes back and forth between their cores, which takes 100 to 500 ns each time.
//! So what each thread writes lies in lines of its own.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Rounds of spinning before a waiting thread sleeps: some tens of microseconds, longer than the gap
/// between two parallel regions of a step, shorter than anything a person notices.
const SPINS: u32 = 20_000;

/// Pieces for each thread: what a slow core can hold up is a piece.
pub(crate) const PIECES: usize = 4;

type Job = *const (dyn Fn(usize) + Sync);

/// A cache line for itself; two, as processors fetch them in pairs.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    start: Apart<Start>,
    /// Workers that have entered the present region, where that is counted.
    entered: Apart<AtomicUsize>,
    /// What was taken of each thread's share: see [`Share`].
    shares: Box<[Apart<Share>]>,
    /// Workers that sleep, or are about to.
    sleepers: Apart<AtomicUsize>,
    sleep: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    quit: AtomicBool,
}

/// What a worker needs in order to begin: it comes in one line.
struct Start {
    /// Which region is the present one, whether workers may still enter it, and how many are inside: see
    /// [`Gate`]. A change of the region is the signal to start.
    gate: AtomicU64,
    /// What is done in the region, and whether those who enter are counted.
    job: UnsafeCell<Option<(Job, bool)>>,
}

/// How many pieces of one thread's share were taken, in the lower half; for which call of `for_each`, in the upper. So
/// that nobody has to reset it: what another call left behind counts as nothing.
#[derive(Default)]
struct Share(AtomicU64);

impl Share {
    /// The next piece of a share of `len`, if there is one.
    fn take(&self, call: u32, len: usize) -> Option<usize> {
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let taken = if (old >> 32) as u32 == call {
                old as u32
            } else {
                0
            };
            if taken as usize >= len {
                return None;
            }
            let new = u64::from(call) << 32 | u64::from(taken + 1);
            let order = Ordering::Relaxed;
            match self.0.compare_exchange_weak(old, new, order, order) {
                Ok(_) => return Some(taken as usize),
                Err(now) => old = now,
            }
        }
    }
}

/// A value of [`Start::gate`]: the number of the region in the upper half, then a bit that is set while it is
/// open, then the count of workers inside.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Gate(u64);

const OPEN: u64 = 1 << 31;

impl Gate {
    fn region(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn is_open(self) -> bool {
        self.0 & OPEN != 0
    }

    fn is_empty(self) -> bool {
        self.0 & (OPEN - 1) == 0
    }

    /// The next region, closed and empty.
    fn next(self) -> Gate {
        Gate(u64::from(self.region().wrapping_add(1)) << 32)
    }
}

// SAFETY: `job` is written only by the thread that holds `Pool::caller`, while the gate is closed and nobody is
// inside, and read only inside, after the release-acquire pair on `gate`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A fixed set of threads; the caller of [`Pool::run`] is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    caller: Mutex<()>,
    /// Calls of `for_each`.
    calls: AtomicU32,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; at least one.
    pub fn new(threads: usize) -> Pool {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            start: Apart(Start {
                gate: AtomicU64::new(0),
                job: UnsafeCell::new(None),
            }),
            entered: Apart(AtomicUsize::new(0)),
            shares: (0..threads).map(|_| Apart(Share::default())).collect(),
            sleepers: Apart(AtomicUsize::new(0)),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
            quit: AtomicBool::new(false),
        });
        let workers = (1..threads)
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
            calls: AtomicU32::new(0),
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
        self.region(self.workers.len(), f);
    }

    /// Calls `f` on this thread and on every worker that comes in time; at least `needed` of them do. Returns when
    /// all who came are done.
    fn region(&self, needed: usize, f: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return f(0);
        }
        let _one_caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        if needed > 0 {
            shared.entered.0.store(0, Ordering::Relaxed);
        }
        // SAFETY: the gate is closed and nobody is inside, so nobody reads the cell; the lifetime is erased, but
        // this function does not return before every worker that entered has finished with `f`.
        unsafe {
            let job = std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(f);
            *shared.start.0.job.get() = Some((job, needed > 0));
        }
        let gate = &shared.start.0.gate;
        let next = Gate(gate.load(Ordering::Relaxed)).next();
        gate.store(next.0 | OPEN, Ordering::SeqCst);
        shared.wake_sleepers();
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        if needed > 0 {
            spin_while(|| shared.entered.0.load(Ordering::Acquire) < needed);
        }
        gate.fetch_and(!OPEN, Ordering::AcqRel);
        spin_while(|| !Gate(gate.load(Ordering::Acquire)).is_empty());
        let theirs = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Calls `f` once with each of `0..count`. Each thread has its part of them, which it takes in ascending order, and
    /// then takes over from the others.
    pub fn for_each(&self, count: usize, f: &(dyn Fn(usize) + Sync)) {
        self.for_each_with(count, &|| (), &|(), idx| f(idx));
    }

    /// As `for_each`, with something that each thread makes first and keeps to the end.
    pub fn for_each_with<T>(
        &self,
        count: usize,
        make: &(dyn Fn() -> T + Sync),
        f: &(dyn Fn(&mut T, usize) + Sync),
    ) {
        let threads = self.threads();
        if threads == 1 || count <= 1 {
            let own = &mut make();
            return (0..count).for_each(|idx| f(own, idx));
        }
        let call = self.calls.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.region(0, &|thread| {
            let kept = &mut make();
            for owner in (thread..threads).chain(0..thread) {
                let own = part(&(0..count), owner, threads);
                while let Some(idx) = self.shared.shares[owner].0.take(call, own.len()) {
                    f(kept, own.start + idx);
                }
            }
        });
    }

    /// The item of `for_each` that a thread probably takes after `idx`: it has its part of the `count` items, unless
    /// others take over some of them.
    pub fn next_of(&self, idx: usize, count: usize) -> Option<usize> {
        let (_, own) = self.owner_of(idx, count)?;
        Some(idx + 1).filter(|next| own.contains(next))
    }

    /// The thread whose part of `0..count` has `idx`, and that part.
    fn owner_of(&self, idx: usize, count: usize) -> Option<(usize, Range<usize>)> {
        let threads = self.threads();
        let mut parts = (0..threads).map(|owner| (owner, part(&(0..count), owner, threads)));
        parts.find(|(_, part)| part.contains(&idx))
    }

    /// Cuts `0..len` into contiguous ranges with borders at multiples of `grain`, and calls `f` on each: some
    /// for each thread where there are enough grains, and no more than one where there are few.
    pub fn for_ranges(&self, len: usize, grain: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        self.for_ranges_with(len, grain, &|| (), &|(), range| f(range));
    }

    /// As `for_ranges`, with something that each thread makes first and keeps to the end.
    pub fn for_ranges_with<T>(
        &self,
        len: usize,
        grain: usize,
        make: &(dyn Fn() -> T + Sync),
        f: &(dyn Fn(&mut T, Range<usize>) + Sync),
    ) {
        let threads = self.threads();
        let grains = len.div_ceil(grain.max(1));
        if threads == 1 || grains <= 1 {
            if len > 0 {
                f(&mut make(), 0..len);
            }
            return;
        }
        let pieces = match grains >= PIECES * threads {
            true => PIECES * threads,
            false => grains.min(threads),
        };
        self.for_each_with(pieces, make, &|kept, idx| {
            let start = (grains * idx / pieces * grain).min(len);
            let end = (grains * (idx + 1) / pieces * grain).min(len);
            if start < end {
                f(kept, start..end);
            }
        });
    }

    /// As `for_each_with`, but the last item of each thread's part is cut into `pieces`, which others take over one by
    /// one: what a slow core can hold up at the end is a piece. `f` gets what the thread probably takes next, too.
    pub fn for_each_cut<T>(
        &self,
        count: usize,
        pieces: usize,
        make: &(dyn Fn() -> T + Sync),
        f: &(impl Fn(&mut T, Cut, Option<Cut>) + Sync),
    ) {
        let threads = self.threads();
        let pieces = match threads > 1 && count >= threads {
            true => pieces.max(1),
            false => 1,
        };
        // Each thread's part is longer by as many, so its items are the same as uncut.
        let all = count + threads * (pieces - 1);
        let cut = |idx: usize| {
            let (owner, own) = self.owner_of(idx, all).expect("an item is in a part");
            let items = part(&(0..count), owner, threads);
            let nth = idx - own.start;
            if nth + 1 < items.len() {
                Cut {
                    item: items.start + nth,
                    piece: 0,
                    pieces: 1,
                }
            } else {
                Cut {
                    item: items.end - 1,
                    piece: nth + 1 - items.len(),
                    pieces,
                }
            }
        };
        self.for_each_with(all, make, &|kept, idx| {
            f(kept, cut(idx), self.next_of(idx, all).map(cut));
        });
    }
}

/// What [`Pool::for_each_cut`] hands out: an item, or a piece of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The item.
    pub item: usize,
    piece: usize,
    pieces: usize,
}

impl Cut {
    /// The part of `range` that belongs to it.
    pub fn of(self, range: &Range<usize>) -> Range<usize> {
        part(range, self.piece, self.pieces)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        let gate = &self.shared.start.0.gate;
        let next = Gate(gate.load(Ordering::Relaxed)).next();
        gate.store(next.0, Ordering::SeqCst);
        self.shared.wake_sleepers();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn wake_sleepers(&self) {
        // A worker counts itself and then looks at the gate; this looks at the count after the gate has changed.
        if self.sleepers.0.load(Ordering::SeqCst) > 0 {
            let _awake_or_waiting = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }

    /// Returns the gate at another region than `seen`: spins for a while, then sleeps.
    fn wait_for_next(&self, seen: u32) -> Gate {
        let gate = || Gate(self.start.0.gate.load(Ordering::SeqCst));
        for _ in 0..SPINS {
            let gate = gate();
            if gate.region() != seen {
                return gate;
            }
            std::hint::spin_loop();
        }
        let mut sleep = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.0.fetch_add(1, Ordering::SeqCst);
        let next = loop {
            let gate = gate();
            if gate.region() != seen {
                break gate;
            }
            sleep = self
                .wake
                .wait(sleep)
                .unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.0.fetch_sub(1, Ordering::SeqCst);
        next
    }

    /// Enters the region of `gate`; false when it is closed, or over.
    fn enter(&self, mut gate: Gate) -> bool {
        let region = gate.region();
        while gate.is_open() && gate.region() == region {
            let (old, new) = (gate.0, gate.0 + 1);
            let (done, failed) = (Ordering::AcqRel, Ordering::Acquire);
            match (self.start.0.gate).compare_exchange_weak(old, new, done, failed) {
                Ok(_) => return true,
                Err(now) => gate = Gate(now),
            }
        }
        false
    }
}

fn work(shared: &Shared, idx: usize) {
    let mut seen = 0;
    loop {
        let gate = shared.wait_for_next(seen);
        seen = gate.region();
        if shared.quit.load(Ordering::SeqCst) {
            return;
        }
        if !shared.enter(gate) {
            continue;
        }
        // SAFETY: this worker is inside, so the job has been written and its caller waits.
        let (job, is_counted) = unsafe { (*shared.start.0.job.get()).expect("a region has a job") };
        if is_counted {
            shared.entered.0.fetch_add(1, Ordering::Release);
        }
        // SAFETY: as above; the closure lives until nobody is inside.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(idx) })) {
            *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        shared.start.0.gate.fetch_sub(1, Ordering::Release);
    }
}

fn spin_while(waits: impl Fn() -> bool) {
    let mut spins = 0;
    while waits() {
        spins += 1;
        if spins < SPINS {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// Part `idx` of `count` parts of a range that differ in length by at most one.
#[inline(always)]
pub(crate) fn part(range: &Range<usize>, idx: usize, count: usize) -> Range<usize> {
    let len = range.len();
    range.start + len * idx / count..range.start + len * (idx + 1) / count
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
    fn regions_without_work_for_workers_end_without_them() {
        // Many short regions, so that workers come before, during and after each.
        let pool = Pool::new(4);
        let sum = AtomicUsize::new(0);
        for round in 0..20_000 {
            let count = round % 5;
            pool.for_each(count, &|idx| {
                sum.fetch_add(idx + 1, Ordering::Relaxed);
            });
            let want = count * (count + 1) / 2;
            assert_eq!(sum.swap(0, Ordering::Relaxed), want, "round {round}");
        }
        pool.run(&|_| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4);
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
    fn items_are_whole_but_for_the_last_of_each_thread() {
        for (count, threads, pieces) in [(0, 2, 3), (1, 1, 4), (1, 3, 4), (3, 3, 4), (101, 2, 5)] {
            let columns = 0..10;
            let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let (cut, last) = (AtomicUsize::new(0), AtomicUsize::new(0));
            Pool::new(threads).for_each_cut(count, pieces, &|| (), &|(), own, next| {
                seen[own.item].fetch_add(own.of(&columns).len(), Ordering::Relaxed);
                cut.fetch_add(usize::from(own.of(&columns) != columns), Ordering::Relaxed);
                match next {
                    Some(next) if next.item == own.item => {
                        assert_eq!(next.of(&columns).start, own.of(&columns).end);
                    }
                    Some(next) => {
                        assert_eq!((next.item, next.of(&columns).start), (own.item + 1, 0))
                    }
                    None => _ = last.fetch_add(1, Ordering::Relaxed),
                }
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 10));
            let is_cut = threads > 1 && count >= threads;
            assert_eq!(cut.into_inner(), if is_cut { threads * pieces } else { 0 });
            // One at the end of each thread's part.
            assert_eq!(last.into_inner(), threads.min(count));
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
