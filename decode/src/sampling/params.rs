//! The sampling parameters of a request.

/// The sampling parameters of one request, shared by every model that works on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the strongest token. In `0..=100`.
    pub temperature: f32,
    /// How many of the strongest tokens survive; 0 switches the filter off.
    pub top_k: u32,
    /// The probability mass that survives, in `(0, 1]`; 1 switches the filter off.
    pub top_p: f32,
    /// The least probability that survives, relative to the strongest token's,
    /// in `0..=1`; 0 switches the filter off.
    pub min_p: f32,
    /// Decides the noise, and with it the text.
    pub seed: u64,
    /// Which of several completions of one request this is, from 0.
    pub choice: u32,
}

/// A sampling parameter is out of its range.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{parameter} is {value}: it must be {range}")]
pub struct ParamError {
    /// The parameter at fault, by the name that requests give it.
    pub parameter: &'static str,
    /// The value that was given.
    pub value: f32,
    /// The values that are accepted, in words.
    pub range: &'static str,
}

impl Default for SamplingParams {
    /// The model's own distribution: T = 1, no filter, seed 0.
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            choice: 0,
        }
    }
}

impl SamplingParams {
    /// Checks every range; a [`Sampler`](super::Sampler) expects that it passed.
    ///
    /// # Errors
    ///
    /// The first parameter that is out of range or not a number.
    pub fn validate(&self) -> Result<(), ParamError> {
        let checks = [
            (
                "temperature",
                self.temperature,
                (0.0..=100.0).contains(&self.temperature),
                "a number from 0 (always the strongest token) to 100",
            ),
            (
                "top_p",
                self.top_p,
                self.top_p > 0.0 && self.top_p <= 1.0,
                "a number above 0 and at most 1 (off)",
            ),
            (
                "min_p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                "a number from 0 (off) to 1",
            ),
        ];
        for (parameter, value, accepted, range) in checks {
            if !accepted {
                return Err(ParamError {
                    parameter,
                    value,
                    range,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn ranges_are_closed_where_documented_and_messages_name_the_parameter() {
        let good = SamplingParams::default();
        let edges = [
            SamplingParams {
                temperature: 0.0,
                ..good
            },
            SamplingParams {
                temperature: 100.0,
                ..good
            },
            SamplingParams {
                top_p: f32::MIN_POSITIVE,
                min_p: 1.0,
                ..good
            },
            SamplingParams {
                top_k: u32::MAX,
                ..good
            },
        ];
        for params in edges {
            assert_eq!(params.validate(), Ok(()), "{params:?}");
        }
        let bad = [
            (
                "temperature",
                SamplingParams {
                    temperature: -0.1,
                    ..good
                },
            ),
            (
                "temperature",
                SamplingParams {
                    temperature: 100.1,
                    ..good
                },
            ),
            (
                "temperature",
                SamplingParams {
                    temperature: f32::NAN,
                    ..good
                },
            ),
            (
                "temperature",
                SamplingParams {
                    temperature: f32::INFINITY,
                    ..good
                },
            ),
            ("top_p", SamplingParams { top_p: 0.0, ..good }),
            ("top_p", SamplingParams { top_p: 1.1, ..good }),
            (
                "top_p",
                SamplingParams {
                    top_p: f32::NAN,
                    ..good
                },
            ),
            (
                "min_p",
                SamplingParams {
                    min_p: -0.1,
                    ..good
                },
            ),
            ("min_p", SamplingParams { min_p: 1.1, ..good }),
            (
                "min_p",
                SamplingParams {
                    min_p: f32::NAN,
                    ..good
                },
            ),
        ];
        for (name, params) in bad {
            let error = params.validate().expect_err("out of range");
            assert_eq!(error.parameter, name, "{params:?}");
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }
}
