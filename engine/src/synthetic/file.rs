//! The file of a profile: JSON, described in docs/synthetic.md.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::synthetic::position::Position;
use crate::synthetic::profile::{
    Class, MAX_CLASSES, MAX_GUESSES, MAX_POSITIONS, Profile, ProfileError, QTable, within,
};
use crate::synthetic::stated::Stated;

/// What the file says it is.
const FORMAT: &str = "offshoot-profile";
/// The version that is written.
const VERSION: u32 = 1;
/// The newest version that is read: it may also say what the steps of the recorded cluster were, which is not looked at here.
const NEWEST: u32 = 2;
/// Files beyond this many bytes are refused before they are parsed.
const MOST_BYTES: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    format: String,
    version: u32,
    name: String,
    #[serde(default)]
    about: String,
    guesses: usize,
    block: usize,
    temperatures: Vec<At>,
    #[serde(default, skip_serializing)]
    #[expect(dead_code, reason = "it is only passed over")]
    runs: IgnoredAny,
}

/// One temperature: recorded or stated.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct At {
    temperature: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recorded: Option<Recorded>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stated: Option<Stated>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    q: QTable,
    /// The positions as digits. The borders between the strings mean nothing.
    positions: Vec<String>,
}

pub(super) fn read(path: &Path) -> Result<Profile, ProfileError> {
    let failed = |source| ProfileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut content = Vec::new();
    let file = File::open(path).map_err(failed)?;
    (file.take(MOST_BYTES + 1).read_to_end(&mut content)).map_err(failed)?;
    Profile::parse(&content, &path.display().to_string())
}

pub(super) fn parse(content: &[u8]) -> Result<Profile, String> {
    if content.len() as u64 > MOST_BYTES {
        return Err(format!("is larger than {MOST_BYTES} bytes"));
    }
    let content: Content =
        serde_json::from_slice(content).map_err(|error| format!("cannot be parsed: {error}"))?;
    if content.format != FORMAT {
        return Err(format!("is not one: its format is not {FORMAT:?}"));
    }
    if !(VERSION..=NEWEST).contains(&content.version) {
        return Err(format!(
            "has version {}; this program reads versions {VERSION} to {NEWEST}",
            content.version
        ));
    }
    let guesses = content.guesses;
    within("guesses", guesses, 2, MAX_GUESSES)?;
    within("temperatures", content.temperatures.len(), 1, MAX_CLASSES)?;
    let classes = (content.temperatures.into_iter())
        .map(|at| at.class(guesses))
        .collect::<Result<Vec<_>, String>>()?;
    let profile = Profile::new(content.name, content.about, guesses, content.block, classes);
    profile.map_err(|error| match error {
        ProfileError::Invalid { reason, .. } => reason,
        ProfileError::Io { .. } => error.to_string(),
    })
}

impl At {
    fn class(self, guesses: usize) -> Result<Class, String> {
        let temperature = self.temperature;
        match (self.recorded, self.stated) {
            (Some(recorded), None) => Ok(Class {
                temperature,
                positions: recorded.read(guesses)?,
                q: recorded.q,
            }),
            (None, Some(stated)) => stated.draw(temperature, guesses),
            _ => Err(format!(
                "needs either \"recorded\" or \"stated\" at temperature {temperature}"
            )),
        }
    }
}

impl Recorded {
    fn read(&self, guesses: usize) -> Result<Vec<Position>, String> {
        let each = Position::digits(guesses);
        let mut positions = Vec::new();
        for text in &self.positions {
            let digits = text.as_bytes().chunks_exact(each);
            if !digits.remainder().is_empty() {
                return Err(format!(
                    "has positions whose length is not a multiple of {each} digits"
                ));
            }
            within(
                "positions",
                positions.len() + digits.len(),
                0,
                MAX_POSITIONS,
            )?;
            for digits in digits {
                let number = positions.len() + 1;
                let position = Position::read(digits, guesses);
                let named = |reason| format!("has a position (number {number}) that {reason}");
                positions.push(position.map_err(named)?);
            }
        }
        Ok(positions)
    }
}

