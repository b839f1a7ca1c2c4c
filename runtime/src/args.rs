//! The flags that every role shares.
//!
//! A flag overrides an environment variable, which overrides the default; see [`crate::parse`] for which variables count. A
//! process that starts others passes `--host`
//! and `--port` to each of them explicitly, because children inherit the environment and must not all bind the same
//! port.

use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;

use crate::{AdminArgs, AnnounceArgs, ParentArgs, TelemetryArgs, TraceArgs};

/// Settings of a process that do not depend on its role.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Log format and filter.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// Whether to export traces.
    #[command(flatten)]
    pub trace: TraceArgs,
    /// Whether to serve metrics.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Whether to announce the address to a parent process.
    #[command(flatten)]
    pub announce: AnnounceArgs,
    /// Whether to exit when the parent does.
    #[command(flatten)]
    pub parent: ParentArgs,
    /// Seconds after a signal to stop during which the process serves as before but is not ready, so that others stop using
    /// it before it drains.
    #[arg(
        long = "stop-delay",
        env = "OFFSHOOT_STOP_DELAY",
        value_name = "SECONDS",
        default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(..=3600)
    )]
    pub stop_delay_s: u64,
    /// Seconds that running requests get to finish after that.
    #[arg(
        long,
        env = "OFFSHOOT_DRAIN_GRACE",
        value_name = "SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(..=3600)
    )]
    pub drain_grace_s: u64,
}

impl CommonArgs {
    /// How long the process serves as before after a signal to stop.
    #[must_use]
    pub fn stop_delay(&self) -> Duration {
        Duration::from_secs(self.stop_delay_s)
    }

    /// How long running requests get to finish after that.
    #[must_use]
    pub fn drain_grace(&self) -> Duration {
        Duration::from_secs(self.drain_grace_s)
    }
}

/// Where a process listens and how many connections it accepts.
#[derive(Args, Clone, Debug)]
pub struct NetArgs {
    /// Host name or address to listen on.
    #[arg(long, env = "OFFSHOOT_HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 picks a free port.
    #[arg(long, env = "OFFSHOOT_PORT", default_value_t = 0)]
    pub port: u16,
    /// Allow listening on a non-loopback address without TLS.
    #[arg(long, env = "OFFSHOOT_ALLOW_PLAINTEXT_BIND", value_parser = BoolishValueParser::new())]
    pub allow_plaintext_bind: bool,
    /// Describe the services to whoever asks, by gRPC reflection (for tools such as grpcurl).
    #[arg(long, env = "OFFSHOOT_REFLECTION", value_parser = BoolishValueParser::new())]
    pub reflection: bool,
    /// Open connections at most; further connections are closed at once.
    #[arg(
        long,
        env = "OFFSHOOT_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=65_536)
    )]
    pub max_connections: u32,
}

impl Default for NetArgs {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 0,
            allow_plaintext_bind: false,
            reflection: false,
            max_connections: 256,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use crate::LogFormat;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Probe {
        #[command(flatten)]
        common: CommonArgs,
        #[command(flatten)]
        net: NetArgs,
    }

    #[test]
    fn defaults_are_loopback_and_quiet() {
        let probe = Probe::try_parse_from(["probe"]).unwrap();
        assert_eq!(probe.net.host, NetArgs::default().host);
        assert_eq!(probe.net.port, NetArgs::default().port);
        assert_eq!(
            probe.net.max_connections,
            NetArgs::default().max_connections
        );
        assert!(!probe.net.allow_plaintext_bind && !probe.net.reflection);
        assert!(!probe.common.announce.announce);
        assert_eq!(probe.common.admin.admin, None);
        assert_eq!(probe.common.trace.otlp_traces_endpoint, None);
        assert!(!probe.common.parent.exit_with_parent);
        assert_eq!(probe.common.stop_delay(), Duration::ZERO);
        assert_eq!(probe.common.drain_grace(), Duration::from_secs(10));
    }

    #[test]
    fn flags_reach_their_fields() {
        let probe = Probe::try_parse_from([
            "probe",
            "--host",
            "::1",
            "--port",
            "7000",
            "--log-format",
            "json",
            "--log-level",
            "debug",
            "--announce",
            "--exit-with-parent",
            "--allow-plaintext-bind",
        ])
        .unwrap();
        assert_eq!((probe.net.host.as_str(), probe.net.port), ("::1", 7000));
        assert!(probe.net.allow_plaintext_bind);
        assert_eq!(probe.common.telemetry.log_format, LogFormat::Json);
        assert_eq!(probe.common.telemetry.log_level, "debug");
        assert!(probe.common.announce.announce && probe.common.parent.exit_with_parent);
    }

    #[test]
    fn invalid_values_are_refused() {
        for bad in [
            ["--port", "70000"],
            ["--max-connections", "0"],
            ["--drain-grace-s", "-1"],
            ["--log-format", "xml"],
            ["--trace-sample-ratio", "1.5"],
            ["--trace-sample-ratio", "NaN"],
            ["--otlp-traces-endpoint", "https://a:4317"],
            ["--otlp-traces-endpoint", "4317"],
        ] {
            assert!(
                Probe::try_parse_from(["probe", bad[0], bad[1]]).is_err(),
                "{bad:?}"
            );
        }
    }
}
