//! What is known of many blobs at once.
//!
//! Blobs are looked at directory by directory, by names from the open directory on: most of a look by path is
//! the way. Where most blobs of a directory are unknown, listing it costs less than looking for each in vain.

use std::{collections::HashSet, fmt::Write, io, time::SystemTime};

use rayon::prelude::*;

use super::{
    Store,
    blobs::{is_recent, is_whole},
};
use crate::{
    disk::{DiskError, Found, OpenDir},
    domain::{BlobId, BlobStatus, decode_lower},
};

/// From so many blobs on, the work is shared between cores.
const MANY: usize = 32;

/// From so many blobs of one directory on, it is opened. Opening and closing costs as much as two looks.
const OPEN_FROM: usize = 4;

/// So many looks in vain, and what is in the directory is listed if that is worth it.
const VAIN_LOOKS: usize = 8;

/// How many names are listed in the time of one look in vain: measured are 8 to 20.
const NAMES_PER_LOOK: u64 = 8;

/// The part of a digest that names a blob's own directory.
type Rest = [u8; 31];

fn rest(id: &BlobId) -> Rest {
    let mut rest = [0; 31];
    rest.copy_from_slice(&id.digest.as_bytes()[1..]);
    rest
}

/// Whether to list a directory of so many names, rather than to go on looking for so many blobs.
fn is_listing_worth_it(vain_looks: usize, left: usize, names: u64) -> bool {
    vain_looks >= VAIN_LOOKS && names <= NAMES_PER_LOOK.saturating_mul(left as u64)
}

/// Keeps of equal blobs the first. Places are given in their order, and stay in it. `keys` is room to work in.
fn keep_first(ids: &[BlobId], places: &mut Vec<usize>, keys: &mut Vec<(u64, usize)>) {
    // A piece of each digest, to be compared without going where the blob is; those that are equal in it are together.
    let key = |&place: &usize| {
        let (piece, _) = ids[place].digest.as_bytes()[1..].split_first_chunk()?;
        Some((u64::from_ne_bytes(*piece), place))
    };
    keys.clear();
    keys.extend(places.iter().filter_map(key));
    keys.sort_unstable();
    let mut repeated = Vec::new();
    for like in keys.chunk_by(|one, other| one.0 == other.0).filter(|like| like.len() > 1) {
        let mut seen = HashSet::with_capacity(like.len());
        repeated.extend(like.iter().filter(|(_, place)| !seen.insert(&ids[*place])));
    }
    if !repeated.is_empty() {
        let repeated: HashSet<usize> = repeated.into_iter().map(|(_, place)| place).collect();
        places.retain(|place| !repeated.contains(place));
    }
}

impl Store {
    /// Which of these blobs must still be sent: each once, by its first place in the list. Those
    /// that are stored count as needed now.
    ///
    /// # Errors
    /// If the file system cannot say, or a stored blob cannot be touched.
    pub fn requirements(&self, ids: &[BlobId]) -> Result<Vec<(usize, BlobStatus)>, DiskError> {
        let mut places = vec![Vec::new(); 256];
        for (place, id) in ids.iter().enumerate() {
            places[usize::from(id.digest.as_bytes()[0])].push(place);
        }
        let now = SystemTime::now();
        let lacking = |keys: &mut _, (prefix, mut places): (usize, Vec<usize>)| {
            keep_first(ids, &mut places, keys);
            self.lacking(prefix as u8, ids, &places, now)
        };
        let mut lacking: Vec<(usize, BlobStatus)> = if ids.len() < MANY {
            let mut keys = Vec::new();
            let lacking = places.into_iter().enumerate().map(|one| lacking(&mut keys, one));
            lacking.collect::<Result<Vec<_>, _>>()?.concat()
        } else {
            let lacking = places.into_par_iter().enumerate().map_init(Vec::new, lacking);
            lacking.collect::<Result<Vec<_>, _>>()?.concat()
        };
        lacking.par_sort_unstable_by_key(|&(place, _)| place);
        Ok(lacking)
    }

    /// The same for distinct blobs at these places of the list, whose digests all begin with this byte.
    fn lacking(
        &self,
        prefix: u8,
        ids: &[BlobId],
        places: &[usize],
        now: SystemTime,
    ) -> Result<Vec<(usize, BlobStatus)>, DiskError> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        // Before the looks: then a blob that arrives in between is seen as stored.
        let in_flight = self.inflight.among(places.iter().map(|&place| &ids[place]));
        let mut looks = Looks::begin(self, prefix, places.len());
        let (mut lacking, mut stored) = (Vec::new(), Vec::with_capacity(places.len()));
        for (done, &place) in places.iter().enumerate() {
            let id = &ids[place];
            if in_flight.contains(id) {
                lacking.push((place, BlobStatus::Uploading));
                continue;
            }
            match looks.look(id, places.len() - done)?.filter(|found| is_whole(found, id)) {
                Some(found) => stored.push((place, found)),
                None => lacking.push((place, BlobStatus::Unknown)),
            }
        }
        let old = stored.iter().filter(|(_, found)| !is_recent(found, now));
        for (place, found) in old {
            if !looks.keep(&ids[*place], found, now)? {
                lacking.push((*place, BlobStatus::Unknown));
            }
        }
        // After the looks: what counts as stored must have been durable when it was seen, or since.
        let unsynced = self.unsynced();
        if !unsynced.is_empty() {
            let stored = stored.iter().map(|(place, _)| *place);
            let not_yet = stored.filter(|&place| unsynced.contains(&ids[place]));
            lacking.extend(not_yet.map(|place| (place, BlobStatus::Unknown)));
            lacking.sort_unstable_by_key(|(place, _)| *place);
            lacking.dedup_by_key(|(place, _)| *place);
        }
        Ok(lacking)
    }
}

