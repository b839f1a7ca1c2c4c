//! Telling somebody how far a download is.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Hears how downloads go on.
pub trait Watch {
    /// A file of so many bytes is fetched, some of which are there already.
    fn begin(&mut self, file: &str, have: u64, total: u64);
    /// So many of its bytes are there.
    fn at(&mut self, bytes: u64);
    /// It is there, or given up.
    fn end(&mut self);
    /// Something that a user should know, in a line.
    fn note(&mut self, line: &str);
}

/// Time between two lines where there is no terminal.
const BETWEEN: Duration = Duration::from_secs(5);

/// Shows a bar on standard error, or writes a line every few seconds if that is no terminal.
#[derive(Debug)]
pub struct Console {
    bar: Option<ProgressBar>,
    lines: Lines,
}

impl Console {
    /// One that has shown nothing yet.
    #[must_use]
    pub fn new() -> Console {
        Console {
            bar: None,
            lines: Lines::new(|line| {
                // There is nowhere else to say that this failed.
                let _ = writeln!(io::stderr().lock(), "{line}");
            }),
        }
    }
}

impl Default for Console {
    fn default() -> Console {
        Console::new()
    }
}

impl Watch for Console {
    fn begin(&mut self, file: &str, have: u64, total: u64) {
        if !io::stderr().is_terminal() {
            return self.lines.begin(file, have, total);
        }
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
        )
        .expect("the template is a constant that parses");
        let bar = ProgressBar::new(total)
            .with_style(style)
            .with_message(file.to_owned());
        bar.set_position(have);
        bar.reset_eta();
        self.bar = Some(bar);
    }

    fn at(&mut self, bytes: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(bytes),
            None => self.lines.at(bytes),
        }
    }

    fn end(&mut self) {
        match self.bar.take() {
            Some(bar) => bar.finish_and_clear(),
            None => self.lines.end(),
        }
    }

    fn note(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| (self.lines.say)(line)),
            None => (self.lines.say)(line),
        }
    }
}

/// Writes into the log of a process.
#[derive(Debug)]
pub struct Log(Lines);

impl Log {
    /// One that has written nothing yet.
    #[must_use]
    pub fn new() -> Log {
        Log(Lines::new(|line| tracing::info!("{line}")))
    }
}

impl Default for Log {
    fn default() -> Log {
        Log::new()
    }
}

impl Watch for Log {
    fn begin(&mut self, file: &str, have: u64, total: u64) {
        self.0.begin(file, have, total);
    }

    fn at(&mut self, bytes: u64) {
        self.0.at(bytes);
    }

    fn end(&mut self) {
        self.0.end();
    }

    fn note(&mut self, line: &str) {
        tracing::warn!("{line}");
    }
}

/// A line at the beginning, one every few seconds, one at the end. Small files are not worth any.
#[derive(Debug)]
struct Lines {
    say: fn(&str),
    file: String,
    total: u64,
    have: u64,
    next: Instant,
}

const WORTH_A_LINE: u64 = 1 << 20;

impl Lines {
    fn new(say: fn(&str)) -> Lines {
        Lines {
            say,
            file: String::new(),
            total: 0,
            have: 0,
            next: Instant::now(),
        }
    }

    fn begin(&mut self, file: &str, have: u64, total: u64) {
        file.clone_into(&mut self.file);
        (self.total, self.have, self.next) = (total, have, Instant::now() + BETWEEN);
        if total >= WORTH_A_LINE {
            (self.say)(&format!(
                "downloading {file}: {} of {}",
                HumanBytes(have),
                HumanBytes(total)
            ));
        }
    }

    fn at(&mut self, bytes: u64) {
        self.have = bytes;
        let now = Instant::now();
        if now >= self.next {
            self.next = now + BETWEEN;
            let (have, total) = (HumanBytes(bytes), HumanBytes(self.total));
            (self.say)(&format!("downloading {}: {have} of {total}", self.file));
        }
    }

    fn end(&mut self) {
        if self.total >= WORTH_A_LINE && self.have == self.total {
            (self.say)(&format!(
                "downloaded {}: {}",
                self.file,
                HumanBytes(self.total)
            ));
        }
    }
}
