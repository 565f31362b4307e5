//! The threads that the kernels share.

/// A fixed set of worker threads; the calling thread waits while they work.
#[derive(Debug)]
pub struct Pool(Option<rayon::ThreadPool>);

/// The threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {num_threads} kernel threads: {source}")]
pub struct PoolError {
    num_threads: usize,
    source: rayon::ThreadPoolBuildError,
}

impl Pool {
    /// A pool of `num_threads` threads; with 1 (or 0) the caller's own thread does the work.
    ///
    /// # Errors
    /// If the system refuses the threads.
    pub fn new(num_threads: usize) -> Result<Self, PoolError> {
        if num_threads <= 1 {
            return Ok(Self(None));
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(num_threads)
            .thread_name(|index| format!("anaphora-kernel-{index}"))
            .build()
            .map(|pool| Self(Some(pool)))
            .map_err(|source| PoolError { num_threads, source })
    }

    /// How many threads work at once.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.0.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// `work(i)` for each `i` in `0..len`, in any order on any thread; the results in order.
    pub fn map<T: Send>(&self, len: usize, work: impl Fn(usize) -> T + Send + Sync) -> Vec<T> {
        use rayon::prelude::*;
        match &self.0 {
            Some(pool) if len > 1 => {
                pool.install(|| (0..len).into_par_iter().with_max_len(1).map(work).collect())
            }
            _ => (0..len).map(work).collect(),
        }
    }
}
