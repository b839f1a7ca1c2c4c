//! The folder in which files of hubs are kept, laid out as huggingface_hub has it: each finds what the other has fetched.
//!
//! Of a repository `blobs/` has contents under their checksums, `snapshots/COMMIT/` names of files that point at them, and
//! `refs/` the commit that a branch or a tag was at.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use crate::error::HubError;
use crate::name::{HubName, is_commit};
use crate::select::{Selection, Wanted, select, shards};
use crate::watch::Watch;

/// Folders within folders of a snapshot that are looked into.
const MOST_DEPTH: usize = 8;
/// The largest index of shards that is read, in bytes.
const MOST_INDEX_BYTES: u64 = 32 << 20;
/// The longest name of a commit in a file is shorter.
const MOST_REF_BYTES: u64 = 4096;

/// One repository in a cache.
#[derive(Clone, Debug)]
pub(crate) struct Cached {
    root: PathBuf,
    locks: PathBuf,
}

impl Cached {
    pub(crate) fn of(cache: &Path, name: &HubName) -> Cached {
        Cached {
            root: cache.join(name.folder()),
            locks: cache.join(".locks").join(name.folder()),
        }
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The commit that a revision was at when it was last asked for.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let mut text = String::new();
        let file = File::open(self.root.join("refs").join(revision)).ok()?;
        file.take(MOST_REF_BYTES).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes where a revision is.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        make_parent(&path)?;
        // Whole or not at all, also for somebody who reads it meanwhile.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let new = beside(&path, &format!(".{}-{number}.tmp", std::process::id()));
        fs::write(&new, commit).map_err(HubError::io(&new))?;
        fs::rename(&new, &path).map_err(HubError::io(&path))
    }

    /// Finds a model without a network.
    ///
    /// # Errors
    /// With what is missing.
    pub(crate) fn find(&self, name: &HubName, wanted: Wanted) -> Result<PathBuf, String> {
        let revision = name.revision();
        let commit = self
            .commit(revision)
            .ok_or_else(|| format!("nothing of its revision {revision} is there"))?;
        let snapshot = self.snapshot(&commit);
        let there = files(&snapshot);
        match select(&there, name.choice.as_deref(), wanted)? {
            Selection::Gguf(file) => Ok(snapshot.join(file)),
            Selection::Folder { index: None, .. } => Ok(snapshot),
            Selection::Folder {
                index: Some(index), ..
            } => {
                let missing = |file: &String| !there.contains(file);
                match shards_of(&snapshot.join(index))?.into_iter().find(missing) {
                    Some(file) => Err(format!("{file} is missing")),
                    None => Ok(snapshot),
                }
            }
        }
    }

    /// Waits until no other process fetches this content. Both keep a file locked while they do.
    pub(crate) fn lock(&self, etag: &str, watch: &mut dyn Watch) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let io = HubError::io(&path);
        let file = match OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
        {
            Ok(file) => file,
            Err(error) => return Err(io(error)),
        };
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                watch.note("waiting for another process that downloads the same file")
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        match file.lock() {
            Ok(()) => Ok(file),
            Err(error) => Err(io(error)),
        }
    }

    /// Gives a content its name in a snapshot.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let link = self.snapshot(commit).join(file);
        if link.is_file() {
            return Ok(());
        }
        make_parent(&link)?;
        // One that points nowhere is in the way.
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(HubError::io(&link)(error));
            }
            _ => {}
        }
        let up = "../".repeat(file.split('/').count() + 1);
        point(&self.blob(etag), &format!("{up}blobs/{etag}"), &link).map_err(HubError::io(&link))
    }
}

#[cfg(unix)]
fn point(_: &Path, blob: &str, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(blob, link)
}

/// Where links need a privilege the content is there a second time under its name, and no longer under its checksum.
#[cfg(not(unix))]
fn point(blob: &Path, _: &str, link: &Path) -> io::Result<()> {
    fs::rename(blob, link)
}

/// A path whose name is longer by an ending.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut longer = path.as_os_str().to_owned();
    longer.push(ending);
    longer.into()
}

pub(crate) fn make_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder).map_err(HubError::io(folder)),
        None => Ok(()),
    }
}

/// The files that an index on the disk names.
pub(crate) fn shards_of(index: &Path) -> Result<Vec<String>, String> {
    let mut content = Vec::new();
    let read =
        File::open(index).and_then(|file| file.take(MOST_INDEX_BYTES).read_to_end(&mut content));
    read.map_err(|error| format!("{}: {error}", index.display()))?;
    Ok(shards(&content)?.into_iter().collect())
}

