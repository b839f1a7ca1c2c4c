//! How to decode: strategy, its knobs, and sampling, as flags and as a request.

use clap::{Args, ValueEnum};
use proto::v1;

/// Names of the strategies.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StrategyName {
    /// Plain decoding: one token a step
    Ar,
    /// A chain of guesses, then a pause until the commit
    Serial,
    /// A tree of guesses, then a pause until the commit
    SerialTree,
    /// Free-running growth while the target verifies
    #[default]
    Auto,
}

impl StrategyName {
    /// The name users type and servers know.
    pub(crate) fn name(self) -> &'static str {
        match self {
            StrategyName::Ar => "ar",
            StrategyName::Serial => "serial",
            StrategyName::SerialTree => "serial-tree",
            StrategyName::Auto => "auto",
        }
    }
}

/// Knobs of a strategy; 0 leaves one to the strategy.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Decoding")]
pub(crate) struct KnobArgs {
    /// serial: tokens drafted per round
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) gamma: u32,
    /// serial-tree: draft steps per round; auto: how far guesses reach
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) depth: u32,
    /// serial-tree, auto: nodes expanded per draft step
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) width: u32,
    /// serial-tree, auto: nodes verified per target step
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) rows: u32,
    /// auto: how far the qualifier may run ahead
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) ahead: u32,
}

impl KnobArgs {
    /// As the wire has it.
    pub(crate) fn strategy(self, name: StrategyName) -> v1::Strategy {
        v1::Strategy {
            name: name.name().to_owned(),
            gamma: self.gamma,
            depth: self.depth,
            width: self.width,
            rows: self.rows,
            ahead: self.ahead,
        }
    }

    /// The knobs that are set, by name.
    pub(crate) fn set(self) -> impl Iterator<Item = (&'static str, u32)> {
        [
            ("gamma", self.gamma),
            ("depth", self.depth),
            ("width", self.width),
            ("rows", self.rows),
            ("ahead", self.ahead),
        ]
        .into_iter()
        .filter(|(_, value)| *value != 0)
    }
}

/// Which of the likely tokens is taken.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Decoding")]
pub(crate) struct SamplingArgs {
    /// 0 takes the likeliest token; higher is more varied
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) temperature: f32,
    /// Only the N likeliest tokens; 0 is off
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) top_k: u32,
    /// Only the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Only tokens with at least this share of the likeliest one's probability; 0 is off
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) min_p: f32,
    /// Go on behind the model's end-of-text token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

impl SamplingArgs {
    /// A request for a completion of `prompt` by the default strategy.
    pub(crate) fn request(
        &self,
        prompt: String,
        max_tokens: u32,
        seed: Option<u64>,
    ) -> v1::GenerateRequest {
        v1::GenerateRequest {
            prompt: Some(v1::generate_request::Prompt::Text(prompt)),
            max_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed,
            ignore_eos: self.ignore_eos,
            ..v1::GenerateRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[arg(long, value_enum, default_value_t)]
        strategy: StrategyName,
        #[command(flatten)]
        knobs: KnobArgs,
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    #[test]
    fn names_are_those_the_wire_knows() {
        for strategy in StrategyName::value_variants() {
            let value = strategy.to_possible_value().unwrap();
            assert_eq!(value.get_name(), strategy.name());
            let known =
                proto::inward::strategy(Some(KnobArgs::default().strategy(*strategy))).unwrap();
            assert_eq!(known.name(), strategy.name());
        }
    }

    #[test]
    fn flags_reach_the_request() {
        let probe = Probe::try_parse_from([
            "probe",
            "--strategy",
            "serial-tree",
            "--depth",
            "5",
            "--rows",
            "9",
            "--temperature",
            "0.5",
            "--top-p",
            "0.9",
        ])
        .unwrap();
        let strategy = probe.knobs.strategy(probe.strategy);
        assert_eq!((strategy.depth, strategy.rows, strategy.width), (5, 9, 0));
        assert_eq!(
            probe.knobs.set().collect::<Vec<_>>(),
            [("depth", 5), ("rows", 9)]
        );
        let request = probe.sampling.request("p".to_owned(), 7, Some(3));
        assert_eq!(
            (request.max_tokens, request.seed, request.temperature),
            (7, Some(3), 0.5)
        );
        assert_eq!(request.top_p, Some(0.9));
    }
}
