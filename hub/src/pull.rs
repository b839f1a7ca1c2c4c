//! Fetching a model: which files it needs, and each of them until it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::cache::{Cached, beside, checksum, make_parent, shards_of};
use crate::client::{Client, Described, Failure, Listing, PROGRESS};
use crate::error::HubError;
use crate::name::HubName;
use crate::select::{Selection, Wanted, select};
use crate::settings::Settings;
use crate::watch::Watch;

/// A hub and its cache.
pub struct Hub {
    settings: Settings,
}

impl Hub {
    /// One with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Hub {
        Hub { settings }
    }

    /// The path of a model, fetched unless it is in the cache already. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`HubError`] says what to do.
    pub fn pull(
        &self,
        name: &HubName,
        wanted: Wanted,
        watch: &mut dyn Watch,
    ) -> Result<PathBuf, HubError> {
        let cached = Cached::of(&self.settings.cache, name);
        let found = cached.find(name, wanted);
        if self.settings.offline {
            return found.map_err(|reason| HubError::Offline {
                model: name.to_string(),
                cache: self.settings.cache.clone(),
                reason,
            });
        }
        // A commit never changes.
        if let (Ok(path), true) = (
            &found,
            cached.commit(name.revision()).as_deref() == Some(name.revision()),
        ) {
            return Ok(path.clone());
        }
        let client = Client::new(&self.settings)?;
        let listing = match (client.list(name), found) {
            (Err(HubError::Unreachable { reason, .. }), Ok(path)) => {
                watch.note(&format!(
                    "{name} is taken from the cache, because the hub cannot be reached: {reason}"
                ));
                return Ok(path);
            }
            (listing, _) => listing?,
        };
        let pull = Pull {
            client: &client,
            name,
            cached: &cached,
            listing: &listing,
        };
        let path = pull.model(wanted, watch)?;
        cached.set_commit(name.revision(), &listing.commit)?;
        Ok(path)
    }
}

/// One revision that is fetched.
struct Pull<'a> {
    client: &'a Client,
    name: &'a HubName,
    cached: &'a Cached,
    listing: &'a Listing,
}