pub(super) fn write(profile: &Profile) -> String {
    let temperatures = profile.classes.iter().map(|class| At {
        temperature: class.temperature,
        recorded: Some(Recorded {
            q: class.q.clone(),
            positions: (class.positions.chunks(profile.block))
                .map(|positions| {
                    let mut digits = String::new();
                    positions
                        .iter()
                        .for_each(|position| position.write(&mut digits));
                    digits
                })
                .collect(),
        }),
        stated: None,
    });
    let content = Content {
        format: FORMAT.to_owned(),
        version: VERSION,
        name: profile.name.clone(),
        about: profile.about.clone(),
        guesses: profile.guesses,
        block: profile.block,
        temperatures: temperatures.collect(),
        runs: IgnoredAny,
    };
    let mut json =
        serde_json::to_string_pretty(&content).expect("strings, lists and finite numbers are JSON");
    json.push('\n');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATED: &str = r#"{
        "format": "offshoot-profile", "version": 1, "name": "supposed", "guesses": 4, "block": 32,
        "temperatures": [
            {"temperature": 0, "stated": {"draft": [0.7, 0.1, 0.05], "qualifier": [0.95, 0.6], "streak": 4}}
        ]
    }"#;

    fn refusal(content: &str) -> String {
        let error = Profile::parse(content.as_bytes(), "p.json").unwrap_err();
        error.to_string()
    }

    #[test]
    fn what_is_written_is_read() {
        let profile = Profile::parse(STATED.as_bytes(), "p.json").unwrap();
        let written = profile.to_json();
        assert!(written.contains("\"recorded\""));
        let read = Profile::parse(written.as_bytes(), "q.json").unwrap();
        assert_eq!(read, profile);
        assert_eq!(read.to_json(), written);
    }

    #[test]
    fn a_recording_with_steps_is_the_same_profile() {
        let with = STATED.replace("\"version\": 1", "\"version\": 2, \"runs\": [{\"x\": 1}]");
        let [with, without] =
            [&with, STATED].map(|content| Profile::parse(content.as_bytes(), "p.json").unwrap());
        assert_eq!(with, without);
    }

    #[test]
    fn mistakes_are_explained() {
        assert!(refusal("{").contains("p.json cannot be parsed"));
        for (part, other, why) in [
            ("offshoot-profile", "profile", "is not one"),
            ("\"version\": 1", "\"version\": 3", "has version 3"),
            ("\"guesses\": 4", "\"guesses\": 99", "has 99 guesses"),
            ("\"guesses\": 4", "\"guesses\": 2", "3 places"),
            ("\"block\": 32", "\"block\": 0", "has 0 block"),
            (
                "\"name\": \"supposed\"",
                "\"name\": \"a/b\"",
                "has the name",
            ),
            (
                "\"temperature\": 0,",
                "\"temperature\": -1,",
                "the temperature -1",
            ),
            (
                "\"temperature\": 0,",
                "\"temperature\": 1e999,",
                "cannot be parsed",
            ),
            ("0.05]", "0.75]", "more than 1"),
            ("0.05]", "-0.05]", "from 0 to 1"),
            ("0.6]", "0.6, 1]", "cannot be parsed"),
            ("0.6]", "1.6]", "from 0 to 1"),
            ("\"streak\": 4", "\"streak\": 0.5", "streak"),
            ("\"streak\": 4", "\"strea\": 4", "unknown field"),
            ("\"stated\"", "\"recorded\"", "unknown field"),
            (
                "\"stated\": {\"draft\": [0.7, 0.1, 0.05], \"qualifier\": [0.95, 0.6], \"streak\": 4}",
                "\"recorded\": {\"q\": [], \"positions\": [\"AAA\"]}",
                "multiple of 7 digits",
            ),
            (
                "\"stated\": {\"draft\": [0.7, 0.1, 0.05], \"qualifier\": [0.95, 0.6], \"streak\": 4}",
                "\"recorded\": {\"q\": [], \"positions\": [\"A!AAAAA\"]}",
                "number 1) that has a digit",
            ),
        ] {
            let content = STATED.replace(part, other);
            assert_ne!(content, STATED, "{part}");
            let error = refusal(&content);
            assert!(error.contains(why), "{other} gave {error}");
        }
        assert!(refusal(&" ".repeat((16 << 20) + 1)).contains("larger than"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Profile::read(Path::new("no/such/profile.json")).unwrap_err();
        assert!(
            error.to_string().contains("no/such/profile.json"),
            "{error}"
        );
    }
}
