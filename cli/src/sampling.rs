//! Sampling parameters as flags and as a request.

use clap::Args;
use proto::v1;
use proto::v1::generate_request::Prompt;

/// How tokens are sampled, and where the text ends.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Decoding")]
pub(crate) struct SamplingArgs {
    /// 0 always takes the most likely token; higher values give more varied text
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) temperature: f32,
    /// Sample from the N most likely tokens only; 0 is off
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) top_k: u32,
    /// Sample from the smallest set of most likely tokens with at least this total probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Sample only from tokens with at least this fraction of the highest probability; 0 is off
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) min_p: f32,
    /// Add VALUE (-100 to 100) to the logit of a token; can be repeated
    #[arg(long, value_name = "ID=VALUE", value_parser = bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Penalize tokens that are already in the prompt or the completion; 1 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Subtract this from the logits of tokens that are already in the completion
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) presence_penalty: f32,
    /// Subtract this from the logit of a token for each occurrence in the completion
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub(crate) frequency_penalty: f32,
    /// Text that ends the completion; can be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Include the stop text in the completion
    #[arg(long)]
    pub(crate) include_stop: bool,
    /// Token that ends the completion; can be repeated
    #[arg(long = "stop-token-id", value_name = "ID")]
    pub(crate) stop_token_ids: Vec<u32>,
    /// Minimum number of tokens before a stop text or token can end the completion
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) min_tokens: u32,
    /// Continue past the model's end-of-text token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Position in the queue when the cluster is busy: lower values go first
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(crate) priority: i32,
    /// Share texts with other requests that give this name: guesses come from their completions, and this one is kept for
    /// later ones. It changes the speed, never the text
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) history: String,
}

/// `ID=VALUE`; the coordinator checks the range of the value.
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
        prompt: Prompt,
        max_tokens: u32,
        seed: Option<u64>,
    ) -> v1::GenerateRequest {
        v1::GenerateRequest {
            prompt: Some(prompt),
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
            history: self.history.clone(),
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
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    #[test]
    fn flags_reach_the_request() {
        let probe = Probe::try_parse_from([
            "probe",
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
            "--history",
            "mine",
        ])
        .unwrap();
        let request = probe
            .sampling
            .request(Prompt::Text("p".to_owned()), 7, Some(3));
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
        assert_eq!(request.history, "mine");
        for invalid in ["10", "a=1", "1=", "-1=2"] {
            assert!(bias(invalid).unwrap_err().contains(invalid));
        }
    }
}