impl Pull<'_> {
    fn model(&self, wanted: Wanted, watch: &mut dyn Watch) -> Result<PathBuf, HubError> {
        let no_file = |reason| HubError::NoFile {
            model: self.name.to_string(),
            reason,
            there: self.listing.files.clone(),
        };
        let snapshot = self.cached.snapshot(&self.listing.commit);
        match select(&self.listing.files, self.name.choice.as_deref(), wanted).map_err(no_file)? {
            Selection::Gguf(file) => {
                self.files(std::slice::from_ref(&file), watch)?;
                Ok(snapshot.join(file))
            }
            Selection::Folder { files, index } => {
                self.files(&files, watch)?;
                if let Some(index) = index {
                    let shards = shards_of(&snapshot.join(index)).map_err(no_file)?;
                    if let Some(file) = shards
                        .iter()
                        .find(|file| !self.listing.files.contains(file))
                    {
                        return Err(no_file(format!(
                            "{file}, which its index names, is missing"
                        )));
                    }
                    self.files(&shards, watch)?;
                }
                Ok(snapshot)
            }
        }
    }

    /// Fetches those of the files that are not there.
    fn files(&self, files: &[String], watch: &mut dyn Watch) -> Result<(), HubError> {
        let snapshot = self.cached.snapshot(&self.listing.commit);
        let mut missing = Vec::new();
        for file in files.iter().filter(|file| !snapshot.join(file).is_file()) {
            let described = self
                .client
                .describe(self.name, &self.listing.commit, file)?;
            missing.push((file, described));
        }
        self.room(missing.iter().map(|(_, described)| described))?;
        for (file, described) in &missing {
            self.file(file, described, watch)?;
        }
        Ok(())
    }

    /// Refuses what would not fit, before anything is fetched.
    fn room<'b>(&self, missing: impl Iterator<Item = &'b Described>) -> Result<(), HubError> {
        let blobs = self.cached.blob("");
        let length = |path: &Path| fs::metadata(path).map_or(0, |data| data.len());
        let needed = missing
            .filter(|one| !self.cached.blob(&one.etag).is_file())
            .map(|one| {
                one.size
                    .saturating_sub(length(&incomplete(&self.cached.blob(&one.etag))))
            })
            .fold(0_u64, u64::saturating_add);
        if needed == 0 {
            return Ok(());
        }
        fs::create_dir_all(&blobs).map_err(HubError::io(&blobs))?;
        let free =
            rustix::fs::statvfs(&blobs).map(|stats| stats.f_bavail.saturating_mul(stats.f_frsize));
        match free {
            Ok(free) if free < needed => Err(HubError::DiskFull {
                folder: blobs,
                needed,
                free,
            }),
            // A file system that does not say may have room.
            _ => Ok(()),
        }
    }

    /// Fetches one file, if no other process does it first.
    fn file(
        &self,
        file: &str,
        described: &Described,
        watch: &mut dyn Watch,
    ) -> Result<(), HubError> {
        let blob = self.cached.blob(&described.etag);
        let _lock = self.cached.lock(&described.etag, watch)?;
        if !blob.is_file() {
            make_parent(&blob)?;
            self.blob(file, described, &blob, watch)?;
        }
        self.cached
            .link(&self.listing.commit, file, &described.etag)
    }

    fn blob(
        &self,
        file: &str,
        described: &Described,
        blob: &Path,
        watch: &mut dyn Watch,
    ) -> Result<(), HubError> {
        let part = incomplete(blob);
        let open = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&part);
        let mut content = Content {
            file: open.map_err(HubError::io(&part))?,
            path: &part,
            size: described.size,
            have: 0,
        };
        let have = content.file.metadata().map_err(HubError::io(&part))?.len();
        let mut was_there = have > 0;
        match have <= described.size {
            true => content.have = have,
            false => content.restart()?,
        }
        loop {
            watch.begin(file, content.have, described.size);
            let received = self.receive(file, &mut content, watch);
            watch.end();
            received?;
            let found = checksum(&part, &described.etag)?;
            if found == described.etag {
                break;
            }
            if was_there {
                // What an earlier process left may be to blame.
                was_there = false;
                content.restart()?;
                continue;
            }
            fs::remove_file(&part).map_err(HubError::io(&part))?;
            return Err(HubError::Checksum {
                model: self.name.to_string(),
                file: file.to_owned(),
                expected: described.etag.clone(),
                found,
            });
        }
        content.file.sync_all().map_err(HubError::io(&part))?;
        fs::rename(&part, blob).map_err(HubError::io(blob))
    }

    /// Asks for what is missing until nothing is.
    fn receive(
        &self,
        file: &str,
        content: &mut Content<'_>,
        watch: &mut dyn Watch,
    ) -> Result<(), HubError> {
        let url = self.client.file_url(self.name, &self.listing.commit, file);
        // The most that ever was there: a server that sends only beginnings makes no progress.
        let mut most = content.have;
        self.client.tries(&url, |progressed| {
            if content.have == content.size {
                return Ok(());
            }
            let (body, is_part) = self.client.fetch(&url, self.name, file, content.have)?;
            if !is_part {
                content.restart()?;
            }
            let received = content.receive(body, watch);
            if content.have >= most.saturating_add(PROGRESS) {
                most = content.have;
                *progressed = true;
            }
            received
        })
    }
}

/// The content of a file, as far as it has arrived.
struct Content<'a> {
    file: File,
    path: &'a Path,
    /// What it will have.
    size: u64,
    /// What it has.
    have: u64,
}

impl Content<'_> {
    fn restart(&mut self) -> Result<(), HubError> {
        self.have = 0;
        self.file.set_len(0).map_err(HubError::io(self.path))
    }

    fn receive(&mut self, mut body: impl Read, watch: &mut dyn Watch) -> Result<(), Failure> {
        self.file
            .seek(SeekFrom::Start(self.have))
            .map_err(HubError::io(self.path))?;
        let mut buffer = vec![0; 1 << 17];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) if self.have == self.size => return Ok(()),
                Ok(0) => {
                    let (have, size) = (self.have, self.size);
                    return Err(Failure::Again(format!(
                        "the connection ended after {have} of {size} bytes"
                    )));
                }
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Again(error.to_string())),
            };
            if self.have.saturating_add(n as u64) > self.size {
                self.restart()?;
                return Err(Failure::Again(
                    "it sends more bytes than it has announced".to_owned(),
                ));
            }
            if let Err(error) = self.file.write_all(&buffer[..n]) {
                return Err(self.not_written(error).into());
            }
            self.have += n as u64;
            watch.at(self.have);
        }
    }

    fn not_written(&self, error: io::Error) -> HubError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => HubError::DiskFull {
                folder: self.path.parent().unwrap_or(self.path).to_owned(),
                needed: self.size - self.have,
                free: 0,
            },
            _ => HubError::io(self.path)(error),
        }
    }
}

/// Where a content is until it is whole.
fn incomplete(blob: &Path) -> PathBuf {
    beside(blob, ".incomplete")
}
