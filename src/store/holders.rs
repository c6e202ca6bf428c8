//! Checkouts, and what they hold: listed, weighed, checked, erased; and why a blob is kept.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use super::{
    EraseError, Store, Work,
    gc::{MIN_AGE, is_young, names_of},
    layout::Layout,
    records::{Record, digest_of, unix_s},
    scrub::content,
    walk::{Held, Item, Walk},
};
use crate::{
    disk::{DiskError, Fingerprint, IoContext},
    domain::{
        BlobId, CheckoutPath, Digest, Entry, RelPath,
        report::{
            Amount, CheckoutInfo, CheckoutProblem, LinkMode, Usage, UsageOf, VerifyReport, Why,
            WhyBlob,
        },
    },
};

/// How many holders or problems are told one by one.
const TOLD: usize = 1000;

/// Everything in a checkout that is no directory: where, and what.
type Contents = Vec<(PathBuf, Held)>;

impl Store {
    /// All checkouts, sorted by path: those on record, and those that look like one.
    ///
    /// # Errors
    /// If something cannot be listed.
    pub fn checkouts(&self) -> Result<Vec<CheckoutInfo>, DiskError> {
        let mut known: HashMap<String, Record> = HashMap::new();
        for (path, record) in self.records()? {
            known.insert(path.as_str().to_owned(), record);
        }
        let mut found = Vec::new();
        self.find_checkouts(&self.layout.jobs(), "", &mut known, &mut found)?;
        found.extend(known.into_values().map(|record| info(record, true)));
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    fn find_checkouts(
        &self,
        dir: &Path,
        path: &str,
        known: &mut HashMap<String, Record>,
        found: &mut Vec<CheckoutInfo>,
    ) -> Result<(), DiskError> {
        if let Some(record) = known.remove(path) {
            found.push(info(record, false));
            return Ok(());
        }
        let as_path: Option<CheckoutPath> = path.parse().ok();
        if let Some(path) = &as_path {
            // The rest of a checkout that is being deleted is none.
            if self.erasing().contains_key(path) {
                return Ok(());
            }
            if self.looks_like_checkout(path)? {
                let files = match self.contents(dir) {
                    Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(()),
                    contents => contents?.len() as u64,
                };
                found.push(CheckoutInfo {
                    path: path.as_str().to_owned(),
                    created_s: None,
                    files,
                    bytes: None,
                    link_mode: None,
                    gone: false,
                });
                return Ok(());
            }
        }
        let mut dirs = Vec::new();
        let entries = match fs::read_dir(dir) {
            // Erased meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_empty() => {
                return Ok(());
            }
            entries => entries.on("list", dir)?,
        };
        for entry in entries {
            let entry = entry.on("list", dir)?;
            let name = entry.file_name();
            let kind = match entry.file_type() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                kind => kind.on("look at", &entry.path())?,
            };
            if kind.is_dir() {
                let is_ours = path.is_empty() && entry.path() == self.layout.building();
                match name.to_str() {
                    Some(name) if !is_ours => dirs.push(name.to_owned()),
                    Some(_) => {}
                    None => tracing::warn!("{} has no name in UTF-8", entry.path().display()),
                }
            }
        }
        for name in dirs {
            let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            self.find_checkouts(&dir.join(name), &below, known, found)?;
        }
        Ok(())
    }

    /// Everything in a directory that is no directory.
    fn contents(&self, dir: &Path) -> Result<Contents, DiskError> {
        let found = Mutex::new(Vec::new());
        let visit = |path: &Path, held: Held| {
            found.lock().expect("BUG: no one panics with this lock").push((path.to_owned(), held));
        };
        Walk::new(&visit).run(dir)?;
        Ok(found.into_inner().expect("BUG: no one panics with this lock"))
    }

    /// A checkout without a record below this path.
    pub(super) fn checkout_inside(&self, path: &CheckoutPath) -> Result<Option<String>, DiskError> {
        let mut found = Vec::new();
        let dir = self.layout.checkout(path);
        if !dir.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            return Ok(None);
        }
        self.find_checkouts(&dir, path.as_str(), &mut HashMap::new(), &mut found)?;
        Ok(found.into_iter().map(|info| info.path).find(|inside| inside != path.as_str()))
    }

    /// What fills the store.
    ///
    /// # Errors
    /// If something cannot be looked at.
    pub fn usage(&self) -> Result<Usage, DiskError> {
        let mut usage = Usage::default();
        // Of blobs whose files have other names: which blob a file in a checkout is.
        let mut hard_linked: HashMap<(u64, u64), BlobId> = HashMap::new();
        let mut sizes: HashSet<BlobId> = HashSet::new();
        for prefix in 0..=u8::MAX {
            let mut ids = Vec::new();
            self.blobs_with_prefix(prefix, |item| {
                if let Item::Blob(id) = item {
                    ids.push(id);
                }
            })?;
            for id in ids {
                let Some(found) = self.look(&id)?.filter(fs::Metadata::is_file) else { continue };
                usage.stored.add(found.len());
                sizes.insert(id);
                if names_of(&found) > 1 {
                    let print = Fingerprint::of(&found);
                    hard_linked.insert((print.device, print.inode), id);
                }
            }
        }
        for (_, file) in self.quarantined()? {
            if let Ok(found) = fs::symlink_metadata(&file) {
                usage.quarantined.add(found.len());
            }
        }

        let mut checkouts = Holders::default();
        let mut folders = Holders::default();
        for info in self.checkouts()? {
            if info.gone {
                continue;
            }
            let folder = info.path.split('/').next().unwrap_or_default();
            let (in_checkout, in_folder) = (checkouts.enter(&info.path), folders.enter(folder));
            let dir = self.layout.jobs().join(&info.path);
            for (_, held) in self.contents(&dir)? {
                let blob = match held {
                    Held::Link(id) => Some(id).filter(|id| sizes.contains(id)),
                    Held::File(found) => {
                        let print = Fingerprint::of(&found);
                        let known = hard_linked.get(&(print.device, print.inode)).copied();
                        if known.is_none() {
                            usage.copies.add(found.len());
                            checkouts.copy(in_checkout, found.len());
                            folders.copy(in_folder, found.len());
                        }
                        known
                    }
                    Held::Foreign => None,
                };
                checkouts.file(in_checkout, blob);
                folders.file(in_folder, blob);
            }
        }
        for id in checkouts.blobs.keys() {
            usage.held.add(id.size_bytes);
        }
        usage.not_held = Amount {
            blobs: usage.stored.blobs.saturating_sub(usage.held.blobs),
            bytes: usage.stored.bytes.saturating_sub(usage.held.bytes),
        };
        usage.checkouts = checkouts.finish();
        usage.folders = folders.finish();
        Ok(usage)
    }

    /// Why the blobs of a digest are kept, or when they may go.
    ///
    /// # Errors
    /// If something cannot be looked at.
    pub fn why(&self, digest: &Digest, max_age: Duration) -> Result<Why, DiskError> {
        let now = SystemTime::now();
        let mut blobs = Vec::new();
        for id in self.blobs_of(digest)? {
            let Some(found) = self.look(&id)?.filter(fs::Metadata::is_file) else { continue };
            let (_, file) = self.layout.blob(&id);
            let needed = found.modified().on("look at", &file)?;
            let (held_by, holders) = (Mutex::new(Vec::new()), Mutex::new(0));
            let other_names = names_of(&found) - 1;
            let print = Fingerprint::of(&found);
            let visit = |path: &Path, held: Held| {
                let holds = match held {
                    Held::Link(other) => other == id,
                    Held::File(found) => {
                        let other = Fingerprint::of(&found);
                        other_names > 0
                            && (other.device, other.inode) == (print.device, print.inode)
                    }
                    Held::Foreign => false,
                };
                if holds {
                    *holders.lock().expect("BUG: no one panics with this lock") += 1;
                    let mut told = held_by.lock().expect("BUG: no one panics with this lock");
                    if told.len() < TOLD {
                        let path = path.strip_prefix(self.layout.jobs()).unwrap_or(path);
                        told.push(path.to_string_lossy().into_owned());
                    }
                }
            };
            Walk::new(&visit).except(self.layout.building()).run(&self.layout.jobs())?;
            let mut held_by = held_by.into_inner().expect("BUG: no one panics with this lock");
            held_by.sort();
            let holders = holders.into_inner().expect("BUG: no one panics with this lock");
            let in_flight = self.inflight.get(&id).is_some();
            let only_age = holders == 0 && other_names == 0 && !in_flight;
            let may_go = needed + max_age.max(MIN_AGE);
            blobs.push(WhyBlob {
                size_bytes: id.size_bytes,
                needed_s: unix_s(needed),
                in_flight,
                other_names,
                held_by,
                holders,
                may_go_s: only_age.then(|| {
                    if is_young(needed, now, max_age) { unix_s(may_go) } else { unix_s(now) }
                }),
            });
        }
        let pinned = self.pins()?.contains(digest);
        if pinned {
            blobs.iter_mut().for_each(|blob| blob.may_go_s = None);
        }
        let quarantined = self.quarantined()?;
        let quarantined = quarantined.into_iter().filter(|(id, _)| id.digest == *digest);
        let quarantined = quarantined.map(|(_, file)| file.display().to_string()).collect();
        Ok(Why { digest: *digest, blobs, pinned, quarantined })
    }

    /// What is stored under a digest.
    fn blobs_of(&self, digest: &Digest) -> Result<Vec<BlobId>, DiskError> {
        let mut found = Vec::new();
        let (dir, _) = self.layout.blob(&BlobId { digest: *digest, size_bytes: 0 });
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error).on("list", &dir),
        };
        for entry in entries {
            let path = entry.on("list", &dir)?.path();
            found.extend(Layout::blob_of(&path));
        }
        Ok(found)
    }

    /// Checks that checkouts are whole: every link leads to a blob that is stored, and all files are
    /// there that were there at first. With `deep`, all blobs are read, too.
    ///
    /// # Errors
    /// If a checkout that is asked for is not there, or something cannot be listed.
    pub fn verify(
        &self,
        only: Option<&CheckoutPath>,
        deep: bool,
        work: &Work,
    ) -> Result<VerifyReport, EraseError> {
        let mut report = VerifyReport::default();
        let mut good = HashSet::new();
        let mut infos = self.checkouts()?;
        if let Some(only) = only {
            infos.retain(|info| info.path == only.as_str());
            if infos.is_empty() {
                return Err(EraseError::Unknown(only.clone()));
            }
        }
        for info in infos {
            if work.go_on().is_err() {
                return Ok(report);
            }
            self.verify_checkout(&info, deep, &mut good, work, &mut report)?;
        }
        // Not if it was stopped in the middle of the last one.
        report.complete = !work.is_stopped();
        Ok(report)
    }

    fn verify_checkout(
        &self,
        info: &CheckoutInfo,
        deep: bool,
        good: &mut HashSet<BlobId>,
        work: &Work,
        report: &mut VerifyReport,
    ) -> Result<(), DiskError> {
        report.checkouts += 1;
        let mut problem = |path: &Path, problem: String| {
            report.wrong += 1;
            if report.problems.len() < TOLD {
                let checkout = info.path.clone();
                let path = path.to_string_lossy().into_owned();
                report.problems.push(CheckoutProblem { checkout, path, problem });
            }
        };
        if info.gone {
            problem(Path::new(""), "its directory is gone".into());
            return Ok(());
        }
        let record = match info.path.parse() {
            Ok(path) => self.record(&path)?,
            Err(_) => None,
        };
        let dir = self.layout.jobs().join(&info.path);
        let mut entries = Vec::new();
        for (path, held) in self.contents(&dir)? {
            if work.go_on().is_err() {
                return Ok(());
            }
            let inside = path.strip_prefix(&dir).unwrap_or(&path).to_owned();
            let blob = match held {
                Held::Link(id) => {
                    if !good.contains(&id) {
                        match self.is_there(&id)? {
                            None => problem(&inside, format!("{id} is not stored")),
                            Some(_) if deep => {
                                if content(&self.layout.blob(&id).1)? == Some(id) {
                                    good.insert(id);
                                } else {
                                    let told = format!("{id} is damaged: run farmhand store scrub");
                                    problem(&inside, told);
                                }
                            }
                            Some(_) => {
                                good.insert(id);
                            }
                        }
                    }
                    // A link that looks like one to a blob may lead to another storage, or nowhere.
                    if good.contains(&id) && fs::metadata(&path).is_err() {
                        problem(&inside, "the link leads nowhere".into());
                    }
                    work.did(1, 0);
                    Some(id)
                }
                // What is in a file of its own is known by reading it only.
                Held::File(found) if record.is_some() => {
                    work.did(1, found.len());
                    content(&path)?
                }
                Held::File(_) => None,
                Held::Foreign => {
                    problem(&inside, "it is a link to something that is no blob".into());
                    None
                }
            };
            let name = inside.to_str().map(|name| name.replace(std::path::MAIN_SEPARATOR, "/"));
            if let (Some(blob), Some(Ok(path))) = (blob, name.map(|name| name.parse::<RelPath>())) {
                entries.push(Entry { path, blob });
            }
        }
        report.files += entries.len() as u64;
        entries.sort_unstable();
        if let Some(record) = record
            && digest_of(&entries) != record.manifest
        {
            let mut told = "its files are not those it was created with".to_owned();
            if entries.len() as u64 != record.files {
                told = format!("{told}: {} instead of {}", entries.len(), record.files);
            }
            if materialized(record.link_mode) {
                told.push_str(" (jobs may have written to them: they are its own)");
            }
            report.wrong += 1;
            if report.problems.len() < TOLD {
                let (checkout, path) = (info.path.clone(), String::new());
                report.problems.push(CheckoutProblem { checkout, path, problem: told });
            }
        }
        Ok(())
    }
}