/// Looks at blobs of one directory.
struct Looks<'a> {
    store: &'a Store,
    /// `None` if it is not worth opening, or cannot be opened: then each blob is looked at by its path, and
    /// that says what the matter is.
    dir: Option<OpenDir>,
    names_count: Option<u64>,
    vain_looks: usize,
    /// Which blobs have a directory at all, sorted; once it is listed.
    listed: Option<Vec<Rest>>,
    name: String,
}

impl<'a> Looks<'a> {
    fn begin(store: &'a Store, prefix: u8, blobs: usize) -> Self {
        let path = || store.layout.stored().join(format!("{prefix:02x}"));
        let dir = (blobs >= OPEN_FROM).then(|| OpenDir::open(path()).ok()).flatten();
        Self { store, dir, names_count: None, vain_looks: 0, listed: None, name: String::new() }
    }

    /// Looks at a blob when so many are left to be looked at.
    fn look(&mut self, id: &BlobId, left: usize) -> Result<Option<Found>, DiskError> {
        let by_path = || Ok(self.store.look(id)?.map(|found| Found::from(&found)));
        let Some(dir) = &self.dir else { return by_path() };
        if let Some(listed) = &self.listed
            && listed.binary_search(&rest(id)).is_err()
        {
            return Ok(None);
        }
        set_name(&mut self.name, id);
        match dir.look(&self.name) {
            Ok(found) => return Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Damage to this blob alone, or trouble that is to be told.
            Err(_) => return by_path(),
        }
        self.vain_looks += 1;
        if self.listed.is_none() && self.vain_looks >= VAIN_LOOKS {
            let unknown = u64::MAX;
            let names =
                *self.names_count.get_or_insert_with(|| dir.directories().unwrap_or(unknown));
            if is_listing_worth_it(self.vain_looks, left, names) {
                self.listed = listed(dir, NAMES_PER_LOOK as usize * left);
                // What cannot be listed, or has more names than it said, is not tried again.
                self.names_count = Some(unknown);
            }
        }
        Ok(None)
    }

    /// Notes that a blob is needed now that was found to be there. Whether it still is.
    fn keep(&mut self, id: &BlobId, found: &Found, now: SystemTime) -> Result<bool, DiskError> {
        let Some(dir) = &self.dir else { return self.store.keep(id, found, now) };
        set_name(&mut self.name, id);
        self.store.touch_if_there(|| dir.touch(&self.name))
    }
}

/// Which blobs have a directory in this one, sorted, if it has no more names than that. Nothing is known either if
/// there are names in another spelling: a file system that takes it for the same would find them.
fn listed(dir: &OpenDir, most: usize) -> Option<Vec<Rest>> {
    let names = dir.names(most)?;
    let is_like_a_blob = |name: &&String| name.len() == 2 * size_of::<Rest>();
    let listed = names.iter().filter(is_like_a_blob).map(|name| decode_lower(name));
    let mut listed = listed.collect::<Option<Vec<Rest>>>()?;
    listed.sort_unstable();
    Some(listed)
}

