//! `offshoot bench`: strategies side by side on one local cluster.
//!
//! Every figure is measured by a client, on real processes. Contenders take turns prompt by prompt, so that drift of
//! the machine affects all of them alike. Strategies with a sweep are tuned first, so that baselines are compared at
//! their best. Every completion is compared, token by token, with plain decoding of the same request.

mod contender;
mod measure;
mod prompts;
mod report;
mod traced;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use runtime::Drain;
use speculation::duty::Role;

use crate::End;
use crate::client::Client;
use crate::cluster::{Cluster, ClusterArgs, ClusterPlan, Use};
use crate::console::{self, Progress};
use crate::page;
use crate::sampling::SamplingArgs;
use crate::strategy::REFERENCE;
use crate::trace::{Collector, draw_chrome};
pub(crate) use contender::{Contender, Qualifiers};
use measure::Rig;
pub(crate) use measure::seed;
pub(crate) use prompts::read as read_prompts;
use report::{Labels, Synthetic};
pub(crate) use report::{Machine, Report, StrategyReport, align};

/// Arguments of `offshoot bench`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot bench --prompts prompts.jsonl
  offshoot bench --prompts prompts.jsonl --pace target=20,qualifier=7,draft=2 --json out.json
  offshoot bench --prompts prompts.jsonl --strategies ar,serial:gamma=4,auto,auto:qualifier=off --drafts 2
  offshoot bench --prompts prompts.jsonl --synthetic nano --step-ms target=1:20,64:40,qualifier=7,draft=2
  offshoot bench --prompts prompts.jsonl --pace target=20,draft=2 --html report.html --trace trace.json

Knobs follow the name of a strategy (NAME:KNOB=VALUE:...); `offshoot strategies` lists them. A strategy that has a sweep
and is given no knobs is tuned first. The table goes to stdout; it says whether figures were taken with --pace or
are synthetic.")]
pub(crate) struct BenchArgs {
    /// Strategies to compare [default: all]
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,...",
        default_values_t = Contender::all(),
        hide_default_value = true
    )]
    strategies: Vec<Contender>,
    /// File with one {"prompt": "..."} per line
    #[arg(long, value_name = "FILE.jsonl")]
    prompts: PathBuf,
    /// Use only the first N prompts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Tokens to generate per request
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..))]
    max_tokens: u32,
    /// Seed from which the seed of each prompt is derived
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Runs of each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// Concurrent requests
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    concurrency: u32,
    /// Prompts to tune strategies on; 0 uses the default knobs
    #[arg(long, value_name = "N", default_value_t = 4)]
    tune_prompts: u32,
    /// Do not run ar as the reference if it is not among the strategies
    #[arg(long)]
    no_reference: bool,
    /// Also write all results to this file, as JSON
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Also write all results to this file, as a page that needs nothing else: tables by devices, a timeline of a request, the
    /// text by who had guessed it
    #[arg(long, value_name = "OUT.html")]
    html: Option<PathBuf>,
    /// Also write what every worker did in a request of each strategy, in the format of Chrome and Perfetto
    #[arg(long, value_name = "OUT.json")]
    trace: Option<PathBuf>,
    /// Also write timeline.svg, a part of a request of each strategy, and guesses.svg, the text of the last strategy by who had
    /// guessed it, to this folder
    #[arg(long, value_name = "DIR")]
    pictures: Option<PathBuf>,
    /// With --html, --trace or --pictures: prompts that are completed once more, traced, after everything is measured
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    trace_prompts: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl BenchArgs {
    /// The cluster that would be started.
    pub(crate) fn models(&mut self) -> &mut ClusterArgs {
        &mut self.cluster
    }
}