/// The files of a folder that are there, named from it, with `/` between parts.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![(folder.to_owned(), String::new(), 0)];
    while let Some((folder, before, depth)) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let Some(name) = name.to_str() else { continue };
            let name = format!("{before}{name}");
            if path.is_file() {
                found.push(name);
            } else if path.is_dir() && depth < MOST_DEPTH {
                left.push((path, format!("{name}/"), depth + 1));
            }
        }
    }
    found.sort();
    found
}

/// The checksum of a file of the kind that `expected` is: SHA-256, or the name that Git would give it.
pub(crate) fn checksum(path: &Path, expected: &str) -> Result<String, HubError> {
    let io = HubError::io(path);
    let summed = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut context = match expected.len() {
            64 => Context::new(&SHA256),
            _ => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {}\0", file.metadata()?.len()).as_bytes());
                context
            }
        };
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => context.update(&buffer[..n]),
            }
        }
        Ok(context
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    };
    summed().map_err(io)
}

/// A model in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is called: `owner/name`, or `owner/name:FILE.gguf`.
    pub name: String,
    /// The branch or tag that it was fetched as, or else the commit.
    pub revision: String,
    /// Its folder or file.
    pub path: PathBuf,
    /// Bytes of what is loaded of it.
    pub bytes: u64,
    /// What of it is missing, if anything.
    pub missing: Option<String>,
}

