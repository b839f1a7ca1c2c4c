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

/// Which of the likely tokens is taken, and where the text ends.
#[derive(Args, Clone, Debug)]
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
    /// Adds VALUE (-100 to 100) to the logit of a token; may be given again
    #[arg(long, value_name = "ID=VALUE", value_parser = bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Divides the odds of tokens that prompt or completion have already; 1 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Lowers the logits of tokens that the completion has already
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) presence_penalty: f32,
    /// Lowers the logit of a token once for each time that the completion has it
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) frequency_penalty: f32,
    /// Text that ends the completion; may be given again
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// The completion ends behind the stop text instead of before it
    #[arg(long)]
    pub(crate) include_stop: bool,
    /// Token that ends the completion; may be given again
    #[arg(long = "stop-token-id", value_name = "ID")]
    pub(crate) stop_token_ids: Vec<u32>,
    /// Tokens before which nothing but a limit ends the completion
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) min_tokens: u32,
    /// Go on behind the model's end-of-text token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// While requests wait for their turn, lower values go first
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(crate) priority: i32,
}

/// `ID=VALUE`; what the values may be is for the coordinator to say.
fn bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(id, value)| Some((id.parse().ok()?, value.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?} is not ID=VALUE, for example 10=-2.5"))
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
            bias_ids: self.logit_bias.iter().map(|(id, _)| *id).collect(),
            bias_values: self.logit_bias.iter().map(|(_, value)| *value).collect(),
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            stop: self.stop.clone(),
            include_stop: self.include_stop,
            stop_token_ids: self.stop_token_ids.clone(),
            min_tokens: self.min_tokens,
            ignore_eos: self.ignore_eos,
            priority: self.priority,
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
            "--logit-bias",
            "10=-2.5",
            "--logit-bias",
            "7=1",
            "--stop",
            "}\n",
            "--priority",
            "-4",
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
        assert_eq!(
            (request.bias_ids, request.bias_values),
            (vec![10, 7], vec![-2.5, 1.0])
        );
        assert_eq!(
            (request.stop, request.priority),
            (vec!["}\n".to_owned()], -4)
        );
        for odd in ["10", "a=1", "1=", "-1=2"] {
            assert!(bias(odd).unwrap_err().contains(odd));
        }
    }
}
