//! Which files of a repository make a model: those that are loaded, and no others.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::name::is_inside;

/// What a model is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To compute with: everything.
    Model,
    /// For its texts alone: no weights, unless they are in the same file.
    Texts,
}

/// The files that make a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// One file.
    Gguf(String),
    /// The files of a folder. If an index is among them it names further ones.
    Folder {
        files: Vec<String>,
        index: Option<String>,
    },
}

/// What a folder has besides its weights. Only the first has to be there.
const BESIDE: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The quantisation that is taken of several if none is named.
const USUAL: &str = "Q4_K_M";

/// Chooses among the files of a repository.
///
/// # Errors
/// With what is missing.
pub(crate) fn select(
    there: &[String],
    choice: Option<&str>,
    wanted: Wanted,
) -> Result<Selection, String> {
    let has = |name: &str| there.iter().any(|file| file == name);
    if let Some(choice) = choice {
        return match choice.to_ascii_lowercase().ends_with(".gguf") {
            true if has(choice) => whole(choice),
            true => Err(format!("there is no file {choice}")),
            false => quantised(there, choice),
        };
    }
    let is_folder = has(BESIDE[0]);
    let index = (!has(WEIGHTS) && has(INDEX)).then(|| INDEX.to_owned());
    if is_folder && (has(WEIGHTS) || index.is_some()) {
        let mut files: Vec<String> = BESIDE
            .into_iter()
            .filter(|name| has(name))
            .map(str::to_owned)
            .collect();
        if wanted == Wanted::Texts {
            return Ok(Selection::Folder { files, index: None });
        }
        files.push(index.clone().unwrap_or_else(|| WEIGHTS.to_owned()));
        return Ok(Selection::Folder { files, index });
    }
    match &models(there)[..] {
        [] => Err(format!(
            "there is neither a GGUF file nor {} with {WEIGHTS} (or {INDEX}), and other formats are not loaded",
            BESIDE[0]
        )),
        [one] => whole(one),
        several => quantised(there, USUAL).map_err(|_| {
            let first = several.first().map_or("", |name| name.as_str());
            format!("it has several GGUF files; name one of them, as in :{first}")
        }),
    }
}

/// GGUF files that hold a model. Projectors for images and importance matrices are named by custom.
fn models(there: &[String]) -> Vec<&String> {
    let is_model = |file: &&String| {
        let name = file.to_ascii_lowercase();
        let stem = name.rsplit('/').next().unwrap_or_default();
        name.ends_with(".gguf") && !stem.contains("mmproj") && !stem.contains("imatrix")
    };
    there.iter().filter(is_model).collect()
}

/// The one GGUF file of a quantisation.
fn quantised(there: &[String], tag: &str) -> Result<Selection, String> {
    let tag = tag.to_ascii_lowercase();
    let is_tagged = |file: &&&String| {
        let name = file.to_ascii_lowercase();
        let stem = name.rsplit('/').next().unwrap_or_default();
        let stem = stem.strip_suffix(".gguf").unwrap_or(stem);
        let stem = part_of_split(stem).map_or(stem, |(before, _)| before);
        let before = stem.strip_suffix(tag.as_str());
        before.is_some_and(|before| before.is_empty() || before.ends_with(['-', '.', '_']))
    };
    let models = models(there);
    let found: Vec<_> = models.iter().filter(is_tagged).collect();
    match found[..] {
        [] => Err(format!("no GGUF file is called {tag}")),
        [one] => whole(one),
        [first, ..] if part_of_split(first.strip_suffix(".gguf").unwrap_or(first)).is_some() => {
            whole(first)
        }
        [first, ..] => Err(format!(
            "several GGUF files are called {tag}; name one of them, as in :{first}"
        )),
    }
}

/// A file that is a whole model.
fn whole(file: &str) -> Result<Selection, String> {
    let stem = file.strip_suffix(".gguf").unwrap_or(file);
    match part_of_split(stem) {
        Some((_, parts)) => Err(format!(
            "{file} is one of {parts} parts of a model, which are not read; take a file that is whole, or join them with \
             llama-gguf-split --merge"
        )),
        None => Ok(Selection::Gguf(file.to_owned())),
    }
}

