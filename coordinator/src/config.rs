//! The command-line flags ([`Args`]) and the checked configuration ([`Config`]), with one conversion between them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use runtime::{
    AddressError, Caller, ClientAuth, CommonArgs, NetArgs, Purpose, Tls, TlsArgs, TlsError, items,
};
use speculation::duty::Role;
use speculation::strategy::{Registry, Settings, StrategyError};

pub use crate::discovery::flags::{
    DiscoveryArgs, DiscoveryConfig, DiscoveryError, EndpointPort, Endpoints, HostPort,
};

/// The flags of a coordinator. Each has an environment variable; lists are separated by commas there.
#[derive(ClapArgs, Clone, Debug)]
pub struct Args {
    /// Address of a draft worker; give it once per worker.
    #[arg(
        long = "draft",
        env = "OFFSHOOT_DRAFTS",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub drafts: Vec<String>,
    /// Address of a qualifier worker; give it once per worker.
    #[arg(
        long = "qualifier",
        env = "OFFSHOOT_QUALIFIERS",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub qualifiers: Vec<String>,
    /// Address of a target worker; give it once per worker.
    #[arg(
        long = "target",
        env = "OFFSHOOT_TARGETS",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub targets: Vec<String>,
    /// Address of a worker of any role; the worker says which. Give it once per worker.
    #[arg(
        long = "worker",
        env = "OFFSHOOT_WORKERS",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub workers: Vec<String>,
    /// Where more workers come from.
    #[command(flatten)]
    pub discovery: DiscoveryArgs,
    /// Model directory with the tokenizer.json of all models, or the file itself, or a GGUF file, or hf://owner/name[:file] of a
    /// hub.
    #[arg(long, env = "OFFSHOOT_TOKENIZER", value_name = "DIR | FILE | hf://...")]
    pub tokenizer: PathBuf,
    /// Requests that run at one time.
    #[arg(
        long,
        env = "OFFSHOOT_MAX_SESSIONS",
        value_name = "N",
        default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=65_536)
    )]
    pub max_sessions: u32,
    /// Requests that wait while that many run; more are refused.
    #[arg(
        long,
        env = "OFFSHOOT_MAX_QUEUED",
        value_name = "N",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(0..=65_536)
    )]
    pub max_queued: u32,
    /// Seconds that a request whose target is lost waits for another of equal numerics, or for the same to return.
    #[arg(
        long,
        env = "OFFSHOOT_FAILOVER_WAIT",
        value_name = "SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(..=3600)
    )]
    pub failover_wait: u64,
    /// Seconds that a completion keeps its workers for a client that takes nothing of its stream. It goes on where it was when
    /// the client reads again.
    #[arg(
        long,
        env = "OFFSHOOT_PARK_AFTER",
        value_name = "SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(..=3600)
    )]
    pub park_after: u64,
    /// Seconds after which a stream ends of which the client takes nothing although something is there.
    #[arg(
        long,
        env = "OFFSHOOT_CLIENT_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    pub client_timeout: u64,
    /// Strategy of requests that name none; it decides how fast a text is found, never what it says.
    #[arg(
        long,
        env = "OFFSHOOT_STRATEGY",
        value_name = "NAME",
        default_value = speculation::strategy::DEFAULT
    )]
    pub strategy: String,
    /// Whose requests this coordinator serves. Coordinators of different tenants may use the same workers: they never share a
    /// history, whatever their clients name it.
    #[arg(long, env = "OFFSHOOT_TENANT", value_name = "NAME", default_value = "")]
    pub tenant: String,
    /// Record how the models agree, for the newest N positions of completions: places and distances of guesses, never a token.
    /// `offshoot record` fetches the recording. 0: nothing is recorded.
    #[arg(
        long,
        env = "OFFSHOOT_RECORD",
        value_name = "N",
        default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(..=32_768)
    )]
    pub record: u32,
    /// Where to listen.
    #[command(flatten)]
    pub net: NetArgs,
    /// The identity, towards clients and towards workers.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Whether clients have to show a certificate; workers always do.
    #[arg(
        long,
        env = "OFFSHOOT_TLS_CLIENT_AUTH",
        value_enum,
        default_value_t,
        help_heading = "TLS"
    )]
    pub tls_client_auth: ClientAuth,
    /// What every role has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// A worker that flags name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// What it is expected to be; otherwise it says what it is.
    pub role: Option<Role>,
    /// `HOST:PORT`.
    pub address: String,
}

