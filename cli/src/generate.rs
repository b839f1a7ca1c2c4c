//! `offshoot generate`: one completion, streamed to standard output.

use std::io::{self, Read};

use anyhow::{Context, Result, bail};
use clap::Args;
use proto::v1::generate_request::Prompt;
use runtime::trace::{self, Span, SpanKind};
use runtime::{Caller, Drain, TraceContext};

use crate::End;
use crate::client::{Completion, Coordinators, reason_name};
use crate::cluster::ClusterArgs;
use crate::console;
use crate::request::RequestArgs;
use crate::statistics::{self, Totals};

/// Arguments of `offshoot generate`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot generate \"fn main() {\"
  offshoot generate --temperature 0.7 --seed 1 --max-tokens 64 \"struct Point\"
  offshoot generate --strategy serial --gamma 4 --no-qualifier \"impl Iterator for\"
  offshoot generate --connect 127.0.0.1:7000 - < prompt.txt
  offshoot generate --connect a:7000,b:7000 \"fn main() {\"
  offshoot generate --connect host:7000 --tls-ca ca.pem --tls-cert client.pem --tls-key client-key.pem \"fn main() {\"

The completion goes to stdout, one line of statistics to stderr.")]
pub(crate) struct GenerateArgs {
    /// Text to complete; - reads it from standard input
    prompt: String,
    /// Maximum number of tokens to generate; 0: as many as the context has room for
    #[arg(
        long,
        value_name = "N",
        default_value_t = 128,
        help_heading = "Decoding"
    )]
    max_tokens: u32,
    /// Take control tokens that the prompt spells out, such as <|im_start|>, for those tokens; otherwise they are text
    #[arg(long, help_heading = "Decoding")]
    parse_special: bool,
    // Last, so that no knob takes the name of another flag.
    #[command(flatten)]
    request: RequestArgs,
}

impl GenerateArgs {
    /// The cluster that would be started.
    pub(crate) fn models(&mut self) -> &mut ClusterArgs {
        &mut self.request.serving.cluster
    }
}

/// Completes the prompt.
///
/// # Errors
/// When the cluster does not start or cannot be reached, the request is refused, or the stream breaks.
pub(crate) async fn run(args: GenerateArgs) -> Result<End> {
    let drain = Drain::new();
    drain.on_signals()?;
    let prompt = if args.prompt == "-" {
        read_prompt()?
    } else {
        args.prompt.clone()
    };
    let serving = args.request.serving.clone();
    let exporting = trace::init(&serving.cluster.trace, "client", "")?;
    let outcome = serving.serve(drain.stopping(), async |addresses, caller| {
        complete(&args, prompt, addresses, caller, &drain).await
    });
    let outcome = outcome.await;
    exporting.flush().await;
    outcome
}

/// Streams the completion from the coordinators at `addresses` until it ends or the process is asked to stop.
async fn complete(
    args: &GenerateArgs,
    prompt: String,
    addresses: &[String],
    caller: &Caller,
    drain: &Drain,
) -> Result<End> {
    let show_prompt = console::stdout_is_terminal().then(|| prompt.clone());
    let mut request = (args.request).request(Prompt::Text(prompt), args.max_tokens);
    request.parse_special = args.parse_special;
    let mut span = Span::start("generate", SpanKind::Client, &TraceContext::none());
    span.set("gen_ai.operation.name", "text_completion");
    span.set("server.address", addresses.join(","));
    let coordinators = Coordinators {
        addresses,
        caller,
        trace: span.context().clone(),
    };
    // The prompt is shown, dimmed, with the first text, so that an error message does not follow it.
    let mut shown = show_prompt;
    let generation = coordinators.generate(
        request,
        |text| {
            if let Some(prompt) = shown.take() {
                console::put(&format!("\x1b[2m{prompt}\x1b[0m"))?;
            }
            Ok(console::put(text)?)
        },
        |failure| console::say(&format!("{failure}; resuming")),
    );
    let completion = tokio::select! {
        completion = generation => match completion {
            Ok(completion) => completion,
            Err(error) => {
                span.fail("failed".to_owned(), error.to_string());
                return Err(error);
            }
        },
        () = drain.stopping() => {
            console::put("\n")?;
            return Ok(End::Interrupted);
        }
    };
    span.set(
        "gen_ai.usage.output_tokens",
        completion.token_ids.len() as i64,
    );
    drop(span);
    console::put("\n")?;
    console::say(&summary(&completion));
    Ok(End::Done)
}

