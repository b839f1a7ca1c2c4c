//! The profile that stands in for the models of a cluster.

use std::path::{Path, PathBuf};

use anyhow::Result;
use engine::synthetic::Profile;

use crate::models;

/// What a profile does to the models of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It takes their place: no weights are read, nothing is computed.
    Alone,
    /// It lies over them: steps run for real, answers come from the profile.
    Over,
}

/// A profile that was read once, so that a mistake is found before anything starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drawn {
    /// The file.
    pub(crate) file: PathBuf,
    /// The name that the profile has for itself.
    pub(crate) name: String,
    pub(crate) how: Use,
}

impl Drawn {
    /// Finds a profile: the file of that path, else the bundled one of that name.
    ///
    /// # Errors
    /// When there is none, or it is not a profile.
    pub(crate) fn find(given: &Path, models: Option<&Path>, how: Use) -> Result<Drawn> {
        let file = if given.is_file() {
            given.to_owned()
        } else {
            let bundled = models::bundled(models).map(|dir| bundled(&dir, given));
            // The message about what was given says more than one about a folder that was not.
            bundled
                .ok()
                .filter(|file| file.is_file())
                .unwrap_or_else(|| given.to_owned())
        };
        let profile = Profile::read(&file)?;
        Ok(Drawn {
            file,
            name: profile.name().to_owned(),
            how,
        })
    }

    /// The flag by which workers are given it.
    pub(super) fn flag(&self) -> &'static str {
        match self.how {
            Use::Alone => "--synthetic",
            Use::Over => "--overlay",
        }
    }

    /// What a worker with the model in `dir` serves, for reports.
    pub(super) fn describe(&self, dir: &str) -> String {
        match self.how {
            Use::Alone => format!("synthetic-{} (tokenizer of {dir})", self.name),
            Use::Over => format!("synthetic-{} over {dir}", self.name),
        }
    }
}

/// Where a bundled profile of this name would be.
fn bundled(models: &Path, name: &Path) -> PathBuf {
    let mut file = name.as_os_str().to_owned();
    file.push(".json");
    models.join("profiles").join(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_a_file_or_the_name_of_a_bundled_one() {
        let named = Drawn::find(Path::new("nano"), None, Use::Alone).unwrap();
        assert_eq!(named.name, "nano");
        assert!(named.file.ends_with("profiles/nano.json"));
        let again = Drawn::find(&named.file, None, Use::Over).unwrap();
        assert_eq!((again.flag(), named.flag()), ("--overlay", "--synthetic"));
        assert_eq!(again.describe("d"), "synthetic-nano over d");
        assert!(named.describe("d").starts_with("synthetic-nano"));
        let missing = Drawn::find(Path::new("no/such"), None, Use::Alone);
        let error = missing.unwrap_err().to_string();
        assert!(error.contains("no/such"), "{error}");
    }
}
