//! Settings with a value for each role: `target=20,qualifier=7,draft=2`.

use std::num::NonZeroUsize;

use engine::DeviceName;
use speculation::duty::Role;
use worker::StepTimes;

/// One optional value for each role.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PerRole<T> {
    values: [Option<T>; 3],
}

impl<T> Default for PerRole<T> {
    fn default() -> Self {
        PerRole {
            values: [None, None, None],
        }
    }
}

impl<T> PerRole<T> {
    /// The value of a role, where it has one.
    pub(crate) fn get(&self, role: Role) -> Option<&T> {
        self.values[role as usize].as_ref()
    }
}

/// The longest a step may be padded to; anything longer is more likely a typing mistake.
const MOST_PACE_MS: f64 = 60_000.0;

/// Parses `target=20,qualifier=7,draft=0.5`: the minimum time of a step, in milliseconds.
pub(crate) fn pace(given: &str) -> Result<PerRole<f64>, String> {
    per_role(given, |value| match value.parse::<f64>() {
        Ok(ms) if ms > 0.0 && ms <= MOST_PACE_MS => Ok(ms),
        _ => Err(format!(
            "{value:?} is not a number of milliseconds above 0 and up to {MOST_PACE_MS}"
        )),
    })
}

/// Parses `target=1:20,64:40,draft=2`: step times by rows, in milliseconds. What has no role belongs to the role before.
pub(crate) fn step_ms(given: &str) -> Result<PerRole<StepTimes>, String> {
    let mut roles: Vec<String> = Vec::new();
    for item in given.split(',') {
        match roles.last_mut() {
            Some(before) if !item.contains('=') => {
                before.push(',');
                before.push_str(item);
            }
            _ => roles.push(item.to_owned()),
        }
    }
    let parse = |table: &str| {
        table
            .parse::<StepTimes>()
            .map_err(|error| error.to_string())
    };
    items(roles.iter().map(String::as_str), parse)
}

/// Parses `draft=cuda:0,target=cuda:1`, or `cuda:0` for every role: what models compute on.
pub(crate) fn devices(given: &str) -> Result<PerRole<DeviceName>, String> {
    all_or_per_role(given, str::parse)
}

/// Parses `target=2,draft=1`, or `2` for every role: threads of a step.
pub(crate) fn threads(given: &str) -> Result<PerRole<NonZeroUsize>, String> {
    let number = |value: &str| match value.parse::<NonZeroUsize>() {
        Ok(threads) if threads.get() <= 1024 => Ok(threads),
        _ => Err(format!(
            "{value:?} is not a number of threads from 1 to 1024"
        )),
    };
    all_or_per_role(given, number)
}

/// Parses `target=4096,draft=512`, or one number for every role: MiB of the key/value cache.
pub(crate) fn kv_mib(given: &str) -> Result<PerRole<u32>, String> {
    all_or_per_role(given, |value| match value.parse::<u32>() {
        Ok(mib) if mib > 0 => Ok(mib),
        _ => Err(format!("{value:?} is not a number of MiB from 1 on")),
    })
}

/// Parses `target=0.7,draft=0.2`, or one share for every role: of a GPU's memory.
pub(crate) fn gpu_memory_utilization(given: &str) -> Result<PerRole<f64>, String> {
    all_or_per_role(given, worker::model::share)
}

/// Parses `target=0,draft=1`: the CPU of each role's model thread.
pub(crate) fn pin(given: &str) -> Result<PerRole<usize>, String> {
    per_role(given, |value| match value.parse::<usize>() {
        Ok(cpu) if cpu < 65_536 => Ok(cpu),
        _ => Err(format!("{value:?} is not a CPU number")),
    })
}

