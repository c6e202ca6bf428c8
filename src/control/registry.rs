//! The files that say which agents run.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::disk::{DiskError, IoContext, Lock, LockError};

/// What the files of agents end in.
const ENDING: &str = "agent";

/// How long others, which only look, may have an agent's file.
const LOOK_TIME: Duration = Duration::from_secs(5);

/// A running agent, as its file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub url: String,
    /// What it wants to see.
    pub token: String,
    /// Its folders, without links in their paths.
    pub folders: Vec<PathBuf>,
}

/// An agent's entry. Dropped, or when the process ends, it is gone.
#[derive(Debug)]
pub struct Registration {
    lock: Lock,
    path: PathBuf,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // One that is left is not locked, and counts for nothing.
        let _ = fs::remove_file(&self.path);
    }
}

/// Why an agent cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Another agent has a folder.
    #[error("{} is watched already, by process {pid}", dir.display())]
    Watched {
        /// The folder.
        dir: PathBuf,
        /// The other agent.
        pid: u32,
    },
    /// The directory of the files.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Registration {
    /// Enters an agent with these folders, before it begins with them.
    ///
    /// # Errors
    /// If another agent has one of them, or the directory cannot be used.
    pub fn claim(dir: &Path, folders: &[PathBuf]) -> Result<Self, RegistryError> {
        private_dir(dir)?;
        // One at a time, so that no two claim the same.
        let _claiming = held(&dir.join("claims.lock"))?;
        let (agents, stale) = agents(dir);
        for path in stale {
            let _ = fs::remove_file(path);
        }
        for agent in agents {
            if let Some(dir) = agent.folders.iter().find(|dir| folders.contains(dir)) {
                return Err(RegistryError::Watched { dir: dir.clone(), pid: agent.pid });
            }
        }
        let path = dir.join(format!("{}.{ENDING}", std::process::id()));
        private_file(&path)?;
        let mut lock = held(&path)?;
        let record = Record {
            pid: std::process::id(),
            url: String::new(),
            token: String::new(),
            folders: folders.to_vec(),
        };
        lock.note(&text(&record))?;
        Ok(Self { lock, path })
    }

    /// Says where the agent listens, and what it wants to see there.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn listening(
        &mut self,
        url: &str,
        token: &str,
        folders: &[PathBuf],
    ) -> Result<(), RegistryError> {
        let record = Record {
            pid: std::process::id(),
            url: url.to_owned(),
            token: token.to_owned(),
            folders: folders.to_vec(),
        };
        Ok(self.lock.note(&text(&record))?)
    }
}

fn text(record: &Record) -> String {
    serde_json::to_string(record).expect("BUG: a record is plain data")
}

/// The agents that run, and files of those that do not any more.
pub(super) fn agents(dir: &Path) -> (Vec<Record>, Vec<PathBuf>) {
    let (mut running, mut stale) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|ending| ending != ENDING) {
            continue;
        }
        match Lock::acquire(&path) {
            Ok(_) => stale.push(path),
            Err(LockError::Held { note }) => match serde_json::from_str(&note) {
                Ok(record) => running.push(record),
                Err(error) => tracing::debug!("{}: {error}", path.display()),
            },
            Err(LockError::Disk(error)) => tracing::debug!("{error}"),
        }
    }
    (running, stale)
}

/// A lock that others have for a moment only.
fn held(path: &Path) -> Result<Lock, DiskError> {
    let start = Instant::now();
    loop {
        match Lock::acquire(path) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) if start.elapsed() < LOOK_TIME => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(LockError::Held { .. }) => {
                return Err(std::io::Error::from(std::io::ErrorKind::WouldBlock)).on("lock", path);
            }
            Err(LockError::Disk(error)) => return Err(error),
        }
    }
}

/// Makes a directory that only its user can look into; one that is there must be like that.
fn private_dir(dir: &Path) -> Result<(), DiskError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).on("make", dir)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Fails for one that belongs to somebody else.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).on("make private", dir)?;
    }
    Ok(())
}

fn private_file(path: &Path) -> Result<(), DiskError> {
    let mut options = fs::File::options();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).on("make", path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_found_while_they_run_and_one_folder_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("agents");
        let folders = [PathBuf::from("/a"), PathBuf::from("/b")];
        let mut entry = Registration::claim(&registry, &folders).unwrap();
        entry.listening("http://127.0.0.1:1/", "secret", &folders).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            for (path, mode) in [(&registry, 0o700), (&entry.path, 0o600)] {
                assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode);
            }
        }
        let (running, stale) = agents(&registry);
        assert_eq!((running.len(), stale.len()), (1, 0));
        assert_eq!(running[0].folders, folders);
        match Registration::claim(&registry, &["/b".into()]) {
            Err(RegistryError::Watched { dir, pid }) => {
                assert_eq!((dir, pid), ("/b".into(), std::process::id()));
            }
            other => panic!("{other:?}"),
        }
        // As after a kill: the file stays, and nobody holds it.
        let path = entry.path.clone();
        let text = fs::read(&path).unwrap();
        drop(entry);
        fs::write(&path, text).unwrap();
        let (running, stale) = agents(&registry);
        assert_eq!((running.len(), stale), (0, vec![path]));
        Registration::claim(&registry, &["/b".into()]).unwrap();
    }
}