/// The line of statistics.
pub(crate) fn summary(completion: &Completion) -> String {
    let totals = Totals::of([&completion.statistics]);
    let mut parts = vec![format!("{} tokens", completion.token_ids.len())];
    if completion.numerics.starts_with("synthetic-") {
        parts.push("SYNTHETIC".to_owned());
    }
    if let Some(speed) = statistics::decode_speed(&completion.arrivals) {
        parts.push(format!("{speed:.1} tok/s"));
    }
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    parts.push(format!(
        "acceptance length {:.2}",
        totals.acceptance_length()
    ));
    parts.push(format!("hits {}", percent(totals.hit_rate())));
    let sources: Vec<String> = (totals.sources().iter())
        .map(|(name, counts)| {
            format!(
                "{name} {}/{}/{}",
                counts.hits, counts.committed, counts.nodes
            )
        })
        .collect();
    if !sources.is_empty() {
        parts.push(format!("hits/committed/nodes of {}", sources.join(" ")));
    }
    parts.push(format!("target bubble {}", percent(totals.target_bubble())));
    parts.push(format!("starved {}", percent(totals.target_starved())));
    parts.push(format!("draft bubble {}", percent(totals.draft_bubble())));
    if completion.is_lossy {
        parts.push(format!("LOSSY: {} tokens tolerated", totals.tolerated()));
    }
    parts.push(format!("seed {}", completion.seed));
    parts.push(format!("finish: {}", reason_name(completion.reason)));
    parts.join(", ")
}

/// Reads the prompt from standard input, without the newline that a file ends with.
fn read_prompt() -> Result<String> {
    let mut bytes = Vec::new();
    let most = text::MAX_INPUT_BYTES;
    io::stdin()
        .lock()
        .take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .context("cannot read the prompt from standard input")?;
    if bytes.len() > most {
        bail!("the prompt on standard input is longer than {most} bytes");
    }
    let mut prompt =
        String::from_utf8(bytes).context("the prompt on standard input is not UTF-8")?;
    if prompt.ends_with('\n') {
        prompt.pop();
    }
    Ok(prompt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Arrival;
    use clap::Parser;
    use proto::v1;
    use speculation::strategy::Settings;
    use std::time::Duration;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        generate: GenerateArgs,
    }

    #[test]
    fn defaults_are_greedy_and_short() {
        let args = Probe::try_parse_from(["probe", "fn main() {"])
            .unwrap()
            .generate;
        assert_eq!(args.request.strategy.settings, Settings::new("auto"));
        assert_eq!(
            (
                args.max_tokens,
                args.request.sampling.temperature,
                args.request.seed
            ),
            (128, 0.0, None)
        );
        assert!(
            Probe::try_parse_from(["probe"]).is_err(),
            "a prompt is needed"
        );
        assert!(Probe::try_parse_from(["probe", "x", "--strategy", "magic"]).is_err());
    }

    #[test]
    fn the_summary_has_the_statistics() {
        let completion = Completion {
            seed: 7,
            numerics: "synthetic-nano-0".to_owned(),
            is_lossy: true,
            token_ids: vec![1, 2, 3],
            arrivals: vec![
                Arrival {
                    at: Duration::from_millis(10),
                    tokens: 1,
                },
                Arrival {
                    at: Duration::from_millis(30),
                    tokens: 2,
                },
            ],
            reason: v1::FinishReason::Length,
            statistics: v1::SessionStatistics {
                walks: Some(v1::WalkStats {
                    steps: 2,
                    tokens: 3,
                    hits: 1,
                    misses: 1,
                    tolerated: 2,
                    ..Default::default()
                }),
                ..Default::default()
            },
        };
        let line = summary(&completion);
        for part in [
            "3 tokens",
            "SYNTHETIC",
            "100.0 tok/s",
            "acceptance length 1.50",
            "hits 50 %",
            "LOSSY: 2 tokens tolerated",
            "seed 7",
            "finish: length",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
}
