//! How a child process tells its parent that it is ready and where it listens.
//!
//! Workers listen on ports that the system picks, so a parent cannot know them in advance. Once it serves, a child
//! with `--announce` writes exactly one line of JSON to its standard output,
//! `{"role":"draft","addr":"127.0.0.1:1234"}`. Logs go to standard error, so nothing else appears on that stream.

use std::io::{self, Write};
use std::net::SocketAddr;

use clap::Args;
use serde::{Deserialize, Serialize};

/// Longest line that a parent accepts as an announcement, in bytes.
pub const MAX_LINE: usize = 1024;

/// Whether to announce.
///
/// There is deliberately no environment variable: grandchildren would inherit it, and their standard output may have
/// another purpose.
#[derive(Args, Clone, Debug, Default)]
pub struct AnnounceArgs {
    /// Print one line of JSON with role and address to stdout when ready.
    #[arg(long)]
    pub announce: bool,
}

/// The contents of the line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Role of the child: `draft`, `qualifier`, `target` or `coordinator`.
    pub role: String,
    /// Address at which it serves; the port is never 0.
    pub addr: SocketAddr,
    /// Address of its admin port, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<SocketAddr>,
}

impl Announcement {
    /// The line, without the newline.
    #[must_use]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("a string and an address always serialise")
    }

    /// Parses a line that a child wrote.
    ///
    /// # Errors
    /// When the line is longer than [`MAX_LINE`], is not the expected JSON object, or has port 0.
    pub fn from_line(line: &str) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        if line.len() > MAX_LINE {
            return Err(invalid(format!(
                "an announcement of {} bytes is longer than the limit of {MAX_LINE}",
                line.len()
            )));
        }
        let found: Self = serde_json::from_str(line)
            .map_err(|error| invalid(format!("not an announcement ({error}): {line:?}")))?;
        if found.addr.port() == 0 {
            return Err(invalid(format!("an announcement without a port: {line:?}")));
        }
        Ok(found)
    }
}

/// Writes the line to standard output and flushes it, if `args` ask for it.
///
/// # Errors
/// When standard output is closed, which means that the parent has exited.
pub fn announce(
    args: &AnnounceArgs,
    role: &str,
    addr: SocketAddr,
    admin: Option<SocketAddr>,
) -> io::Result<()> {
    if !args.announce {
        return Ok(());
    }
    let announcement = Announcement {
        role: role.to_owned(),
        addr,
        admin,
    };
    write_line(io::stdout().lock(), &announcement)
}

fn write_line(mut out: impl Write, announcement: &Announcement) -> io::Result<()> {
    writeln!(out, "{}", announcement.to_line())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[test]
    fn one_line_in_the_promised_form() {
        let mut out = Vec::new();
        let mut announcement = Announcement {
            role: "draft".to_owned(),
            addr: "127.0.0.1:1234".parse().unwrap(),
            admin: None,
        };
        write_line(&mut out, &announcement).unwrap();
        announcement.admin = Some("127.0.0.1:5".parse().unwrap());
        write_line(&mut out, &announcement).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"role\":\"draft\",\"addr\":\"127.0.0.1:1234\"}\n\
             {\"role\":\"draft\",\"addr\":\"127.0.0.1:1234\",\"admin\":\"127.0.0.1:5\"}\n"
        );
    }

    #[test]
    fn what_is_written_can_be_read() {
        for (role, addr) in [("target", "[::1]:9"), ("a\"b\n", "10.0.0.1:65535")] {
            let sent = Announcement {
                role: role.to_owned(),
                addr: addr.parse().unwrap(),
                admin: Some("[::1]:1".parse().unwrap()),
            };
            let line = sent.to_line();
            assert!(!line.contains('\n'));
            assert_eq!(Announcement::from_line(&line).unwrap(), sent);
        }
    }

    #[test]
    fn other_lines_are_refused() {
        let long = format!(
            r#"{{"role":"{}","addr":"127.0.0.1:1"}}"#,
            "x".repeat(MAX_LINE)
        );
        for bad in [
            "",
            "hello",
            "{}",
            r#"{"role":"draft","addr":"127.0.0.1:0"}"#,
            r#"{"role":"draft","addr":"localhost:1"}"#,
            long.as_str(),
        ] {
            assert!(Announcement::from_line(bad).is_err(), "{bad:?}");
        }
    }
}