/// How a blob's file is called from the directory on that it shares with others.
fn set_name(name: &mut String, id: &BlobId) {
    name.clear();
    name.push_str(const_hex::Buffer::<31>::new().format(&rest(id)));
    let _ = write!(name, "/{}.blob", id.size_bytes);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::{prelude::*, test_runner::TestRunner};

    use super::*;
    use crate::{
        domain::Digest,
        store::{Begin, Durability, Options},
    };

    #[test]
    fn a_directory_is_listed_only_if_that_costs_less() {
        assert!(!is_listing_worth_it(VAIN_LOOKS - 1, 1000, 0), "it may be stored, the most of it");
        assert!(is_listing_worth_it(VAIN_LOOKS, 1, 0));
        assert!(is_listing_worth_it(VAIN_LOOKS, 100, 800));
        assert!(!is_listing_worth_it(VAIN_LOOKS, 100, 801));
    }

    #[test]
    fn names_are_those_of_the_layout() {
        let id = BlobId { digest: Digest::from_bytes([0xab; 32]), size_bytes: 70 };
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let mut name = "before".to_owned();
        set_name(&mut name, &id);
        assert_eq!(store.layout.stored().join("ab").join(&name), store.layout.blob(&id).1);
        assert_eq!(decode_lower(name.split('/').next().unwrap()), Some(rest(&id)));
    }

    /// A blob: which of few directories it is in, its number there, and what is done to it.
    fn blob((prefix, number, size): (u8, u8, u8)) -> BlobId {
        let mut digest = [number; 32];
        digest[0] = prefix;
        BlobId { digest: Digest::from_bytes(digest), size_bytes: size.into() }
    }

    fn put(file: &Path, size: usize) {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, vec![0; size]).unwrap();
    }

    /// What `requirements` is to say, from looks at one blob after another.
    fn reference(store: &Store, ids: &[BlobId]) -> Vec<(usize, BlobStatus)> {
        let first = |place: &usize| !ids[..*place].contains(&ids[*place]);
        (0..ids.len())
            .filter(first)
            .map(|place| (place, store.status(&ids[place]).unwrap()))
            .filter(|(_, status)| *status != BlobStatus::Stored)
            .collect()
    }

    /// However many there are, and whatever there is of them: the same as one look after another.
    #[test]
    fn many_looks_see_what_single_ones_see() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { durability: Durability::Relaxed, ..Options::default() };
        let store = Store::open(dir.path(), options).unwrap();
        let file = |id: &BlobId| store.layout.blob(id).1;
        let some = |most| prop::collection::vec((0u8..3, 0u8..120, 0u8..3), 0..most);
        let damaged = prop::collection::vec((0u8..3, 200u8..210), 0..4);
        // Asked for; stored, too short, in flight, not synced; and in whose place something else is.
        let strategy = (some(500), some(200), some(4), some(4), some(4), damaged);
        let check = |(asked, stored, short, in_flight, unsynced, damaged): (
            Vec<_>,
            Vec<_>,
            Vec<_>,
            Vec<_>,
            Vec<_>,
            Vec<(u8, u8)>,
        )| {
            for prefix in 0..3 {
                let dir = store.layout.stored().join(format!("{prefix:02x}"));
                fs::remove_dir_all(&dir).unwrap();
                fs::create_dir(dir).unwrap();
            }
            stored.into_iter().map(blob).for_each(|id| put(&file(&id), id.size_bytes as usize));
            short.into_iter().map(blob).for_each(|id| put(&file(&id), 7));
            let mut ids: Vec<BlobId> = asked.into_iter().map(blob).collect();
            for (prefix, number) in damaged {
                // A file where a blob's own directory should be.
                let id = blob((prefix, number, 1));
                fs::write(file(&id).parent().unwrap(), "x").unwrap();
                ids.push(id);
            }
            *store.unsynced() = unsynced.into_iter().map(blob).collect();
            let tickets: Vec<_> = in_flight.into_iter().map(|id| store.begin(blob(id))).collect();
            prop_assert_eq!(store.requirements(&ids).unwrap(), reference(&store, &ids));
            drop(tickets);
            Ok(())
        };
        TestRunner::new(ProptestConfig::with_cases(64)).run(&strategy, check).unwrap();
    }

    #[test]
    fn what_was_needed_long_ago_is_needed_now() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let ids: Vec<BlobId> = (0..20).map(|number| blob((1, number, 2))).collect();
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for id in &ids {
            let file = store.layout.blob(id).1;
            put(&file, 2);
            fs::File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();
        }
        assert_eq!(store.requirements(&ids).unwrap(), []);
        for id in &ids {
            let found = store.is_there(id).unwrap().unwrap();
            assert!(is_recent(&found, SystemTime::now()));
        }
        assert!(matches!(store.begin(ids[0]), Ok(Begin::Stored)));
    }

    #[test]
    fn a_list_that_may_not_be_all_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let open = OpenDir::open(dir.path().to_owned()).unwrap();
        let (one, other) = ("ab".repeat(31), "CD".repeat(31));
        fs::create_dir(dir.path().join(&one)).unwrap();
        fs::create_dir(dir.path().join("no blob")).unwrap();
        assert_eq!(listed(&open, 2), Some(vec![[0xab; 31]]));
        assert_eq!(listed(&open, 1), None, "there are more");
        fs::create_dir(dir.path().join(other)).unwrap();
        assert_eq!(listed(&open, 3), None, "some file systems find it in lower case, too");
    }

    #[cfg(unix)]
    #[test]
    fn trouble_with_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let prefix = store.layout.stored().join("01");
        fs::remove_dir(&prefix).unwrap();
        let ids: Vec<BlobId> = (0..20).map(|number| blob((1, number, 2))).collect();
        assert_eq!(store.requirements(&ids).unwrap().len(), 20, "nothing is stored there");
        std::os::unix::fs::symlink("01", &prefix).unwrap(); // leads nowhere, in circles
        assert!(store.requirements(&ids).is_err());
    }
}
