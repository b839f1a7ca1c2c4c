//! Logs on standard error, as text for people or JSON for collectors.
//!
//! Standard output is reserved for the results of a process: completions, tables, or the line of [`crate::announce`].

use std::io;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// Log format and filter.
#[derive(Args, Clone, Debug)]
pub struct TelemetryArgs {
    /// Format of the log lines on stderr.
    #[arg(long, env = "OFFSHOOT_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// What to log: a level, or directives such as `info,offshoot_worker=debug`.
    #[arg(
        long,
        env = "OFFSHOOT_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log_level: String,
}

impl Default for TelemetryArgs {
    fn default() -> Self {
        Self {
            log_format: LogFormat::default(),
            log_level: "info".to_owned(),
        }
    }
}

/// Format of a log line.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is malformed.
    #[error(
        "invalid log filter {filter:?}: {source}; give --log-level or OFFSHOOT_LOG a level (error, warn, info, debug, \
         trace) or directives such as info,offshoot_worker=debug"
    )]
    Filter {
        /// The value of the flag.
        filter: String,
        /// The parser's error.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging is already set up in this process.
    #[error("logging is already set up in this process")]
    Installed(#[source] tracing_subscriber::util::TryInitError),
}

/// Installs the process's log subscriber, writing to standard error.
///
/// # Errors
/// When the filter is malformed or a subscriber is already installed.
pub fn init(args: &TelemetryArgs) -> Result<(), TelemetryError> {
    build(args, io::stderr)?
        .try_init()
        .map_err(TelemetryError::Installed)
}

/// Builds the subscriber with any writer, so that tests can read what it writes.
fn build<W>(
    args: &TelemetryArgs,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(&args.log_level)
        .map_err(|source| TelemetryError::Filter {
            filter: args.log_level.clone(),
            source,
        })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(writer);
    Ok(match args.log_format {
        LogFormat::Text => Box::new(builder.finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use std::sync::{Arc, Mutex};

    fn logged(log_format: LogFormat, log_level: &str) -> String {
        let sink = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&sink);
        let args = TelemetryArgs {
            log_format,
            log_level: log_level.to_owned(),
        };
        let subscriber = build(&args, move || Tee(Arc::clone(&writer))).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("too fine");
            let request = tracing::info_span!("request", trace_id = "0af7");
            request.in_scope(|| tracing::info!(rows = 3, "a step"));
        });
        let bytes = sink.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    struct Tee(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Tee {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_is_one_line_per_event_and_filtered() {
        let text = logged(LogFormat::Text, "info");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("a step") && text.contains("rows=3"), "{text}");
        assert!(logged(LogFormat::Text, "debug").contains("too fine"));
        assert_eq!(logged(LogFormat::Text, "error"), "");
    }

    #[test]
    fn json_is_one_object_per_event() {
        let line = logged(LogFormat::Json, "info");
        let value: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
        assert_eq!(value["message"], "a step");
        assert_eq!(value["rows"], 3);
        assert_eq!(value["level"], "INFO");
        assert_eq!(
            value["span"]["trace_id"], "0af7",
            "the line does not name its trace"
        );
    }

    #[test]
    fn a_bad_filter_says_what_to_do() {
        let args = TelemetryArgs {
            log_level: "offshoot=loud=very".to_owned(),
            ..TelemetryArgs::default()
        };
        let error = init(&args).unwrap_err();
        assert!(
            error.to_string().contains("OFFSHOOT_LOG a level"),
            "{error}"
        );
    }
}