/// The models that are in a cache, by name.
#[must_use]
pub fn entries(cache: &Path) -> Vec<Entry> {
    let mut found = Vec::new();
    for folder in fs::read_dir(cache).into_iter().flatten().flatten() {
        let folder_name = folder.file_name();
        let name = folder_name.to_str().and_then(repository_of);
        let Some(name) = name.and_then(|name| HubName::parse(&name).ok()) else {
            continue;
        };
        let cached = Cached::of(cache, &name);
        let refs = cached.root.join("refs");
        let revisions: BTreeMap<String, String> = (files(&refs).into_iter())
            .filter_map(|revision| Some((cached.commit(&revision)?, revision)))
            .collect();
        for snapshot in fs::read_dir(cached.root.join("snapshots"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let Some(commit) = snapshot
                .file_name()
                .to_str()
                .filter(|commit| is_commit(commit))
                .map(str::to_owned)
            else {
                continue;
            };
            let revision = revisions.get(&commit).unwrap_or(&commit).clone();
            found.extend(models_of(&snapshot.path(), &name, &revision));
        }
    }
    found.sort_by(|a, b| (&a.name, &a.revision).cmp(&(&b.name, &b.revision)));
    found
}

fn models_of(snapshot: &Path, name: &HubName, revision: &str) -> Vec<Entry> {
    let there = files(snapshot);
    let bytes = |file: &String| fs::metadata(snapshot.join(file)).map_or(0, |data| data.len());
    let entry = |name: String, path: PathBuf, files: &[String], missing: Option<String>| Entry {
        name,
        revision: revision.to_owned(),
        path,
        bytes: files.iter().map(bytes).sum(),
        missing,
    };
    let mut found = Vec::new();
    for file in there
        .iter()
        .filter(|file| file.to_ascii_lowercase().ends_with(".gguf"))
    {
        let name = format!("{}:{file}", name.repository);
        found.push(entry(
            name,
            snapshot.join(file),
            std::slice::from_ref(file),
            None,
        ));
    }
    if there.iter().any(|file| file == "config.json") {
        let chosen = select(&there, None, Wanted::Model);
        let (files, missing) = match chosen {
            Ok(Selection::Folder { mut files, index }) => {
                let shards = match index {
                    Some(index) => shards_of(&snapshot.join(index)),
                    None => Ok(Vec::new()),
                };
                match shards {
                    Ok(shards) => {
                        let missing = shards.iter().find(|shard| !there.contains(shard));
                        let missing = missing.map(|shard| format!("{shard} is missing"));
                        files.extend(shards);
                        (files, missing)
                    }
                    Err(why) => (files, Some(why)),
                }
            }
            // Beside GGUF files a configuration is only information.
            Ok(Selection::Gguf(_)) | Err(_) if !found.is_empty() => return found,
            Ok(Selection::Gguf(_)) => return found,
            Err(_) => (there.clone(), Some("it has no weights".to_owned())),
        };
        found.push(entry(
            name.repository.clone(),
            snapshot.to_owned(),
            &files,
            missing,
        ));
    }
    found
}

/// The repository whose folder has this name in a cache.
fn repository_of(folder: &str) -> Option<String> {
    let (owner, name) = folder.strip_prefix("models--")?.split_once("--")?;
    Some(format!("{owner}/{name}"))
}

/// The repository that a path of a cache belongs to: `owner/name`.
#[must_use]
pub fn repository_at(path: &Path) -> Option<String> {
    let parts: Vec<&str> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let is_snapshot = |part: &&[&str]| part[1] == "snapshots" && is_commit(part[2]);
    parts
        .windows(3)
        .rev()
        .find(is_snapshot)
        .and_then(|part| repository_of(part[0]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn name(text: &str) -> HubName {
        HubName::parse(text).unwrap()
    }

    /// A cache with one repository that has these files.
    fn cache(files: &[(&str, &str)]) -> (tempfile::TempDir, Cached) {
        let dir = tempfile::tempdir().unwrap();
        let cached = Cached::of(dir.path(), &name("o/n"));
        for (number, (file, content)) in files.iter().enumerate() {
            let etag = format!("{number:040}");
            make_parent(&cached.blob(&etag)).unwrap();
            fs::write(cached.blob(&etag), content).unwrap();
            cached.link(COMMIT, file, &etag).unwrap();
        }
        cached.set_commit("main", COMMIT).unwrap();
        (dir, cached)
    }

    #[test]
    fn the_layout_is_that_of_the_other_tools() {
        let (dir, cached) = cache(&[("config.json", "{}"), ("a/b/x.gguf", "GGUF")]);
        let root = dir.path().join("models--o--n");
        assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
        let deep = cached.snapshot(COMMIT).join("a/b/x.gguf");
        assert_eq!(
            fs::read_link(&deep).unwrap(),
            PathBuf::from(format!("../../../../blobs/{:040}", 1))
        );
        assert_eq!(fs::read_to_string(&deep).unwrap(), "GGUF");
        assert_eq!(cached.find(&name("o/n"), Wanted::Model).unwrap(), deep);
        assert_eq!(
            cached
                .find(&name(&format!("o/n@{COMMIT}")), Wanted::Model)
                .unwrap(),
            deep
        );
    }

    #[test]
    fn a_folder_is_found_if_it_is_whole() {
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        let files = [
            ("config.json", "{}"),
            ("model.safetensors.index.json", index),
            ("1.safetensors", ""),
        ];
        let (_dir, cached) = cache(&files);
        let why = cached.find(&name("o/n"), Wanted::Model).unwrap_err();
        assert!(why.contains("2.safetensors is missing"), "{why}");
        assert!(cached.find(&name("o/n"), Wanted::Texts).is_ok());
        let why = cached.find(&name("o/n@other"), Wanted::Model).unwrap_err();
        assert!(why.contains("revision other"), "{why}");
        let whole = [&files[..], &[("2.safetensors", "")]].concat();
        let (_dir, cached) = cache(&whole);
        assert_eq!(
            cached.find(&name("o/n"), Wanted::Model).unwrap(),
            cached.snapshot(COMMIT)
        );
    }

    #[test]
    fn entries_say_what_is_there() {
        let (dir, _) = cache(&[
            ("config.json", "{}"),
            ("model.safetensors", "1234"),
            ("x-Q8_0.gguf", "GGUF"),
        ]);
        fs::create_dir_all(dir.path().join("datasets--o--n/snapshots")).unwrap();
        fs::create_dir_all(dir.path().join("models--odd")).unwrap();
        let found = entries(dir.path());
        let seen: Vec<_> = found
            .iter()
            .map(|one| (one.name.as_str(), one.revision.as_str(), one.bytes))
            .collect();
        assert_eq!(seen, [("o/n", "main", 6), ("o/n:x-Q8_0.gguf", "main", 4)]);
        assert!(found.iter().all(|one| one.missing.is_none()));
        assert_eq!(repository_at(&found[0].path).as_deref(), Some("o/n"));
        assert_eq!(repository_at(&found[1].path).as_deref(), Some("o/n"));
        assert_eq!(repository_at(Path::new("/models/target")), None);
        assert!(entries(Path::new("/none")).is_empty());
        let (dir, _) = cache(&[("config.json", "{}")]);
        assert!(entries(dir.path())[0].missing.is_some());
    }

    #[test]
    fn checksums_are_those_of_sha256_and_git() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "hello\n").unwrap();
        // As sha256sum and git hash-object print them.
        assert_eq!(
            checksum(&file, &"0".repeat(64)).unwrap(),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
        assert_eq!(
            checksum(&file, &"0".repeat(40)).unwrap(),
            "ce013625030ba8dba906f756967f9e9ca394464a"
        );
    }
}