/// A checked configuration of the cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// The workers that flags name; addresses are unique.
    pub workers: Vec<WorkerConfig>,
    /// Where other workers come from.
    pub discovery: DiscoveryConfig,
    /// Requests that run at one time, at least 1.
    pub max_sessions: usize,
    /// Requests that wait beyond those.
    pub max_queued: usize,
    /// How long a request whose target is lost waits for another.
    pub failover_wait: Duration,
    /// How long a completion keeps its workers for a client that takes nothing.
    pub park_after: Duration,
    /// When the stream of such a client ends.
    pub client_timeout: Duration,
    /// The strategy of requests that name none; there is one of this name, and its knobs are in range.
    pub strategy: Settings,
    /// Whose requests are served.
    pub tenant: String,
    /// Positions of the newest completions that are recorded; 0: none.
    pub record: usize,
    /// How workers are called, and how clients are served; `None` for plaintext.
    pub tls: Option<Tls>,
}

/// Why flags contradict each other or are wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An address is not valid.
    #[error("{flag}: {source}")]
    Address {
        /// The flag that gives it, and its variable.
        flag: &'static str,
        /// What is wrong with it.
        source: AddressError,
    },
    /// One worker is named twice.
    #[error("the worker {0} is configured twice; a worker has one role")]
    Twice(String),
    /// Without a target there is no text, and none can be found.
    #[error(
        "no target is configured; give --target HOST:PORT, or a source of workers: --worker, --workers-dns, \
         --workers-srv or --workers-file"
    )]
    NoTarget,
    /// A source of workers is none.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// There is no such strategy.
    #[error("--strategy or OFFSHOOT_STRATEGY: {0}")]
    Strategy(#[from] StrategyError),
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl TryFrom<&Args> for Config {
    type Error = ConfigError;

    fn try_from(args: &Args) -> Result<Self, ConfigError> {
        let lists = [
            (
                Some(Role::Target),
                &args.targets,
                "--target or OFFSHOOT_TARGETS",
            ),
            (
                Some(Role::Qualifier),
                &args.qualifiers,
                "--qualifier or OFFSHOOT_QUALIFIERS",
            ),
            (
                Some(Role::Draft),
                &args.drafts,
                "--draft or OFFSHOOT_DRAFTS",
            ),
            (None, &args.workers, "--worker or OFFSHOOT_WORKERS"),
        ];
        let tls = args.tls.load(Purpose::ServeAndCall)?;
        let caller = Caller::new(tls.clone());
        let mut seen = BTreeSet::new();
        let mut workers = Vec::new();
        for (role, addresses, flag) in lists {
            for given in items(addresses) {
                let address = caller
                    .authority(given)
                    .map_err(|source| ConfigError::Address { flag, source })?;
                if !seen.insert(address.to_owned()) {
                    return Err(ConfigError::Twice(address.to_owned()));
                }
                workers.push(WorkerConfig {
                    role,
                    address: address.to_owned(),
                });
            }
        }
        let discovery = DiscoveryConfig::new(&args.discovery, &caller)?;
        let may_be_target = |worker: &WorkerConfig| worker.role.is_none_or(|r| r == Role::Target);
        if !workers.iter().any(may_be_target) && discovery.is_empty() {
            return Err(ConfigError::NoTarget);
        }
        let strategy = Registry::default().choose(&Settings::new(&args.strategy))?;
        Ok(Config {
            workers,
            discovery,
            max_sessions: args.max_sessions.max(1) as usize,
            max_queued: args.max_queued as usize,
            failover_wait: Duration::from_secs(args.failover_wait),
            park_after: Duration::from_secs(args.park_after),
            client_timeout: Duration::from_secs(args.client_timeout),
            strategy: strategy.settings,
            tenant: args.tenant.clone(),
            record: args.record as usize,
            tls,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        args: Args,
    }

    fn parse(flags: &[&str]) -> Result<Config, String> {
        let argv = ["probe", "--tokenizer", "models/target"];
        let probe = Probe::try_parse_from(argv.iter().chain(flags)).map_err(|e| e.to_string())?;
        Config::try_from(&probe.args).map_err(|error| error.to_string())
    }

    #[test]
    fn workers_keep_their_roles_and_one_form_of_address() {
        let config = parse(&[
            "--draft",
            "127.0.0.1:1",
            "--draft",
            "http://127.0.0.1:2/",
            "--qualifier",
            "q:3",
            "--target",
            "[::1]:4",
        ])
        .unwrap();
        let found: Vec<_> = (config.workers.iter())
            .map(|worker| (worker.role.unwrap(), worker.address.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (Role::Target, "[::1]:4"),
                (Role::Qualifier, "q:3"),
                (Role::Draft, "127.0.0.1:1"),
                (Role::Draft, "127.0.0.1:2"),
            ]
        );
        assert_eq!(config.max_sessions, 64);
        assert_eq!(config.strategy, Settings::new("auto"));
        let serial = parse(&["--target", "a:1", "--strategy", "serial"]).unwrap();
        assert_eq!(serial.strategy, Settings::new("serial"));
    }

    #[test]
    fn lists_may_have_blanks_and_gaps() {
        let config = parse(&["--target", " a:1, ,b:2,", "--draft", ""]).unwrap();
        let found: Vec<_> = (config.workers.iter())
            .map(|worker| worker.address.as_str())
            .collect();
        assert_eq!(found, ["a:1", "b:2"]);
        let error = parse(&["--target", ","]).unwrap_err();
        assert!(error.contains("no target is configured"), "{error}");
    }

    #[test]
    fn a_target_may_come_from_anywhere() {
        let config = parse(&["--worker", "a:1", "--draft", "b:2"]).unwrap();
        let roles: Vec<_> = config.workers.iter().map(|worker| worker.role).collect();
        assert_eq!(roles, [Some(Role::Draft), None]);
        assert!(config.discovery.is_empty());
        for flags in [
            ["--workers-dns", "workers.example:7000"],
            ["--workers-srv", "_worker._tcp.example"],
            ["--workers-file", "workers.txt"],
        ] {
            assert!(!parse(&flags).unwrap().discovery.is_empty(), "{flags:?}");
        }
    }

    #[test]
    fn wrong_flags_are_refused_with_a_reason() {
        for (flags, why) in [
            (&["--draft", "a:1"][..], "--target"),
            (&["--worker", "a:1", "--draft", "a:1"][..], "twice"),
            (&["--workers-dns", "127.0.0.1:1"][..], "--worker"),
            (&["--workers-srv", "a.b"][..], "_SERVICE"),
            (&["--dns-refresh", "0"][..], "0"),
            (&["--target", "a"][..], "port is missing"),
            (&["--target", "a"][..], "--target or OFFSHOOT_TARGETS"),
            (&["--target", "a:1", "--worker", "b"], "OFFSHOOT_WORKERS"),
            (&["--target", "a:1", "--draft", "http://a:1"][..], "twice"),
            (&["--target", "https://a:1"][..], "needs TLS"),
            (&["--target", "a:1", "--tls-ca", "ca.pem"][..], "--tls-cert"),
            (&["--target", "a:1", "--max-sessions", "0"][..], "0"),
            (&["--target", "a:1", "--strategy", "warp"][..], "known are"),
        ] {
            let error = parse(flags).unwrap_err();
            assert!(error.contains(why), "{flags:?} gave {error}");
        }
    }
}
