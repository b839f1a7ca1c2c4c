//! Runs a role, or a client command, on a tokio runtime.

use std::future::Future;

use anyhow::{Context, Result};

use crate::End;

/// Threads of the asynchronous runtime. The model has its own threads; these only handle sockets, and a local cluster has
/// several such processes on one machine.
const MOST_THREADS: usize = 4;

/// Runs a command until it ends.
pub(crate) fn block_on(command: impl Future<Output = Result<End>>) -> Result<End> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(command)
}

/// Runs a worker until the process is asked to stop.
pub(crate) fn serve(worker: impl Future<Output = Result<()>>) -> Result<End> {
    block_on(async { worker.await.map(|()| End::Done) })
}
