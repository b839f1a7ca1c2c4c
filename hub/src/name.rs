//! What users call a model.

use std::env;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::error::HubError;

/// A model as it was named: by a path, or in a repository of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder or a file.
    Path(PathBuf),
    /// A repository.
    Hub(HubName),
}

/// `owner/name`, a revision of it, and which of its models is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// The repository, `owner/name`; both are names that a folder can have.
    pub(crate) repository: String,
    /// A branch, a tag or a commit; none: `main`.
    pub(crate) revision: Option<String>,
    /// A GGUF file of the repository, or the quantisation of one.
    pub(crate) choice: Option<String>,
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://{}", self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.choice {
            Some(choice) => write!(f, ":{choice}"),
            None => Ok(()),
        }
    }
}

const SCHEME: &str = "hf://";

impl Source {
    /// Reads a name: `hf://owner/name[@revision][:file]`, a path, or `owner/name[@revision][:file]` where there is no such path.
    /// `~` at the beginning of a path is the user's home.
    ///
    /// # Errors
    /// [`HubError::Name`] for one that begins like a repository and names none.
    pub fn parse(given: &Path) -> Result<Source, HubError> {
        let path = || Ok(Source::Path(home(given)));
        // A path need not be text.
        let Some(text) = given.to_str() else {
            return path();
        };
        if let Some(rest) = text.strip_prefix(SCHEME) {
            return HubName::parse(rest)
                .map(Source::Hub)
                .map_err(|reason| HubError::Name {
                    given: text.to_owned(),
                    reason,
                });
        }
        match HubName::parse(text) {
            Ok(name) if !is_path(given, text) => Ok(Source::Hub(name)),
            _ => path(),
        }
    }
}

/// Whether what could be the name of a repository is a path. It is one if it exists, and also where only its last part is
/// missing: then somebody has mistyped a path.
fn is_path(given: &Path, text: &str) -> bool {
    let folder = given.parent().is_some_and(Path::is_dir);
    given.exists() || folder || text.ends_with(".gguf") && !text.contains(':')
}

/// The path behind a `~`.
fn home(given: &Path) -> PathBuf {
    let mut parts = given.components();
    if parts.next() == Some(Component::Normal("~".as_ref()))
        && let Some(home) = env::home_dir()
    {
        return home.join(parts.as_path());
    }
    given.to_owned()
}

impl HubName {
    /// Reads what stands behind `hf://`.
    pub(crate) fn parse(text: &str) -> Result<HubName, String> {
        let (rest, choice) = match text.split_once(':') {
            Some((rest, choice)) => (rest, Some(choice)),
            None => (text, None),
        };
        let (repository, revision) = match rest.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (rest, None),
        };
        let expected = "write owner/name, owner/name:FILE.gguf or owner/name@REVISION:FILE.gguf";
        let mut parts = repository.split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(owner), Some(name), None) if is_name(owner) && is_name(name) => {}
            _ => return Err(expected.to_owned()),
        }
        if let Some(revision) = revision
            && !(is_inside(revision) && revision.chars().all(is_plain_or_slash))
        {
            return Err(format!("{revision:?} is no revision; {expected}"));
        }
        if let Some(choice) = choice
            && !is_inside(choice)
        {
            return Err(format!("{choice:?} is no file of a repository; {expected}"));
        }
        Ok(HubName {
            repository: repository.to_owned(),
            revision: revision.map(str::to_owned),
            choice: choice.map(str::to_owned),
        })
    }

    /// The branch, tag or commit.
    pub(crate) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The folder of the repository in a cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.repository.replace('/', "--"))
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

fn is_plain_or_slash(c: char) -> bool {
    is_plain(c) || c == '/'
}

/// Whether it can name an owner or a repository. `--` stands between the two in a cache.
fn is_name(text: &str) -> bool {
    let edges = |c| matches!(c, Some('.' | '-') | None);
    text.len() <= 96
        && text.chars().all(is_plain)
        && !edges(text.chars().next())
        && !edges(text.chars().last())
        && !text.contains("--")
        && !text.contains("..")
}

/// Whether a name of a file, with `/` between its parts, stays inside the folder that it is joined to.
pub(crate) fn is_inside(name: &str) -> bool {
    let is_part = |part: &str| {
        !matches!(part, "" | "." | "..") && part.len() <= 255 && !part.chars().any(char::is_control)
    };
    name.len() <= 1024 && !name.contains(['\\', ':']) && name.split('/').all(is_part)
}

/// Whether it is a commit as Git writes it in full.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse(Path::new(text)).unwrap()
    }

    #[test]
    fn repositories_are_named_in_five_ways() {
        for text in [
            "hf://owner/name",
            "hf://owner/name:a/model.Q4_K_M.gguf",
            "hf://owner/name@v1.0:Q8_0",
            "hf://owner/name@refs/pr/3",
        ] {
            let Source::Hub(name) = parse(text) else {
                panic!("{text} is a repository");
            };
            assert_eq!(name.to_string(), text);
            let bare = text.strip_prefix("hf://").unwrap();
            assert_eq!(parse(bare), Source::Hub(name));
        }
        let Source::Hub(name) = parse("hf://o/n") else {
            panic!("a repository");
        };
        assert_eq!(
            (name.revision(), name.folder().as_str()),
            ("main", "models--o--n")
        );
    }

    #[test]
    fn what_exists_or_nearly_does_is_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let inside = |name: &str| dir.path().join(name);
        assert_eq!(
            Source::parse(&inside("none")).unwrap(),
            Source::Path(inside("none"))
        );
        // Of this crate's folder.
        for text in [
            "src",
            "src/lib.rs",
            "src/none",
            "none",
            "owner/model.gguf",
            "./a/b",
            "a/b/c",
            "/a/b",
            "",
        ] {
            assert_eq!(parse(text), Source::Path(text.into()), "{text}");
        }
    }

    #[test]
    fn a_tilde_is_the_home() {
        let home = env::home_dir().unwrap();
        assert_eq!(parse("~"), Source::Path(home.join("")));
        assert_eq!(parse("~/models/x"), Source::Path(home.join("models/x")));
        assert_eq!(parse("~x/y:z"), Source::Path("~x/y:z".into()));
    }

    #[test]
    fn names_that_reach_elsewhere_are_refused() {
        for text in [
            "hf://",
            "hf://name",
            "hf://../name",
            "hf://owner/..",
            "hf://owner/na--me",
            "hf://owner/name/more",
            "hf://owner/name:../../x.gguf",
            "hf://owner/name:/etc/x.gguf",
            "hf://owner/name:a\\b",
            "hf://owner/name:",
            "hf://owner/name@../x",
            "hf://owner/name@",
            "hf://owner/name@a b",
            "hf://own er/name",
        ] {
            let error = Source::parse(Path::new(text)).unwrap_err().to_string();
            assert!(error.contains("owner/name"), "{text}: {error}");
        }
    }
}
