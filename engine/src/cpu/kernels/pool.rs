//! A few threads that run one kernel at a time.
//!
//! A step has some forty parallel regions of ten microseconds to a millisecond, so waking has to be cheap: workers
//! spin for a moment after a region before they sleep, and a worker that is still asleep when a region ends is
//! never waited for. A pool of one thread has no workers and touches no atomic.
#![expect(
    unsafe_code,
    reason = "a region's closure is borrowed for the region and handed to threads that outlive it"
)]

use std::cell::UnsafeCell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// A region is open: workers may enter it.
const OPEN: u64 = 1 << 32;
/// The low bits count the workers inside.
const INSIDE: u64 = OPEN - 1;
/// The bits above [`OPEN`] number the regions.
const NEXT_REGION: u64 = OPEN << 1;
/// How often a worker looks for the next region before it sleeps: some tens of microseconds.
const SPINS: u32 = 4_000;

/// The closure of a region, its lifetime erased: valid while the gate is open or a worker is inside.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Shared {
    /// Region number, open bit and number of workers inside.
    gate: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while the gate is closed and empty, and read only by workers inside an open gate.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only followed while the closure it points to is borrowed by `Pool::run`.
unsafe impl Send for Shared {}

struct Worker {
    asleep: Arc<AtomicBool>,
    handle: JoinHandle<()>,
}

/// Threads that share the tasks of one parallel region at a time with the calling thread.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// One region at a time.
    running: Mutex<()>,
}

impl Pool {
    /// A pool in which `threads` threads work, the calling one included.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn new(threads: NonZeroUsize) -> std::io::Result<Pool> {
        let mut pool = Pool {
            shared: Arc::new(Shared {
                gate: AtomicU64::new(0),
                job: UnsafeCell::new(None),
                next: AtomicUsize::new(0),
                panicked: AtomicBool::new(false),
                stop: AtomicBool::new(false),
            }),
            workers: Vec::new(),
            running: Mutex::new(()),
        };
        for i in 1..threads.get() {
            let shared = Arc::clone(&pool.shared);
            let asleep = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&asleep);
            let handle = thread::Builder::new()
                .name(format!("engine-{i}"))
                .spawn(move || shared.work(&flag))?;
            pool.workers.push(Worker { asleep, handle });
        }
        Ok(pool)
    }

    /// A pool without workers.
    #[must_use]
    pub fn single() -> Pool {
        Pool::new(NonZeroUsize::MIN).expect("a pool of one spawns no thread")
    }

    /// Threads that take part in a region.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` once for every `i < tasks`, on any thread, and returns when all have ended.
    ///
    /// # Panics
    /// When a task panics, after all others have ended.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || tasks <= 1 {
            for i in 0..tasks {
                task(i);
            }
            return;
        }
        let _one_region = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased. The gate below is closed and empty again before this call returns
        // or unwinds, so nobody follows the pointer afterwards.
        let run = unsafe {
            core::mem::transmute::<
                *const (dyn Fn(usize) + Sync + '_),
                *const (dyn Fn(usize) + Sync + 'static),
            >(task)
        };
        // SAFETY: the gate is closed and empty, so no worker reads the cell.
        unsafe { *shared.job.get() = Some(Job { run, tasks }) };
        shared.next.store(0, Ordering::Relaxed);
        shared.gate.fetch_add(NEXT_REGION | OPEN, Ordering::SeqCst);
        for worker in &self.workers {
            if worker.asleep.load(Ordering::SeqCst) && worker.asleep.swap(false, Ordering::SeqCst) {
                worker.handle.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(Job { run, tasks })));
        if own.is_err() {
            shared.next.store(tasks, Ordering::Relaxed);
        }
        shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0_u32;
        while shared.gate.load(Ordering::Acquire) & INSIDE != 0 {
            if spins < SPINS {
                spins += 1;
                core::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        if let Err(cause) = own {
            resume_unwind(cause);
        }
        assert!(
            !shared.panicked.swap(false, Ordering::Relaxed),
            "a kernel task panicked on a pool thread"
        );
    }
}

impl Shared {
    /// Runs tasks until none is left.
    fn take_tasks(&self, job: Job) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= job.tasks {
                return;
            }
            // SAFETY: the caller is inside the gate (or opened it), so the closure is still borrowed.
            unsafe { (*job.run)(i) };
        }
    }

    /// The life of a worker: wait for a region it has not seen, enter, work, leave.
    fn work(&self, asleep: &AtomicBool) {
        let mut seen = 0;
        let mut spins = 0;
        loop {
            let gate = self.gate.load(Ordering::Acquire);
            if gate & OPEN != 0 && gate / NEXT_REGION != seen {
                if self
                    .gate
                    .compare_exchange_weak(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed)
                    .is_err()
                {
                    continue;
                }
                seen = gate / NEXT_REGION;
                spins = 0;
                // SAFETY: inside the gate nobody writes the cell.
                if let Some(job) = unsafe { *self.job.get() }
                    && catch_unwind(AssertUnwindSafe(|| self.take_tasks(job))).is_err()
                {
                    self.panicked.store(true, Ordering::Relaxed);
                }
                self.gate.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if spins < SPINS {
                spins += 1;
                core::hint::spin_loop();
                continue;
            }
            // Announce the sleep first and look again: either the opener sees the flag or we see the open gate.
            asleep.store(true, Ordering::SeqCst);
            let gate = self.gate.load(Ordering::SeqCst);
            if (gate & OPEN == 0 || gate / NEXT_REGION == seen) && !self.stop.load(Ordering::SeqCst)
            {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            spins = 0;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.handle.thread().unpark();
            // A worker catches the panics of its tasks, so it ends normally; there is nobody to tell if not.
            let _ = worker.handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap();
            for tasks in [0, 1, 2, 3, 17, 100] {
                for _ in 0..50 {
                    let counts: Vec<AtomicUsize> =
                        (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(tasks, &|i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(NonZeroUsize::new(3).unwrap()).unwrap();
        for bad in 0..8 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, &|i| assert_ne!(i, bad, "on purpose"))
            }));
            assert!(caught.is_err());
        }
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }
}
