//! What a model computes on, as users name it.

use std::fmt;
use std::str::FromStr;

use crate::cuda::Cuda;
use crate::load::LoadError;

/// `cpu`, `cuda:N` for a GPU by its number, or `auto`: the first GPU that can be used for the model, else the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The CPU.
    #[default]
    Cpu,
    /// An NVIDIA GPU, counted from 0.
    Cuda(u32),
    /// Whichever there is.
    Auto,
}

impl DeviceName {
    /// What is tried for a model, one after another: GPUs by their number, and the CPU, which is none.
    #[must_use]
    pub fn candidates(self) -> Vec<Option<u32>> {
        match self {
            DeviceName::Cpu => vec![None],
            DeviceName::Cuda(number) => vec![Some(number)],
            DeviceName::Auto => {
                // Where there is none, the first says what is missing.
                let gpus = Cuda::count().unwrap_or(0).max(1);
                (0..gpus).map(Some).chain([None]).collect()
            }
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceName, String> {
        let number = match text {
            "cpu" => return Ok(DeviceName::Cpu),
            "auto" => return Ok(DeviceName::Auto),
            "cuda" => Some(0),
            other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        (number.map(DeviceName::Cuda))
            .ok_or_else(|| format!("{text:?} is not a device; use cpu, cuda:N or auto"))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(number) => write!(f, "cuda:{number}"),
            DeviceName::Auto => f.write_str("auto"),
        }
    }
}

/// What a model computes on, opened.
pub enum Computer {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda(Cuda),
}

impl Computer {
    /// Opens a GPU by its number, or the CPU.
    ///
    /// # Errors
    /// [`LoadError::Device`] where the GPU cannot be used.
    pub fn open(gpu: Option<u32>) -> Result<Computer, LoadError> {
        match gpu {
            None => Ok(Computer::Cpu),
            Some(number) => Cuda::open(number).map(Computer::Cuda),
        }
    }

    /// What it is called in logs.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Computer::Cpu => "cpu".to_owned(),
            Computer::Cuda(gpu) => format!("cuda:{} ({})", gpu.number(), gpu.name()),
        }
    }

    /// Bytes of a number in the key/value cache.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        match self {
            Computer::Cpu => 4,
            Computer::Cuda(_) => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for name in ["cpu", "auto", "cuda:0", "cuda:7"] {
            assert_eq!(name.parse::<DeviceName>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:4294967296"] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_said_to_be_missing_in_one_line() {
        // No machine has so many.
        let Err(error) = Computer::open(Some(4_000_000)) else {
            panic!("there is no such GPU");
        };
        let said = error.to_string();
        assert!(
            said.starts_with("cuda:4000000: ") && !said.contains('\n'),
            "{said}"
        );
    }

    #[test]
    fn auto_tries_gpus_and_ends_at_the_cpu() {
        let tried = DeviceName::Auto.candidates();
        assert_eq!((tried[0], tried.last()), (Some(0), Some(&None)));
        assert_eq!(DeviceName::Cpu.candidates(), [None]);
        assert_eq!(DeviceName::Cuda(3).candidates(), [Some(3)]);
    }
}
