//! The threads that the kernels share: fork-join with a latency of about a microsecond.
//!
//! A decoding step is some hundred kernels of ten to a hundred microseconds, so what counts is how soon the other threads
//! begin and how soon the caller goes on. The caller takes part; indices are handed out one by one; a thread that has not
//! begun when the indices run out is not waited for, which matters where other processes want the same cores. Between jobs
//! a thread spins for [`SPIN`], then sleeps.

use std::{
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{JoinHandle, Thread},
    time::{Duration, Instant},
};

/// How long a thread without work watches for more: longer than the gaps between kernels, shorter than anyone would notice.
const SPIN: Duration = Duration::from_micros(50);
/// Looks at the job between two looks at the clock.
const SPINS_PER_LOOK: usize = 64;

/// A fixed set of threads, the caller's among them. One job at a time: a second caller meanwhile works alone, and so does
/// a job started inside a job.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    caller: Mutex<()>,
}

/// The threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {num_threads} kernel threads: {source}")]
pub struct PoolError {
    num_threads: usize,
    source: std::io::Error,
}

#[derive(Debug)]
struct Worker {
    thread: Thread,
    sleeps: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// `work(i)` for `i` in `0..len`.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    len: usize,
}

/// A job's number, whether threads may still join it, and how many have: `number << 17 | open << 16 | joined`.
type State = usize;
const OPEN: State = 1 << 16;
const JOINED: State = OPEN - 1;
const NUMBER: State = 1 << 17;

struct Shared {
    state: AtomicUsize,
    /// Written by the caller while the state is closed with nobody joined, read by those who have joined.
    job: UnsafeCell<Option<Job>>,
    /// The next index to be handed out.
    next: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

#[expect(unsafe_code, reason = "a job borrows from its caller, who outlives it")]
// SAFETY: `job` is guarded by `state`, as said there; the pointer in it is to a `Sync` closure.
unsafe impl Sync for Shared {}
#[expect(unsafe_code, reason = "a job borrows from its caller, who outlives it")]
// SAFETY: as above.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool of `num_threads` threads, the caller's included; with 1 (or 0) the caller works alone.
    ///
    /// # Errors
    /// If the system refuses the threads.
    pub fn new(num_threads: usize) -> Result<Self, PoolError> {
        let shared = Arc::new(Shared {
            state: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::new(), caller: Mutex::new(()) };
        for index in 1..num_threads.min(JOINED) {
            let (shared, sleeps) = (Arc::clone(&pool.shared), Arc::new(AtomicBool::new(false)));
            let its_sleeps = Arc::clone(&sleeps);
            let handle = std::thread::Builder::new()
                .name(format!("anaphora-kernel-{index}"))
                .spawn(move || shared.serve(&its_sleeps))
                .map_err(|source| PoolError { num_threads, source })?;
            pool.workers.push(Worker { thread: handle.thread().clone(), sleeps, handle: Some(handle) });
        }
        Ok(pool)
    }

    /// How many threads work at once.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// `work(i)` for each `i` in `0..len`, in any order on any thread; returns when all are done. Allocates nothing.
    ///
    /// A panic in `work` is passed on; other indices may then be left undone.
    pub fn for_each(&self, len: usize, work: impl Fn(usize) + Sync) {
        let caller = match self.caller.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(error)) => Some(PoisonError::into_inner(error)),
            Err(TryLockError::WouldBlock) => None,
        };
        if caller.is_none() || len <= 1 || self.workers.is_empty() {
            (0..len).for_each(work);
            return;
        }
        self.shared.open(&work, len);
        for worker in self.workers.iter().take(len - 1) {
            if worker.sleeps.swap(false, Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        let result = catch_unwind(AssertUnwindSafe(|| self.shared.take_indices(&work, len)));
        self.shared.close();
        let others_panicked = self.shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        assert!(!others_panicked, "a kernel thread panicked; its message stands above. This is a bug.");
    }

    /// As [`Pool::for_each`]; the results in order.
    pub fn map<T: Send>(&self, len: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let results: Vec<Mutex<Option<T>>> = (0..len).map(|_| Mutex::new(None)).collect();
        self.for_each(len, |index| {
            let result = work(index);
            *results[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        });
        let taken = |slot: Mutex<Option<T>>| slot.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.into_iter().map(|slot| taken(slot).expect("every index has run. This is a bug.")).collect()
    }

    /// `work(i, chunk)` for each chunk of `chunk_len` elements of `data` (the last may be shorter).
    pub fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        chunk_len: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let (len, data) = (data.len(), SharedMut::new(data));
        self.for_each(len.div_ceil(chunk_len.max(1)), |index| {
            let begin = index * chunk_len;
            #[expect(
                unsafe_code,
                reason = "chunks do not overlap, which the borrow checker cannot see across threads"
            )]
            // SAFETY: within `data`, which is borrowed for the whole call; each index, and so each chunk, is taken once.
            let chunk =
                unsafe { std::slice::from_raw_parts_mut(data.get().add(begin), chunk_len.min(len - begin)) };
            work(index, chunk);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            // A thread's panics were passed on by `for_each`.
            let _ = worker.handle.take().map(JoinHandle::join);
        }
    }
}