/// Starts a cluster, measures and reports.
///
/// # Errors
/// When an input is invalid, the cluster does not start, or a request fails.
pub(crate) async fn run(args: BenchArgs) -> Result<End> {
    let drain = Drain::new();
    drain.on_signals()?;
    let field = Field::of(&args)?;
    let mut prompts = prompts::read(&args.prompts)?;
    if let Some(limit) = args.limit {
        prompts.truncate(limit as usize);
    }
    for path in [&args.json, &args.html, &args.trace].into_iter().flatten() {
        check_writable(path)?;
    }
    if let Some(dir) = &args.pictures {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let mut plan = args.cluster.clone().plan()?;
    let collector = match args.draws() {
        true => Some(collect(&mut plan, &drain).await?),
        false => None,
    };
    let concurrency = args.concurrency as usize;
    // A session that has just ended may still occupy its slot when the next one opens.
    plan.sessions = (concurrency > 8).then_some(2 * concurrency);
    let progress = Progress::spinner("starting the cluster");
    let cluster = tokio::select! {
        started = Cluster::start(&plan, &progress) => started?,
        () = drain.stopping() => return Ok(End::Interrupted),
    };
    progress.clear();
    let address = cluster.address();
    let measured = tokio::select! {
        report = measure(&args, &plan, field, prompts, &address) => Some(report),
        () = drain.stopping() => None,
    };
    // The last spans come when processes end.
    cluster.stop().await;
    let Some(run) = measured.transpose()? else {
        return Ok(End::Interrupted);
    };
    let report = &run.report;
    console::put(&report.table())?;
    let write = |path: &Path, text: String| {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &args.json {
        let text = serde_json::to_string(report).context("cannot write the report as JSON")?;
        write(path, text)?;
    }
    let Some(collector) = collector else {
        return Ok(End::Done);
    };
    let mut stories = traced::stories(&run.sent, &collector, &run.rig, &plan, &run.contenders)?;
    stories.truncate(report.strategies.len());
    if let Some(path) = &args.html {
        write(path, page::page(report, &stories))?;
    }
    if let Some(path) = &args.trace {
        let drawn = (stories.iter())
            .filter_map(|story| Some((story.label.as_str(), story.timelines.first()?)));
        write(path, draw_chrome(drawn))?;
    }
    if let Some(dir) = &args.pictures {
        for (name, picture) in [
            ("timeline.svg", page::timeline_picture(&stories)),
            ("guesses.svg", page::text_picture(&stories)),
        ] {
            let picture = picture.with_context(|| format!("there is nothing to draw in {name}"))?;
            write(&dir.join(name), picture)?;
        }
    }
    Ok(End::Done)
}

impl BenchArgs {
    /// Whether requests are traced.
    fn draws(&self) -> bool {
        self.html.is_some() || self.trace.is_some() || self.pictures.is_some()
    }
}

/// Makes the processes of a plan send spans of those requests that this process traces, and of no others.
async fn collect(plan: &mut ClusterPlan, drain: &Drain) -> Result<Collector> {
    if plan.trace.otlp_traces_endpoint.is_some() {
        bail!(
            "--html, --trace and --pictures collect spans themselves: leave --otlp-traces-endpoint out"
        );
    }
    let collector = Collector::start(drain).await?;
    plan.trace.otlp_traces_endpoint = Some(collector.address.clone());
    plan.trace.trace_sample_ratio = 0.0;
    Ok(collector)
}

/// What was measured, and the traced requests with what they were sent by.
struct Run {
    report: Report,
    sent: Vec<traced::Sent>,
    rig: Rig,
    contenders: Vec<Contender>,
}

/// Who takes part, and how many of them, from the first, are reported.
struct Field {
    contenders: Vec<Contender>,
    listed: usize,
}

impl Field {
    fn of(args: &BenchArgs) -> Result<Field> {
        let mut contenders = args.strategies.clone();
        let listed = contenders.len();
        for (index, contender) in contenders.iter().enumerate() {
            if contenders[..index].contains(contender) {
                bail!("{contender} is listed twice; use --repeats to measure it more often");
            }
        }
        let plain = |contender: &Contender| contender.name() == REFERENCE;
        if !args.no_reference && !contenders.iter().any(plain) {
            contenders.push(Contender::new(REFERENCE));
        }
        Ok(Field { contenders, listed })
    }
}

async fn measure(
    args: &BenchArgs,
    plan: &ClusterPlan,
    mut field: Field,
    prompts: Vec<String>,
    address: &str,
) -> Result<Run> {
    let mut rig = Rig {
        client: Client::connect(address, &runtime::Caller::default()).await?,
        prompts,
        sampling: args.sampling.clone(),
        max_tokens: args.max_tokens,
        concurrency: args.concurrency as usize,
        seed: args.seed,
        progress: Progress::counted(field.contenders.len(), "warming up"),
    };
    rig.warm_up(&field.contenders).await?;
    let tuned = args.tune_prompts as usize;
    for contender in &mut field.contenders {
        let requests = rig.tuning_requests(contender, tuned);
        if requests > 0 {
            rig.progress.clear();
            rig.progress = Progress::counted(requests, format!("tuning {contender}"));
            *contender = rig.tune(contender, tuned).await?;
        }
    }
    let repeats = args.repeats as usize;
    rig.progress.clear();
    rig.progress = Progress::counted(
        field.contenders.len() * rig.prompts.len() * repeats,
        "measuring",
    );
    let samples = rig.compare(&field.contenders, repeats).await?;
    let mut sent = Vec::new();
    if args.draws() {
        let prompts = args.trace_prompts as usize;
        let traced = &field.contenders[..field.listed];
        rig.progress.clear();
        rig.progress = Progress::counted(traced.len() * prompts, "tracing");
        sent = traced::send(&rig, traced, prompts).await?;
    }
    rig.progress.clear();
    let (paced, synthetic) = (pace(plan), synthetic(plan));
    let labels = Labels {
        paced: paced.is_some(),
        synthetic: synthetic.is_some(),
    };
    let report = Report {
        strategies: report::strategies(&field.contenders, &samples, field.listed, labels),
        paced,
        step_ms: step_ms(plan),
        synthetic,
        machine: machine(),
        models: models(plan),
        drafts: plan.drafts,
        prompts: rig.prompts.len(),
        repeats,
        concurrency: rig.concurrency,
        max_tokens: args.max_tokens,
        temperature: args.sampling.temperature,
        seed: args.seed,
    };
    Ok(Run {
        report,
        sent,
        rig,
        contenders: field.contenders,
    })
}

/// The pace of every role that has one; `None` where none has.
fn pace(plan: &ClusterPlan) -> Option<BTreeMap<&'static str, f64>> {
    let pace: BTreeMap<_, _> = (Role::ALL.into_iter())
        .filter_map(|role| Some((role.name(), *plan.pace.get(role)?)))
        .collect();
    (!pace.is_empty()).then_some(pace)
}

/// The step times of every role that has some; `None` where none has.
fn step_ms(plan: &ClusterPlan) -> Option<BTreeMap<&'static str, String>> {
    let times: BTreeMap<_, _> = (Role::ALL.into_iter())
        .filter_map(|role| Some((role.name(), plan.step_ms.get(role)?.to_string())))
        .collect();
    (!times.is_empty()).then_some(times)
}