fn all_or_per_role<T: Copy>(
    given: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<PerRole<T>, String> {
    if given.contains('=') {
        return per_role(given, parse);
    }
    let all = parse(given)?;
    Ok(PerRole {
        values: [Some(all); 3],
    })
}

fn per_role<T>(
    given: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<PerRole<T>, String> {
    items(given.split(','), parse)
}

fn items<'a, T>(
    given: impl Iterator<Item = &'a str>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<PerRole<T>, String> {
    let mut found = PerRole::default();
    for item in given {
        let Some((name, value)) = item.split_once('=') else {
            return Err(format!(
                "{item:?} has no role; write ROLE=VALUE, for example target=20,draft=2"
            ));
        };
        let Some(role) = Role::ALL
            .into_iter()
            .find(|role| role.name() == name.trim())
        else {
            return Err(format!(
                "{name:?} is not a role; roles are target, qualifier and draft"
            ));
        };
        let place = &mut found.values[role as usize];
        if place.is_some() {
            return Err(format!("{} is given twice", role.name()));
        }
        *place = Some(parse(value.trim())?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_gets_its_own() {
        let found = pace("target=20, qualifier=7,draft=0.5").unwrap();
        assert_eq!(found.get(Role::Target), Some(&20.0));
        assert_eq!(found.get(Role::Qualifier), Some(&7.0));
        assert_eq!(found.get(Role::Draft), Some(&0.5));
        assert_eq!(pace("draft=2").unwrap().get(Role::Target), None);
    }

    #[test]
    fn mistakes_are_explained() {
        for (bad, why) in [
            ("", "has no role"),
            ("20", "has no role"),
            ("judge=3", "not a role"),
            ("target=", "milliseconds"),
            ("target=-1", "milliseconds"),
            ("target=0", "milliseconds"),
            ("target=NaN", "milliseconds"),
            ("target=inf", "milliseconds"),
            ("target=1e9", "milliseconds"),
            ("target=1,target=2", "twice"),
            ("target=1,", "has no role"),
        ] {
            let error = pace(bad).unwrap_err();
            assert!(error.contains(why), "{bad:?} gave {error}");
        }
    }

    #[test]
    fn step_times_are_tables() {
        let found = step_ms("target=1:20,16:22,64:40,qualifier=7, draft=1:2,8:3").unwrap();
        let table = |role| found.get(role).map(ToString::to_string);
        assert_eq!(table(Role::Target).unwrap(), "1:20,16:22,64:40");
        assert_eq!(table(Role::Qualifier).unwrap(), "1:7");
        assert_eq!(table(Role::Draft).unwrap(), "1:2,8:3");
        for (bad, why) in [
            ("", "has no role"),
            ("1:20", "has no role"),
            ("target=1:20,7", "not ROWS:MS"),
            ("target=fast", "milliseconds"),
            ("judge=3", "not a role"),
            ("draft=1,target=2,draft=3", "twice"),
        ] {
            let error = step_ms(bad).unwrap_err();
            assert!(error.contains(why), "{bad:?} gave {error}");
        }
    }

    #[test]
    fn threads_are_for_all_or_for_each() {
        let one = NonZeroUsize::new(1).unwrap();
        let two = NonZeroUsize::new(2).unwrap();
        assert_eq!(threads("2").unwrap().get(Role::Draft), Some(&two));
        let found = threads("target=2,draft=1").unwrap();
        assert_eq!(
            (found.get(Role::Target), found.get(Role::Draft)),
            (Some(&two), Some(&one))
        );
        assert_eq!(found.get(Role::Qualifier), None);
        assert!(threads("0").is_err() && threads("target=0").is_err() && threads("1025").is_err());
    }

    #[test]
    fn memory_is_for_all_or_for_each() {
        assert_eq!(kv_mib("512").unwrap().get(Role::Target), Some(&512));
        let found = gpu_memory_utilization("target=0.7,draft=0.2").unwrap();
        assert_eq!(
            (found.get(Role::Target), found.get(Role::Qualifier)),
            (Some(&0.7), None)
        );
        assert!(kv_mib("0").is_err() && kv_mib("target=-1").is_err());
        for bad in ["0", "1.1", "draft=NaN", "target=all"] {
            let error = gpu_memory_utilization(bad).unwrap_err();
            assert!(error.contains("is not a share"), "{error}");
        }
    }

    #[test]
    fn cpus_are_numbers() {
        let found = pin("target=0,draft=1").unwrap();
        assert_eq!(
            (found.get(Role::Target), found.get(Role::Draft)),
            (Some(&0), Some(&1))
        );
        for bad in [
            "0",
            "target=",
            "target=a",
            "target=0,1",
            "target=-1",
            "target=65536",
        ] {
            assert!(pin(bad).is_err(), "{bad}");
        }
    }
}
