//! The flags of a local cluster, and the plan that they become.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use engine::DeviceName;
use hub::{Console, Wanted};
use runtime::{TlsArgs, TraceArgs};
use speculation::duty::Role;
use worker::StepTimes;

use super::choice::{Choice, Chosen, Helper};
use super::per_role::{self, PerRole};
use super::profile::{Drawn, Use};

/// Models and processes of a local cluster.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Local cluster")]
pub(crate) struct ClusterArgs {
    /// Folder with the bundled models: draft, qualifier and target
    #[arg(long, env = "OFFSHOOT_MODELS", value_name = "DIR")]
    pub(crate) models: Option<PathBuf>,
    /// Target model: a folder in the Hugging Face layout, a GGUF file, or hf://owner/name[:file] of a hub [default: the bundled
    /// one]
    #[arg(
        long,
        visible_alias = "model",
        value_name = "DIR | FILE.gguf | hf://..."
    )]
    pub(crate) target: Option<PathBuf>,
    /// Folder of Medusa heads beside the target, or none [default: the folder heads of the target, if there is one]
    #[arg(long, value_name = "DIR | none")]
    pub(crate) heads: Option<PathBuf>,
    /// Folder of an H-RAD classifier beside the target, or none [default: the folder hrad of the target, if there is one]
    #[arg(long, value_name = "DIR | none")]
    pub(crate) hrad: Option<PathBuf>,
    /// Qualifier model [default: the bundled one, if it has the target's vocabulary]
    #[arg(long, value_name = "DIR | FILE.gguf | hf://...")]
    pub(crate) qualifier: Option<PathBuf>,
    /// Draft model [default: the bundled one, if it has the target's vocabulary]
    #[arg(long, value_name = "DIR | FILE.gguf | hf://...")]
    pub(crate) draft: Option<PathBuf>,
    /// Draft workers to start, or how many of a running cluster to use [default: 1, or all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=64))]
    pub(crate) drafts: Option<u16>,
    /// Do not use a qualifier
    #[arg(long, conflicts_with = "qualifier")]
    pub(crate) no_qualifier: bool,
    /// Minimum time of a step by role in milliseconds, for example target=20,qualifier=7,draft=2
    #[arg(long, value_name = "ROLE=MS,...", value_parser = per_role::pace)]
    pub(crate) pace: Option<PerRole<f64>>,
    /// Time of a step by role in milliseconds, one number or ROWS:MS,..., for example target=1:20,64:40,draft=2
    #[arg(long, value_name = "ROLE=TABLE,...", value_parser = per_role::step_ms, conflicts_with = "pace")]
    pub(crate) step_ms: Option<PerRole<StepTimes>>,
    /// Draw what the models answer from a profile, a file or the name of a bundled one (nano), instead of computing it. Of
    /// the models only tokenizer.json and config.json are read
    #[arg(long, value_name = "PROFILE", conflicts_with = "overlay")]
    pub(crate) synthetic: Option<PathBuf>,
    /// Run the models, but draw what they answer from a profile, a file or the name of a bundled one
    #[arg(long, value_name = "PROFILE")]
    pub(crate) overlay: Option<PathBuf>,
    /// What the models compute on, one device for all roles or by role: cpu, cuda:N or auto, for example
    /// draft=cuda:0,qualifier=cuda:0,target=cuda:1 [default: cpu]
    #[arg(long, env = "OFFSHOOT_DEVICES", value_name = "DEVICE | ROLE=DEVICE,...", value_parser = per_role::devices)]
    pub(crate) devices: Option<PerRole<DeviceName>>,
    /// Memory for the key/value cache of a worker, in MiB: one number for all roles, or by role [default: 1024]
    #[arg(long, value_name = "MIB | ROLE=MIB,...", value_parser = per_role::kv_mib)]
    pub(crate) kv_mib: Option<PerRole<u32>>,
    /// Share of a GPU's memory that a worker may take: one for all roles, or by role, for example target=0.7,draft=0.2. The
    /// key/value cache gets what the weights and activations leave
    #[arg(long, value_name = "SHARE | ROLE=SHARE,...", value_parser = per_role::gpu_memory_utilization)]
    pub(crate) gpu_memory_utilization: Option<PerRole<f64>>,
    /// Threads of the model: one number for all roles, or by role, for example target=2,draft=1
    #[arg(long, value_name = "N | ROLE=N,...", value_parser = per_role::threads)]
    pub(crate) threads: Option<PerRole<NonZeroUsize>>,
    /// CPU to pin the model thread to by role, for example target=0,draft=1; further drafts get the next CPUs
    #[arg(long, value_name = "ROLE=CPU,...", value_parser = per_role::pin)]
    pub(crate) pin: Option<PerRole<usize>>,
    /// Type of the weights in memory [default: as in the checkpoint]
    #[arg(long, value_parser = ["f32", "bf16", "q8_0", "q4_0"])]
    pub(crate) dtype: Option<String>,
    /// Tokens of completed texts that the target keeps for requests that name a history, at most; 0 keeps none [default:
    /// 262144]
    #[arg(long, value_name = "N")]
    pub(crate) history_tokens: Option<u32>,
    /// Seconds that the processes may take to load their models
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) start_timeout: u64,
    /// Show the logs of the processes: -v info, -vv debug
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Log filter of the processes, for example info,offshoot_worker=debug; overrides -v
    #[arg(long, env = "OFFSHOOT_LOG", value_name = "FILTER")]
    pub(crate) log_level: Option<String>,
    /// Where this process and those of the cluster export spans.
    #[command(flatten, next_help_heading = "Traces")]
    pub(crate) trace: TraceArgs,
}