impl Shared {
    fn open(&self, work: &(dyn Fn(usize) + Sync), len: usize) {
        #[expect(unsafe_code, reason = "a job borrows from its caller, who outlives it")]
        // SAFETY: only the lifetime changes. `close` returns when no thread is in the job, and the caller still has `work`
        // then. The cell is written while the state is closed and nobody has joined, so nobody reads it.
        unsafe {
            let work = std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work);
            *self.job.get() = Some(Job { work, len });
        }
        self.next.store(0, Ordering::Relaxed);
        let number = self.state.load(Ordering::Relaxed) & !(OPEN | JOINED);
        self.state.store(number.wrapping_add(NUMBER) | OPEN, Ordering::SeqCst);
    }

    /// Lets nobody join any more, and waits for those who have.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0usize;
        while self.state.load(Ordering::Acquire) & JOINED != 0 {
            spins += 1;
            // After some microseconds the other thread is probably not running: it may need this very core.
            if spins.is_multiple_of(1024) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    fn take_indices(&self, work: &(dyn Fn(usize) + Sync), len: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= len {
                return;
            }
            work(index);
        }
    }

    /// What a thread does all its life.
    fn serve(&self, sleeps: &AtomicBool) {
        let mut last_number = 0;
        while let Some(number) = self.await_job(last_number, sleeps) {
            last_number = number;
            self.join(number);
        }
    }

    /// The number of a job after `last_number`; none when it is time to stop.
    fn await_job(&self, last_number: State, sleeps: &AtomicBool) -> Option<State> {
        let news = || {
            let state = self.state.load(Ordering::SeqCst);
            let number = state & !(OPEN | JOINED);
            (number != last_number && state & OPEN != 0).then_some(number)
        };
        loop {
            let began = Instant::now();
            while began.elapsed() < SPIN {
                for _ in 0..SPINS_PER_LOOK {
                    if let Some(number) = news() {
                        return Some(number);
                    }
                    std::hint::spin_loop();
                }
            }
            sleeps.store(true, Ordering::SeqCst);
            // Looked at once more after saying so: whoever opens a job from here on sees that this thread sleeps.
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if news().is_none() {
                std::thread::park();
            }
            sleeps.store(false, Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
        }
    }

    /// Takes part in job `number`, unless it is over.
    fn join(&self, number: State) {
        let joins = |state: State| (state & !JOINED == number | OPEN).then_some(state + 1);
        if self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, joins).is_err() {
            return;
        }
        #[expect(unsafe_code, reason = "a job borrows from its caller, who outlives it")]
        // SAFETY: this thread has joined, so the caller waits in `close` until it leaves, and neither the cell nor what the
        // job borrows changes before that.
        let (work, len) = unsafe {
            let job = (*self.job.get()).expect("an open state has a job. This is a bug.");
            (&*job.work, job.len)
        };
        if catch_unwind(AssertUnwindSafe(|| self.take_indices(work, len))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        self.state.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Memory of which the threads of a job write parts that do not overlap.
#[derive(Debug)]
pub(crate) struct SharedMut<T>(*mut T);

#[expect(
    unsafe_code,
    reason = "the parts do not overlap, which the borrow checker cannot see across threads"
)]
// SAFETY: whoever writes through the pointer says why no other thread does at that place.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr())
    }

    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_once_whatever_the_pool() {
        for num_threads in 0..5 {
            let pool = Pool::new(num_threads).expect("threads");
            for round in 0..2000usize {
                let len = round % 37;
                let counts: Vec<AtomicUsize> = (0..len).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(len, |index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{num_threads} {len}");
            }
        }
    }

    #[test]
    fn sleepers_wake() {
        let pool = Pool::new(2).expect("threads");
        for _ in 0..3 {
            std::thread::sleep(20 * SPIN);
            let both = std::sync::Barrier::new(2);
            pool.for_each(2, |_| {
                both.wait();
            });
        }
    }

    #[test]
    fn results_and_chunks_are_in_order() {
        let pool = Pool::new(3).expect("threads");
        assert_eq!(pool.map(100, |index| index * index), (0..100).map(|i| i * i).collect::<Vec<_>>());
        let mut data = [0usize; 103];
        pool.for_each_chunk(&mut data, 10, |index, chunk| chunk.fill(index));
        assert!(data.iter().enumerate().all(|(i, &x)| x == i / 10));
    }

    #[test]
    fn jobs_inside_jobs_and_beside_jobs_are_done() {
        let pool = Pool::new(3).expect("threads");
        let count = AtomicUsize::new(0);
        let add = |_| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| pool.for_each(10, |_| pool.for_each(10, add)));
            }
        });
        assert_eq!(count.into_inner(), 200);
    }

    #[test]
    fn a_panic_is_passed_on_and_the_pool_goes_on() {
        let pool = Pool::new(3).expect("threads");
        for at in 0..8 {
            let panics = || pool.for_each(8, |index| assert_ne!(index, at));
            assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
            assert_eq!(pool.map(5, |index| index), [0, 1, 2, 3, 4]);
        }
    }
}
