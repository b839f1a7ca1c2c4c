//! What the processes use while nothing runs, and whether that is flat.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::admin::{self, Page};
use crate::faults::rig::{Instance, Rig, Role};
use crate::usage::{self, Usage};
use crate::wait::{met, until};

/// How long it may take until what clients and faults have left behind is gone. Longer than the time after which a connection
/// of which nothing is heard is closed (30 s).
const QUIET_LIMIT: Duration = Duration::from_secs(90);
/// After which threads of the pool for blocking work end that have nothing to do.
const THREADS_END: Duration = Duration::from_secs(12);

/// What one process uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Used {
    /// Resident memory in MiB.
    pub resident: f64,
    /// The most it ever was.
    pub peak: f64,
    /// Open files and connections.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl From<Usage> for Used {
    fn from(usage: Usage) -> Self {
        Used {
            resident: usage.resident,
            peak: usage.peak,
            descriptors: usage.descriptors,
            threads: usage.threads,
        }
    }
}

/// One look at a rig in which nothing runs.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// By what a process is called.
    pub used: BTreeMap<String, Used>,
    /// Tokens and target steps of the first coordinator so far.
    pub tokens: f64,
    /// See `tokens`.
    pub steps: f64,
}

/// What people call a process.
#[must_use]
pub fn name(of: Instance) -> String {
    format!("{} {}", of.role, of.index)
}

/// The gauges of what requests hold, by role.
fn held(role: Role) -> &'static [&'static str] {
    match role {
        Role::Coordinator => &[
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "offshoot_sessions",
        ],
        Role::Draft | Role::Qualifier | Role::Target => &[
            "offshoot_sessions",
            "offshoot_kv_pages_used",
            "offshoot_queue_depth",
        ],
    }
}

async fn page(rig: &Rig, of: Instance) -> anyhow::Result<Page> {
    let process = rig
        .process(of)
        .with_context(|| format!("{} does not run", name(of)))?;
    let admin = process.admin.context("processes have admin ports")?;
    spawn_blocking(move || admin::scrape(admin)).await?
}

/// What requests still hold; `None`: nothing.
async fn left(rig: &Rig) -> anyhow::Result<Option<String>> {
    for of in rig.instances() {
        let page = page(rig, of).await?;
        for gauge in held(of.role) {
            let series = match of.role {
                Role::Coordinator => (*gauge).to_owned(),
                role => format!("{gauge}{{role=\"{role}\"}}"),
            };
            let value = page.value(&series)?;
            if value != 0.0 {
                return Ok(Some(format!("{gauge} of {} is {value}", name(of))));
            }
        }
    }
    Ok(None)
}

fn usage(rig: &Rig, of: Instance) -> anyhow::Result<Used> {
    let process = rig
        .process(of)
        .with_context(|| format!("{} does not run", name(of)))?;
    let usage = usage::of(process.id()).context("the system does not tell what processes use")?;
    Ok(usage.into())
}

/// The limits of a process that rests, by role: the most that was seen of it when nothing had happened yet.
#[derive(Clone, Debug, Default)]
pub struct Base {
    /// Descriptors and threads by role.
    limits: BTreeMap<&'static str, (usize, usize)>,
}

impl Base {
    /// What processes have open after some undisturbed traffic.
    ///
    /// # Errors
    /// When requests still hold something, or a process does not answer.
    pub async fn new(rig: &Rig) -> anyhow::Result<Base> {
        let mut base = Base::default();
        base.quiet(rig).await?;
        sleep(THREADS_END).await;
        for of in rig.instances() {
            let used = usage(rig, of)?;
            let (descriptors, threads) = base.limits.entry(of.role.name()).or_default();
            *descriptors = used.descriptors.max(*descriptors);
            *threads = used.threads.max(*threads);
        }
        Ok(base)
    }

    /// Waits until requests hold nothing, and every process has as few descriptors and threads as at first.
    ///
    /// # Errors
    /// With what is left over.
    pub async fn quiet(&self, rig: &Rig) -> anyhow::Result<()> {
        let quiet = until(QUIET_LIMIT, async || {
            if let Some(left) = left(rig).await? {
                return Ok(Err(left));
            }
            for of in rig.instances() {
                let used = usage(rig, of)?;
                if let Some(&(descriptors, threads)) = self.limits.get(of.role.name())
                    && (used.descriptors > descriptors || used.threads > threads)
                {
                    return Ok(Err(format!(
                        "{} has {} descriptors and {} threads; at first it had {descriptors} and {threads}",
                        name(of),
                        used.descriptors,
                        used.threads
                    )));
                }
            }
            Ok(met(true, ""))
        });
        quiet.await.context("something is left over")
    }
}

/// Looks at every process.
///
/// # Errors
/// When one does not answer.
pub async fn look(rig: &Rig) -> anyhow::Result<Look> {
    let mut look = Look::default();
    for of in rig.instances() {
        look.used.insert(name(of), usage(rig, of)?);
    }
    let first = Instance {
        role: Role::Coordinator,
        index: 0,
    };
    let page = page(rig, first).await?;
    look.tokens = page.value("vllm:generation_tokens_total")?;
    look.steps = page.value("offshoot_target_steps_total")?;
    Ok(look)
}

/// Means over the second and the third third of a series, which begins with what is not counted.
#[must_use]
pub fn thirds(series: &[f64]) -> Option<(f64, f64)> {
    let third = series.len() / 3;
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    let (before, last) = series.split_at(series.len() - third);
    let (_, middle) = before.split_at(before.len() - third);
    (third > 0).then(|| (mean(middle), mean(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirds_are_the_last_two_of_a_series() {
        assert_eq!(thirds(&[9.0, 1.0, 2.0]), Some((1.0, 2.0)));
        assert_eq!(
            thirds(&[9.0, 9.0, 9.0, 1.0, 3.0, 5.0, 7.0]),
            Some((2.0, 6.0))
        );
        assert_eq!(thirds(&[1.0, 2.0]), None);
    }
}