/// A local cluster to start; the models of all roles exist.
#[derive(Clone, Debug)]
pub(crate) struct ClusterPlan {
    pub(crate) target: PathBuf,
    /// What is named for the target's heads and its classifier.
    pub(crate) beside: [(&'static str, Option<PathBuf>); 2],
    pub(crate) qualifier: Option<PathBuf>,
    pub(crate) draft: Option<PathBuf>,
    pub(crate) drafts: u16,
    /// Why bundled models are left out that would otherwise have been started, if any are.
    pub(crate) left_out: Option<String>,
    pub(crate) pace: PerRole<f64>,
    pub(crate) step_ms: PerRole<StepTimes>,
    /// What the answers are drawn from, if they are not computed.
    pub(crate) drawn: Option<Drawn>,
    pub(crate) devices: PerRole<DeviceName>,
    pub(crate) kv_mib: PerRole<u32>,
    pub(crate) gpu_memory_utilization: PerRole<f64>,
    pub(crate) threads: PerRole<NonZeroUsize>,
    pub(crate) pin: PerRole<usize>,
    pub(crate) dtype: Option<String>,
    pub(crate) history_tokens: Option<u32>,
    pub(crate) log_level: String,
    pub(crate) start_timeout: Duration,
    /// Concurrent requests, where the roles' own default is not enough.
    pub(crate) sessions: Option<usize>,
    /// Where spans are exported to, if anywhere.
    pub(crate) trace: TraceArgs,
    /// Address of the coordinator's admin port. If it is set, each worker gets one on a free loopback port.
    pub(crate) admin: Option<String>,
    /// Further flags of the coordinator.
    pub(crate) coordinator_flags: Vec<String>,
    /// The identity of every process, if connections are encrypted.
    pub(crate) tls: TlsArgs,
}

impl ClusterPlan {
    /// Whether workers of this role stand in for others, elsewhere: their steps wait or draw instead of computing.
    pub(crate) fn stands_in(&self, role: Role) -> bool {
        let is_paced = self.pace.get(role).is_some() || self.step_ms.get(role).is_some();
        is_paced || matches!(&self.drawn, Some(drawn) if drawn.flag() == "--synthetic")
    }
}

impl ClusterArgs {
    /// Makes paths of models that are named by a hub, and fetches them. Before anything else: Ctrl-C simply ends a download.
    ///
    /// # Errors
    /// When one cannot be fetched.
    pub(crate) fn fetch(&mut self) -> Result<()> {
        for name in [&mut self.target, &mut self.qualifier, &mut self.draft]
            .into_iter()
            .flatten()
        {
            *name = hub::resolve(name, Wanted::Model, &mut Console::new())?;
        }
        Ok(())
    }

    /// Finds and checks the models of all roles.
    ///
    /// # Errors
    /// When a model is missing; the message says what to do.
    pub(crate) fn plan(self) -> Result<ClusterPlan> {
        let models = self.models;
        let drawn = match (&self.synthetic, &self.overlay) {
            (Some(given), _) => Some(Drawn::find(given, models.as_deref(), Use::Alone)?),
            (None, Some(given)) => Some(Drawn::find(given, models.as_deref(), Use::Over)?),
            (None, None) => None,
        };
        let Chosen {
            target,
            qualifier,
            draft,
            left_out,
        } = Choice {
            models,
            target: self.target,
            qualifier: match (self.no_qualifier, self.qualifier) {
                (true, _) => Helper::None,
                (false, Some(dir)) => Helper::Named(dir),
                (false, None) => Helper::Bundled,
            },
            draft: match (self.drafts, self.draft) {
                (Some(0), _) => Helper::None,
                (_, Some(dir)) => Helper::Named(dir),
                (Some(_), None) => Helper::Asked,
                (None, None) => Helper::Bundled,
            },
        }
        .choose()?;
        let drafts = match draft {
            Some(_) => self.drafts.unwrap_or(1),
            None => 0,
        };
        Ok(ClusterPlan {
            target,
            beside: [("--heads", self.heads), ("--hrad", self.hrad)],
            qualifier,
            draft,
            drafts,
            left_out,
            pace: self.pace.unwrap_or_default(),
            step_ms: self.step_ms.unwrap_or_default(),
            drawn,
            devices: self.devices.unwrap_or_default(),
            kv_mib: self.kv_mib.unwrap_or_default(),
            gpu_memory_utilization: self.gpu_memory_utilization.unwrap_or_default(),
            threads: self.threads.unwrap_or_default(),
            pin: self.pin.unwrap_or_default(),
            dtype: self.dtype,
            history_tokens: self.history_tokens,
            log_level: self
                .log_level
                .unwrap_or_else(|| level(self.verbose).to_owned()),
            start_timeout: Duration::from_secs(self.start_timeout),
            sessions: None,
            trace: self.trace,
            admin: None,
            coordinator_flags: Vec::new(),
            tls: TlsArgs::default(),
        })
    }
}

impl ClusterPlan {
    /// What the workers of a role serve, for reports; none where there is no such worker.
    pub(crate) fn model(&self, role: Role) -> Option<String> {
        let dir = match role {
            Role::Target => Some(&self.target),
            Role::Qualifier => self.qualifier.as_ref(),
            Role::Draft => self.draft.as_ref(),
        };
        let dir = dir?.display().to_string();
        Some(match &self.drawn {
            Some(drawn) => drawn.describe(&dir),
            None => dir,
        })
    }
}

/// The log filter of the processes without `-v`: warnings, and how far a model is that takes long to load.
pub(super) const QUIET: &str = "warn,loading=info";

/// The log filter for a number of `-v`.
fn level(verbose: u8) -> &'static str {
    match verbose {
        0 => QUIET,
        1 => "info",
        2 => "debug",
        _ => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Probe {
        #[command(flatten)]
        cluster: ClusterArgs,
    }

    fn parse(flags: &[&str]) -> Result<ClusterArgs, clap::Error> {
        Probe::try_parse_from(["probe"].iter().chain(flags)).map(|probe| probe.cluster)
    }

    #[test]
    fn the_bundled_family_is_the_default() {
        let plan = parse(&[]).unwrap().plan().unwrap();
        assert!(plan.target.ends_with("target") && plan.target.join("config.json").is_file());
        assert!(plan.qualifier.unwrap().ends_with("qualifier"));
        assert!(plan.draft.unwrap().ends_with("draft"));
        assert_eq!(plan.drafts, 1);
        assert_eq!(plan.pace, PerRole::default());
    }

    #[test]
    fn a_profile_is_named_wherever_a_model_is() {
        let plan = parse(&["--synthetic", "nano", "--step-ms", "target=20"])
            .unwrap()
            .plan()
            .unwrap();
        for role in Role::ALL {
            assert!(plan.model(role).unwrap().starts_with("synthetic-nano"));
        }
        assert_eq!(plan.drawn.unwrap().how, Use::Alone);
        let plan = parse(&["--overlay", "nano", "--drafts", "0"])
            .unwrap()
            .plan()
            .unwrap();
        assert!(
            plan.model(Role::Target)
                .unwrap()
                .starts_with("synthetic-nano over")
        );
        assert_eq!(plan.model(Role::Draft), None);
        assert_eq!(plan.drawn.unwrap().how, Use::Over);
        for both in [
            &["--synthetic", "nano", "--overlay", "nano"],
            &["--pace", "draft=2", "--step-ms", "draft=2"],
        ] {
            assert!(parse(both).is_err());
        }
        assert!(
            parse(&["--synthetic", "none-such"])
                .unwrap()
                .plan()
                .is_err()
        );
    }

    #[test]
    fn roles_can_be_left_out() {
        let plan = parse(&["--drafts", "0", "--no-qualifier"])
            .unwrap()
            .plan()
            .unwrap();
        assert_eq!((plan.qualifier, plan.draft, plan.drafts), (None, None, 0));
        assert!(parse(&["--no-qualifier", "--qualifier", "somewhere"]).is_err());
    }

    #[test]
    fn a_missing_model_is_an_error_before_anything_starts() {
        let error = parse(&["--draft", "no/such/model"])
            .unwrap()
            .plan()
            .unwrap_err()
            .to_string();
        assert!(error.contains("no/such/model"), "{error}");
    }

    #[test]
    fn verbosity_becomes_a_filter() {
        assert_eq!(level(0), "warn,loading=info");
        let plan = parse(&["-vv"]).unwrap().plan().unwrap();
        assert_eq!(plan.log_level, "debug");
        let plan = parse(&["-v", "--log-level", "error"])
            .unwrap()
            .plan()
            .unwrap();
        assert_eq!(plan.log_level, "error");
    }
}