/// Whether a checkout's files are its own.
fn materialized(mode: LinkMode) -> bool {
    super::materialize::has_content(mode)
}

fn info(record: Record, gone: bool) -> CheckoutInfo {
    CheckoutInfo {
        path: record.path,
        created_s: Some(record.created_s),
        files: record.files,
        bytes: Some(record.bytes),
        link_mode: Some(record.link_mode),
        gone,
    }
}

/// Who holds which blob.
#[derive(Default)]
struct Holders {
    all: Vec<UsageOf>,
    places: HashMap<String, usize>,
    /// The first holder, and whether there is another.
    blobs: HashMap<BlobId, (usize, bool)>,
    /// Blobs that the current holder has already been charged for.
    seen: HashSet<(usize, BlobId)>,
}

impl Holders {
    fn enter(&mut self, path: &str) -> usize {
        if let Some(place) = self.places.get(path) {
            return *place;
        }
        self.all.push(UsageOf { path: path.to_owned(), ..UsageOf::default() });
        self.places.insert(path.to_owned(), self.all.len() - 1);
        self.all.len() - 1
    }

    fn copy(&mut self, holder: usize, bytes: u64) {
        self.all[holder].bytes += bytes;
        self.all[holder].own_bytes += bytes;
    }

    fn file(&mut self, holder: usize, blob: Option<BlobId>) {
        self.all[holder].files += 1;
        let Some(id) = blob else { return };
        if !self.seen.insert((holder, id)) {
            return;
        }
        self.all[holder].bytes += id.size_bytes;
        self.blobs
            .entry(id)
            .and_modify(|entry| entry.1 |= entry.0 != holder)
            .or_insert((holder, false));
    }

    fn finish(mut self) -> Vec<UsageOf> {
        for (id, (holder, is_shared)) in &self.blobs {
            if !is_shared {
                self.all[*holder].own_bytes += id.size_bytes;
            }
        }
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Options;

    #[test]
    fn what_is_erased_while_checkouts_are_listed_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let (jobs, mut found) = (store.layout.jobs(), Vec::new());
        store
            .find_checkouts(&jobs.join("shots"), "shots", &mut HashMap::new(), &mut found)
            .unwrap();
        assert!(found.is_empty());
        // That there is no place for checkouts at all is another matter.
        fs::remove_dir_all(&jobs).unwrap();
        assert!(store.checkouts().is_err());
    }
}
