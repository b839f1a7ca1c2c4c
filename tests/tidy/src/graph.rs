//! The dependency graph, as `cargo metadata` resolves it for this machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The cargo that runs this test, or the one on the path outside of cargo.
#[must_use]
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// What a dependency is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Linked into what users run.
    Normal,
    /// Linked into tests, examples and benches only.
    Development,
    /// Linked into build scripts only.
    Build,
}

impl Kind {
    /// The word in cargo's answer; a normal dependency has none.
    fn word(self) -> Option<&'static str> {
        match self {
            Self::Normal => None,
            Self::Development => Some("dev"),
            Self::Build => Some("build"),
        }
    }
}

/// Why there is no graph.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// Cargo cannot be run.
    #[error("cannot run cargo: {0}")]
    Run(#[from] std::io::Error),
    /// Cargo ran and refused.
    #[error("cargo metadata failed: {0}")]
    Refused(String),
    /// Cargo's answer is not the documented one (cargo-metadata(1), version 1).
    #[error("cannot read what cargo metadata said: {0}")]
    Format(String),
}

/// One package of the graph.
#[derive(Debug)]
struct Package {
    name: String,
    description: String,
    manifest: PathBuf,
    /// Identity of each direct dependency with the kinds it has.
    below: Vec<(String, Vec<Option<String>>)>,
}

/// The members of the workspace, named by their folders, and all that they
/// depend on.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    packages: BTreeMap<String, Package>,
    folders: BTreeMap<String, String>,
}

impl Workspace {
    /// Asks cargo. The answer is for this machine's platform, because a fresh
    /// clone has the manifests of no other.
    ///
    /// # Errors
    /// When cargo cannot resolve the workspace.
    pub fn load() -> Result<Self, GraphError> {
        let mut command = Command::new(cargo());
        command
            .args(["metadata", "--format-version", "1", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        if cfg!(all(target_os = "linux", target_env = "gnu")) {
            let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
            command.args(["--filter-platform", &host]);
        }
        let answer = command.output()?;
        if !answer.status.success() {
            let said = String::from_utf8_lossy(&answer.stderr).into_owned();
            return Err(GraphError::Refused(said));
        }
        Self::parse(&answer.stdout)
    }

    /// Reads cargo's answer.
    ///
    /// # Errors
    /// When it is not the documented one.
    pub fn parse(metadata: &[u8]) -> Result<Self, GraphError> {
        let metadata: Value = serde_json::from_slice(metadata)
            .map_err(|error| GraphError::Format(error.to_string()))?;
        Self::read(&metadata).ok_or_else(|| GraphError::Format("a field is missing".to_owned()))
    }

    fn read(metadata: &Value) -> Option<Self> {
        let root = PathBuf::from(metadata["workspace_root"].as_str()?);
        let mut packages = BTreeMap::new();
        for package in metadata["packages"].as_array()? {
            let read = Package {
                name: package["name"].as_str()?.to_owned(),
                description: package["description"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                manifest: PathBuf::from(package["manifest_path"].as_str()?),
                below: Vec::new(),
            };
            packages.insert(package["id"].as_str()?.to_owned(), read);
        }
        for node in metadata["resolve"]["nodes"].as_array()? {
            let package = packages.get_mut(node["id"].as_str()?)?;
            for dep in node["deps"].as_array()? {
                let kinds = dep["dep_kinds"].as_array()?.iter();
                let kinds = kinds.map(|info| info["kind"].as_str().map(str::to_owned));
                let id = dep["pkg"].as_str()?.to_owned();
                package.below.push((id, kinds.collect()));
            }
        }
        let mut folders = BTreeMap::new();
        for member in metadata["workspace_members"].as_array()? {
            let id = member.as_str()?;
            let folder = packages.get(id)?.manifest.parent()?;
            let below = folder.strip_prefix(&root).ok()?.to_str()?;
            folders.insert(below.replace('\\', "/"), id.to_owned());
        }
        Some(Self {
            root,
            packages,
            folders,
        })
    }

    /// The repository's root folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folders of all members, sorted.
    pub fn members(&self) -> impl Iterator<Item = &str> {
        self.folders.keys().map(String::as_str)
    }

    /// What `folder`'s manifest says the crate is; empty if it says nothing.
    #[must_use]
    pub fn description(&self, folder: &str) -> &str {
        &self.package(self.id(folder)).description
    }

    /// The members on which `folder` depends directly, as folders.
    #[must_use]
    pub fn members_below(&self, folder: &str, kind: Kind) -> BTreeSet<String> {
        let below: BTreeSet<_> = self.direct(self.id(folder), kind).collect();
        self.folders
            .iter()
            .filter(|(_, id)| below.contains(id.as_str()))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The packages outside the workspace on which `folder` depends directly, by name.
    #[must_use]
    pub fn packages_below(&self, folder: &str, kind: Kind) -> BTreeSet<String> {
        self.direct(self.id(folder), kind)
            .filter(|id| !self.folders.values().any(|member| member == id))
            .map(|id| self.package(id).name.clone())
            .collect()
    }

    /// Every package that `folder` links into what users run, with the chain of
    /// names by which it gets there, `folder`'s own package first.
    #[must_use]
    pub fn linked(&self, folder: &str) -> BTreeMap<String, Vec<String>> {
        let start = self.id(folder);
        let mut found = BTreeMap::new();
        let mut seen = BTreeSet::from([start]);
        let mut queue = VecDeque::from([(start, vec![self.package(start).name.clone()])]);
        while let Some((id, chain)) = queue.pop_front() {
            for next in self.direct(id, Kind::Normal) {
                if seen.insert(next) {
                    let name = &self.package(next).name;
                    let mut longer = chain.clone();
                    longer.push(name.clone());
                    found.entry(name.clone()).or_insert(longer.clone());
                    queue.push_back((next, longer));
                }
            }
        }
        found
    }

    fn direct(&self, id: &str, kind: Kind) -> impl Iterator<Item = &str> {
        let below = &self.package(id).below;
        below
            .iter()
            .filter(move |(_, kinds)| kinds.iter().any(|word| word.as_deref() == kind.word()))
            .map(|(id, _)| id.as_str())
    }

    fn package(&self, id: &str) -> &Package {
        let found = self.packages.get(id);
        found.expect("every identity in the graph is a package of the answer")
    }

    fn id(&self, folder: &str) -> &str {
        match self.folders.get(folder) {
            Some(id) => id,
            None => panic!("no member lies in {folder}; there are {:?}", self.folders),
        }
    }
}
