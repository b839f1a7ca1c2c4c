//! Finds the bundled models, and checks that a folder contains a model.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use hub::{Console, Wanted};

/// The models of the checkout in which this binary was built; absent on other machines.
const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models");

/// Finds the folder of the bundled models: `given` (flag or environment), else beside the executable
/// (`models/`, `../share/offshoot/models`), else in a folder above it, else in the checkout it was built from.
///
/// # Errors
/// When the models are in none of them; the message says what to do.
pub(crate) fn bundled(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = given {
        if !holds_models(dir) {
            bail!(
                "no models in {}, which --models or OFFSHOOT_MODELS names: target/config.json is missing; name a folder \
                 with the subfolders draft, qualifier and target",
                dir.display()
            );
        }
        return Ok(dir.to_owned());
    }
    // Resolved, so that a symbolic link to the binary finds the models beside the binary.
    let executable = env::current_exe().and_then(|path| path.canonicalize()).ok();
    match search(executable.as_deref(), Path::new(CHECKOUT)) {
        Some(dir) => Ok(dir),
        None => bail!(
            "cannot find the bundled models near this binary; name their folder with --models DIR or OFFSHOOT_MODELS, \
             or name each model with --target DIR, --qualifier DIR and --draft DIR"
        ),
    }
}

fn search(executable: Option<&Path>, checkout: &Path) -> Option<PathBuf> {
    let beside = executable.and_then(Path::parent).into_iter();
    let near = beside.flat_map(|folder| {
        [
            folder.join("models"),
            folder.join("../share/offshoot/models"),
        ]
    });
    let above = executable
        .into_iter()
        .flat_map(|path| path.ancestors().skip(2))
        .map(|folder| folder.join("models"));
    near.chain(above)
        .chain([checkout.to_owned()])
        .find(|dir| holds_models(dir))
}

fn holds_models(dir: &Path) -> bool {
    dir.join("target").join("config.json").is_file()
}

/// The path of a model that a user named, fetched if it is one of a hub, and checked to be a folder with a model or a GGUF file
/// before a process is started for it.
///
/// # Errors
/// When it is neither, or cannot be fetched; the message says what to do.
pub(crate) fn checked(given: PathBuf) -> Result<PathBuf> {
    let dir = hub::resolve(&given, Wanted::Model, &mut Console::new())?;
    if engine::is_gguf(&dir) {
        return Ok(dir);
    }
    if dir.is_file() {
        bail!(
            "no model at {}: the file does not begin like a GGUF file; name a GGUF file or a folder in the Hugging Face \
             layout",
            dir.display()
        );
    }
    if !dir.is_dir() {
        bail!(
            "no model at {}: there is no such folder or file; check the path",
            dir.display()
        );
    }
    if !dir.join("config.json").is_file() {
        bail!(
            "no model at {}: config.json is missing; name a folder in the Hugging Face layout (config.json, \
             tokenizer.json, *.safetensors) or a GGUF file",
            dir.display()
        );
    }
    Ok(dir)
}

/// Checks that two models mean the same by the same token ids, without which neither can guess for the other.
///
/// # Errors
/// When a tokenizer cannot be read.
pub(crate) fn fit(target: &Path, beside: &Path) -> Result<Fit> {
    let (ours, theirs) = (text::vocabulary(target)?, text::vocabulary(beside)?);
    if ours.hash() == theirs.hash() {
        return Ok(Fit::Fits);
    }
    Ok(Fit::Differs(match theirs.agrees_with(&ours) {
        Err(mismatch) => mismatch.to_string(),
        Ok(()) if ours.token_hash() == theirs.token_hash() => {
            "it has the target's tokens, but other merges, another normaliser or another pre-tokenizer".to_owned()
        }
        Ok(()) => format!(
            "it has {} tokens, the target has {}",
            theirs.len(),
            ours.len()
        ),
    }))
}

/// Whether a model can work beside a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// They have one vocabulary.
    Fits,
    /// They do not, for this reason.
    Differs(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn family(dir: &Path) {
        fs::create_dir_all(dir.join("target")).unwrap();
        fs::write(dir.join("target/config.json"), "{}").unwrap();
    }

    #[test]
    fn the_nearest_models_are_used() {
        let root = tempfile::tempdir().unwrap();
        let executable = root.path().join("checkout/target/release/offshoot");
        let checkout = root.path().join("elsewhere/models");
        let nowhere = root.path().join("nowhere");
        fs::create_dir_all(executable.parent().unwrap()).unwrap();
        assert_eq!(search(Some(&executable), &nowhere), None);
        family(&checkout);
        assert_eq!(search(Some(&executable), &checkout), Some(checkout.clone()));
        assert_eq!(search(None, &checkout), Some(checkout.clone()));
        let above = root.path().join("checkout/models");
        family(&above);
        assert_eq!(search(Some(&executable), &checkout), Some(above));
        let shared = root.path().join("checkout/target/share/offshoot/models");
        family(&shared);
        let found = search(Some(&executable), &checkout).unwrap();
        assert_eq!(
            found.canonicalize().unwrap(),
            shared.canonicalize().unwrap()
        );
        let beside = root.path().join("checkout/target/release/models");
        family(&beside);
        assert_eq!(search(Some(&executable), &checkout), Some(beside));
    }

    #[test]
    fn a_given_folder_is_taken_or_refused() {
        let root = tempfile::tempdir().unwrap();
        let error = bundled(Some(root.path())).unwrap_err().to_string();
        assert!(error.contains("target/config.json"), "{error}");
        family(root.path());
        assert_eq!(bundled(Some(root.path())).unwrap(), root.path());
    }

    #[test]
    fn a_folder_without_a_model_is_explained() {
        let root = tempfile::tempdir().unwrap();
        let missing = checked(root.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("no such folder"), "{missing}");
        let file = root.path().join("weights.bin");
        fs::write(&file, "GGML").unwrap();
        let other = checked(file).unwrap_err().to_string();
        assert!(other.contains("GGUF"), "{other}");
        let file = root.path().join("weights");
        fs::write(&file, "GGUF and so on").unwrap();
        assert!(checked(file).is_ok());
        let empty = checked(root.path().to_owned()).unwrap_err().to_string();
        assert!(empty.contains("config.json"), "{empty}");
        family(root.path());
        assert!(checked(root.path().join("target")).is_ok());
    }
}