/// What the answers were drawn from; `None` where models computed them.
fn synthetic(plan: &ClusterPlan) -> Option<Synthetic> {
    plan.drawn.as_ref().map(|drawn| Synthetic {
        profile: drawn.name.clone(),
        steps: match drawn.how {
            Use::Alone => "not computed",
            Use::Over => "computed",
        },
    })
}

fn models(plan: &ClusterPlan) -> BTreeMap<&'static str, String> {
    (Role::ALL.into_iter())
        .filter_map(|role| Some((role.name(), plan.model(role)?)))
        .collect()
}

/// The name of the CPU, if the system tells it, and the number of cores that this process may use.
pub(crate) fn machine() -> Machine {
    let described = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = described
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split(':').nth(1));
    Machine {
        cpu: name.map_or_else(
            || std::env::consts::ARCH.to_owned(),
            |name| name.trim().to_owned(),
        ),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
    }
}

/// Checks before a long run that its result can be written. The content of the file stays as it is.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened
        .map(drop)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(flags: &[&str]) -> Result<BenchArgs, clap::Error> {
        let words = ["probe", "--prompts", "p.jsonl"].iter().chain(flags);
        Probe::try_parse_from(words).map(|probe| probe.bench)
    }

    #[test]
    fn every_registered_strategy_is_the_default() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.strategies, Contender::all());
        let names: Vec<_> = args.strategies.iter().map(Contender::name).collect();
        for name in ["ar", "serial", "serial-tree", "auto"] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
        let field = Field::of(&args).unwrap();
        assert_eq!(
            (field.contenders.len(), field.listed),
            (names.len(), names.len())
        );
    }

    #[test]
    fn the_reference_is_added_unless_it_is_switched_off() {
        let field = Field::of(&parse(&["--strategies", "auto,serial:gamma=3"]).unwrap()).unwrap();
        assert_eq!((field.contenders.len(), field.listed), (3, 2));
        assert_eq!(field.contenders[2].name(), "ar");
        let args = parse(&["--strategies", "auto", "--no-reference"]).unwrap();
        assert_eq!(Field::of(&args).unwrap().contenders.len(), 1);
    }

    #[test]
    fn mistakes_are_found_before_anything_starts() {
        assert!(parse(&["--strategies", "magic"]).is_err());
        assert!(parse(&["--pace", "target=fast"]).is_err());
        assert!(
            parse(&["--max-tokens", "1"]).is_err(),
            "speed needs two tokens"
        );
        assert!(
            Probe::try_parse_from(["probe"]).is_err(),
            "prompts are needed"
        );
        let twice = Field::of(&parse(&["--strategies", "auto,auto"]).unwrap());
        assert!(twice.is_err_and(|error| error.to_string().contains("twice")));
    }

    #[test]
    fn an_unwritable_result_is_found_out_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        fs::write(&path, "old").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert!(check_writable(&dir.path().join("no/such/folder.json")).is_err());
    }

    #[test]
    fn a_run_is_paced_when_any_role_is() {
        let plan = |flags: &[&str]| parse(flags).unwrap().cluster.plan().unwrap();
        assert_eq!(pace(&plan(&[])), None);
        let some = pace(&plan(&["--pace", "draft=2"])).unwrap();
        assert_eq!(some, BTreeMap::from([("draft", 2.0)]));
        assert_eq!(step_ms(&plan(&[])), None);
        let some = step_ms(&plan(&["--step-ms", "draft=1:2,8:3"])).unwrap();
        assert_eq!(some, BTreeMap::from([("draft", "1:2,8:3".to_owned())]));
    }

    #[test]
    fn a_run_with_a_profile_is_synthetic() {
        let found = |flags: &[&str]| synthetic(&parse(flags).unwrap().cluster.plan().unwrap());
        assert!(found(&[]).is_none());
        let alone = found(&["--synthetic", "nano"]).unwrap();
        assert_eq!(
            (alone.profile.as_str(), alone.steps),
            ("nano", "not computed")
        );
        assert_eq!(found(&["--overlay", "nano"]).unwrap().steps, "computed");
    }
}
