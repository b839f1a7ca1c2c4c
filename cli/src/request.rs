//! A request as the flags of a client command describe it.

use clap::Args;
use proto::v1;
use proto::v1::generate_request::Prompt;

use crate::sampling::SamplingArgs;
use crate::serving::ServingArgs;
use crate::strategy::{self, StrategyArgs};

/// How a prompt is completed, and by which cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct RequestArgs {
    /// Seed; it decides the text at temperatures above 0 [default: random for each completion, and reported]
    #[arg(long, help_heading = "Decoding")]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) serving: ServingArgs,
    // Last, so that no knob takes the name of another flag.
    #[command(flatten)]
    pub(crate) strategy: StrategyArgs,
}

impl RequestArgs {
    /// The request for a completion of at most `max_tokens` tokens; 0: as many as the context has room for.
    pub(crate) fn request(&self, prompt: Prompt, max_tokens: u32) -> v1::GenerateRequest {
        let mut request = self.sampling.request(prompt, max_tokens, self.seed);
        strategy::apply(&self.strategy.settings, &mut request);
        request.no_qualifier = self.serving.cluster.no_qualifier;
        request.drafts = self.serving.cluster.drafts.map(u32::from);
        request
    }
}
