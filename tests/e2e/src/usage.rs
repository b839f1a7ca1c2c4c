//! What a process uses, as Linux tells it.

use std::time::Duration;

/// One look at a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Memory that is resident, and the most that ever was, in MiB.
    pub resident: f64,
    /// See `resident`.
    pub peak: f64,
    /// Time on processors so far, in steps of 10 ms.
    pub cpu: Duration,
    /// Open files and connections.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

/// What a process uses now; `None` where the system does not tell.
#[must_use]
pub fn of(pid: u32) -> Option<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = |name: &str| -> Option<u32> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let mib = |name: &str| Some(f64::from(number(name)?) / 1024.0);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program stands in parentheses and may contain anything; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks =
        |field: usize| -> Option<u64> { fields.split_whitespace().nth(field - 3)?.parse().ok() };
    Some(Usage {
        resident: mib("VmRSS:")?,
        peak: mib("VmHWM:")?,
        cpu: Duration::from_millis(10 * (ticks(14)? + ticks(15)?)),
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
        threads: number("Threads:")? as usize,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[test]
    fn work_and_memory_are_seen() {
        let Some(before) = of(std::process::id()) else {
            return;
        };
        let mut taken = vec![1_u8; 64 << 20];
        // Time of other tests in this process counts too, so there may be nothing left to do here.
        let worked = before.cpu + Duration::from_millis(50);
        while of(std::process::id()).unwrap().cpu < worked {
            taken
                .iter_mut()
                .for_each(|byte| *byte = byte.wrapping_mul(31));
            std::hint::black_box(&taken);
        }
        let after = of(std::process::id()).unwrap();
        std::hint::black_box(&taken);
        assert!(after.peak >= after.resident, "{after:?}");
        let _file = std::fs::File::open("/proc/self/stat").unwrap();
        let more = of(std::process::id()).unwrap();
        assert!(more.descriptors > 3 && more.threads >= 1, "{more:?}");
        assert!(
            after.resident > before.resident + 32.0,
            "{before:?} {after:?}"
        );
    }
}
