//! Which models a local cluster has. A target of one's own gets bundled helpers beside it only if they fit.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use speculation::duty::Role;

use crate::models::{self, Fit};

/// What was asked for.
pub(super) struct Choice {
    /// Where the bundled models are.
    pub(super) models: Option<PathBuf>,
    /// None: the bundled one.
    pub(super) target: Option<PathBuf>,
    pub(super) qualifier: Helper,
    pub(super) draft: Helper,
}

/// What was asked for of a model beside the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Helper {
    /// None.
    None,
    /// The bundled one, if it fits.
    Bundled,
    /// One, without saying which: the bundled one, or an error.
    Asked,
    /// This one, or an error.
    Named(PathBuf),
}

/// The models of a cluster; they exist, and their vocabularies are the same.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) target: PathBuf,
    pub(super) qualifier: Option<PathBuf>,
    pub(super) draft: Option<PathBuf>,
    /// Why bundled models are left out, if they are.
    pub(super) left_out: Option<String>,
}

impl Choice {
    /// Finds and checks the models.
    ///
    /// # Errors
    /// When one is missing, or does not fit although it was asked for; the message says what to do.
    pub(super) fn choose(self) -> Result<Chosen> {
        let is_own = self.target.is_some();
        let target = match &self.target {
            Some(dir) => models::checked(dir.clone())?,
            None => self.bundled(Role::Target)?,
        };
        let mut left_out = Vec::new();
        let mut beside = |helper: &Helper, role: Role| -> Result<Option<PathBuf>> {
            let dir = match helper {
                Helper::None => return Ok(None),
                Helper::Named(dir) => models::checked(dir.clone())?,
                // The bundled models fit each other.
                Helper::Bundled | Helper::Asked if !is_own => return self.bundled(role).map(Some),
                Helper::Bundled => match self.bundled(role) {
                    Ok(dir) => dir,
                    Err(_) => return Ok(None),
                },
                Helper::Asked => self.bundled(role)?,
            };
            match (models::fit(&target, &dir)?, helper) {
                (Fit::Fits, _) => Ok(Some(dir)),
                (Fit::Differs(_), Helper::Bundled) => {
                    left_out.push(role.name());
                    Ok(None)
                }
                (Fit::Differs(reason), _) => bail!(misfit(&target, &dir, role, &reason)),
            }
        };
        let qualifier = beside(&self.qualifier, Role::Qualifier)?;
        let draft = beside(&self.draft, Role::Draft)?;
        let left_out = (!left_out.is_empty()).then(|| {
            let roles = left_out.join(" and ");
            format!(
                "without the bundled {roles}: {} has another vocabulary. Guesses come from the text alone; models that fit \
                 have the target's tokenizer and are named with --draft and --qualifier",
                target.display()
            )
        });
        Ok(Chosen {
            target,
            qualifier,
            draft,
            left_out,
        })
    }

    fn bundled(&self, role: Role) -> Result<PathBuf> {
        models::checked(models::bundled(self.models.as_deref())?.join(role.name()))
    }
}

/// Why a model that was asked for cannot work beside a target.
fn misfit(target: &Path, dir: &Path, role: Role, reason: &str) -> String {
    let role = role.name();
    format!(
        "the {role} {} does not fit the target {}: {reason}. Name a {role} that has the target's tokenizer, usually a smaller \
         model of its family, or leave it out (--drafts 0, --no-qualifier)",
        dir.display(),
        target.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/gguf")
            .join(name)
    }

    fn choice(target: Option<PathBuf>, draft: Helper) -> Choice {
        Choice {
            models: None,
            target,
            qualifier: Helper::Bundled,
            draft,
        }
    }

    #[test]
    fn an_own_target_goes_without_what_does_not_fit() {
        let target = Some(fixture("llama.gguf"));
        let chosen = choice(target.clone(), Helper::Bundled).choose().unwrap();
        assert_eq!((chosen.qualifier, chosen.draft), (None, None));
        let note = chosen.left_out.unwrap();
        assert!(
            note.contains("qualifier and draft") && note.contains("--draft"),
            "{note}"
        );
        for helper in [Helper::Asked, Helper::Named(fixture("tied.gguf"))] {
            let error = choice(target.clone(), helper)
                .choose()
                .unwrap_err()
                .to_string();
            assert!(error.contains("differ at token id"), "{error}");
            assert!(error.contains("the target's tokenizer"), "{error}");
        }
        let other_rules = Helper::Named(fixture("qwen2.gguf"));
        let error = choice(target.clone(), other_rules).choose().unwrap_err();
        assert!(error.to_string().contains("pre-tokenizer"), "{error}");
        let own = Helper::Named(fixture("llama.gguf"));
        let chosen = choice(target, own).choose().unwrap();
        assert_eq!(chosen.draft, Some(fixture("llama.gguf")));
    }

    #[test]
    fn an_own_target_of_the_bundled_vocabulary_keeps_the_bundled_helpers() {
        let bundled = models::bundled(None).unwrap();
        let chosen = choice(Some(bundled.join("qualifier")), Helper::Bundled)
            .choose()
            .unwrap();
        assert_eq!(chosen.draft, Some(bundled.join("draft")));
        assert_eq!(chosen.left_out, None);
    }
}