/// Of a stem such as `model-00001-of-00003` what stands before the numbers, and of how many parts it is one.
fn part_of_split(stem: &str) -> Option<(&str, u32)> {
    let (rest, parts) = stem.rsplit_once("-of-")?;
    let (before, number) = rest.rsplit_once('-')?;
    number.parse::<u32>().ok()?;
    Some((before, parts.parse().ok()?))
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The files that an index names.
///
/// # Errors
/// With what is wrong with it.
pub(crate) fn shards(index: &[u8]) -> Result<BTreeSet<String>, String> {
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| format!("{INDEX} is not an index: {error}"))?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    let is_plain =
        |file: &String| is_inside(file) && !file.contains('/') && file.ends_with(".safetensors");
    match files.iter().find(|file| !is_plain(file)) {
        Some(file) => Err(format!(
            "{INDEX} names {file:?}, which is no .safetensors file beside it"
        )),
        None => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn pick(there: &[&str], choice: Option<&str>) -> Result<Selection, String> {
        let there: Vec<String> = there.iter().map(|&name| name.to_owned()).collect();
        select(&there, choice, Wanted::Model)
    }

    fn gguf(name: &str) -> Result<Selection, String> {
        Ok(Selection::Gguf(name.to_owned()))
    }

    #[test]
    fn a_folder_is_what_is_loaded_and_nothing_else() {
        let there = [
            "README.md",
            "config.json",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let files = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            pick(&there, None).unwrap(),
            Selection::Folder {
                files: files(&["config.json", "tokenizer.json", "model.safetensors"]),
                index: None
            }
        );
        let there = [
            "config.json",
            "model-1-of-2.safetensors",
            "model.safetensors.index.json",
        ];
        assert_eq!(
            pick(&there, None).unwrap(),
            Selection::Folder {
                files: files(&["config.json", INDEX]),
                index: Some(INDEX.to_owned())
            }
        );
        let there: Vec<String> = files(&["config.json", "model.safetensors"]);
        assert_eq!(
            select(&there, None, Wanted::Texts).unwrap(),
            Selection::Folder {
                files: files(&["config.json"]),
                index: None
            }
        );
        let why = pick(&["config.json", "pytorch_model.bin"], None).unwrap_err();
        assert!(why.contains("neither a GGUF file nor"), "{why}");
    }

    #[test]
    fn a_quantisation_names_a_file() {
        let there = [
            "m-F16.gguf",
            "m-Q4_K_M.gguf",
            "m.Q8_0.gguf",
            "mmproj-m-Q8_0.gguf",
            "old/m-IQ4_NL.gguf",
        ];
        assert_eq!(pick(&there, None), gguf("m-Q4_K_M.gguf"));
        assert_eq!(pick(&there, Some("q8_0")), gguf("m.Q8_0.gguf"));
        assert_eq!(pick(&there, Some("IQ4_NL")), gguf("old/m-IQ4_NL.gguf"));
        assert_eq!(pick(&there, Some("m-F16.gguf")), gguf("m-F16.gguf"));
        assert!(pick(&there, Some("K_M")).is_ok());
        for (choice, word) in [("Q5_K_M", "no GGUF file"), ("x.gguf", "no file x.gguf")] {
            let why = pick(&there, Some(choice)).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
        let why = pick(&["a-Q8_0.gguf", "b-Q8_0.gguf"], Some("Q8_0")).unwrap_err();
        assert!(why.contains(":a-Q8_0.gguf"), "{why}");
        let why = pick(&["a-Q8_0.gguf", "b-F16.gguf"], None).unwrap_err();
        assert!(why.contains("several"), "{why}");
        assert_eq!(pick(&["only.gguf"], None), gguf("only.gguf"));
    }

    #[test]
    fn parts_of_a_model_are_refused_before_they_are_fetched() {
        let there = ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"];
        for choice in [Some("Q8_0"), Some(there[1])] {
            let why = pick(&there, choice).unwrap_err();
            assert!(why.contains("2 parts"), "{why}");
        }
    }

    #[test]
    fn an_index_names_files_beside_it() {
        let files = shards(br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}"#).unwrap();
        assert_eq!(
            files.into_iter().collect::<Vec<_>>(),
            ["1.safetensors", "2.safetensors"]
        );
        for bad in [
            r#"{"weight_map": {"a": "../1.safetensors"}}"#,
            r#"{"weight_map": {"a": "/1.safetensors"}}"#,
            r#"{"weight_map": {"a": "1.bin"}}"#,
            r#"{"weight_map": []}"#,
            "",
        ] {
            assert!(shards(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
