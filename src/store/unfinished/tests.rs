//! What may be said about pieces, and what comes of it.

use std::{path::Path, sync::Arc};

use proptest::prelude::*;
use sha2::Sha256;

use super::{blob::SILENT_FOR, *};
use crate::{chunks::Chunker, domain::BlobStatus, store::Options, store::Work};

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

fn id_of(content: &[u8]) -> BlobId {
    let digest = Digest::from_bytes(Sha256::digest(content).into());
    BlobId { digest, size_bytes: content.len() as u64 }
}

fn chunk(content: &[u8]) -> Chunk {
    Chunk { id: ChunkId::of(content), size_bytes: content.len() as u32 }
}

fn open(dir: &Path) -> Arc<Store> {
    Store::open(dir, Options::default()).unwrap()
}

fn begin(store: &Arc<Store>, id: BlobId) -> bool {
    match store.begin_pieces(id, "me").unwrap() {
        BeginPieces::Begun { resumable } => resumable,
        other => panic!("{other:?}"),
    }
}

fn put(store: &Store, id: &BlobId, offset: usize, content: &[u8]) -> Result<(), UnfinishedError> {
    store.put_chunk(id, "me", offset as u64, &chunk(content), content)
}

fn recipe(content: &[u8]) -> Vec<Chunk> {
    let (mut chunker, mut chunks) = (Chunker::new(content), Vec::new());
    while let Some((chunk, _)) = chunker.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    chunks
}

fn stored(store: &Store, id: &BlobId) -> Vec<u8> {
    std::fs::read(store.layout.blob(id).1).unwrap()
}

#[test]
fn pieces_in_any_order_become_the_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let content = noise(100_000, 1);
    let id = id_of(&content);
    assert!(!begin(&store, id));
    assert_eq!(store.status(&id).unwrap(), BlobStatus::Uploading);
    for offset in [60_000, 0, 40_000, 80_000] {
        put(&store, &id, offset, &content[offset..offset + 20_000]).unwrap();
    }
    let error = store.finish_pieces(&id, "me").unwrap_err();
    assert!(matches!(error, UnfinishedError::Incomplete { missing_bytes: 20_000, first: 20_000 }));
    put(&store, &id, 20_000, &content[20_000..40_000]).unwrap();
    store.finish_pieces(&id, "me").unwrap().unwrap();
    assert_eq!(stored(&store, &id), content);
    assert_eq!(store.status(&id).unwrap(), BlobStatus::Stored);
    assert!(std::fs::metadata(store.layout.blob(&id).1).unwrap().permissions().readonly());
    assert!(matches!(store.begin_pieces(id, "me").unwrap(), BeginPieces::Stored));
    // The answer was lost.
    assert!(store.finish_pieces(&id, "me").unwrap().is_none());
    assert_eq!(std::fs::read_dir(store.layout.uploading()).unwrap().count(), 0);
}

#[test]
fn an_empty_blob_has_no_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = id_of(b"");
    begin(&store, id);
    store.finish_pieces(&id, "me").unwrap().unwrap();
    assert_eq!(stored(&store, &id), b"");
}

#[test]
fn what_has_come_survives_a_restart_and_is_looked_at_again() {
    let dir = tempfile::tempdir().unwrap();
    let content = noise(300_000, 1);
    let (id, all) = (id_of(&content), recipe(&content));
    let store = open(dir.path());
    begin(&store, id);
    assert_eq!(store.lay_chunks(&id, "me", 0, &all).unwrap().missing.len(), all.len());
    put(&store, &id, 0, &content[..200_000]).unwrap();
    store.give_up_all();
    let part = PartFile::open(store.layout.unfinished(&id)).unwrap();
    drop(store);
    // What a power cut does to a file that was not synced.
    part.write_at(50_000, &[0; 100]).unwrap();
    drop(part);
    let store = open(dir.path());
    assert!(begin(&store, id));
    assert!(matches!(store.finish_pieces(&id, "me"), Err(UnfinishedError::Incomplete { .. })));
    let laid = store.lay_chunks(&id, "me", 0, &all).unwrap();
    let mut offset = 0usize;
    let mut expected = Vec::new();
    for (place, chunk) in (0u32..).zip(&all) {
        let end = offset + chunk.size_bytes as usize;
        if end > 200_000 || (offset < 50_100 && end > 50_000) {
            expected.push((place, offset, end));
        }
        offset = end;
    }
    assert_eq!(laid.missing, expected.iter().map(|(place, ..)| *place).collect::<Vec<_>>());
    for (_, begin, end) in expected {
        put(&store, &id, begin, &content[begin..end]).unwrap();
    }
    store.finish_pieces(&id, "me").unwrap().unwrap();
    assert_eq!(stored(&store, &id), content);
}

#[test]
fn chunks_of_what_is_stored_need_not_be_sent() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let before = noise(600_000, 1);
    let mut after = before.clone();
    after.splice(1000..1000, *b"inserted");
    let Ok(Begin::Receive(ticket)) = store.begin(id_of(&before)) else { panic!() };
    ticket.receive([Ok(bytes::Bytes::copy_from_slice(&before))]).unwrap();
    store.index(&Work::default()).unwrap();
    let (id, all) = (id_of(&after), recipe(&after));
    begin(&store, id);
    let laid = store.lay_chunks(&id, "me", 0, &all).unwrap();
    assert!(laid.missing.len() <= 3, "{:?}", laid.missing);
    // What it is made of may go: it has its own copy by now.
    std::fs::remove_file(store.layout.blob(&id_of(&before)).1).unwrap();
    let mut offset = 0;
    for (place, chunk) in (0u32..).zip(&all) {
        let end = offset + chunk.size_bytes as usize;
        if laid.missing.contains(&place) {
            put(&store, &id, offset, &after[offset..end]).unwrap();
        }
        offset = end;
    }
    store.finish_pieces(&id, "me").unwrap().unwrap();
    assert_eq!(stored(&store, &id), after);
}

#[test]
fn what_has_changed_where_the_index_says_it_is_counts_as_missing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let content = noise(300_000, 1);
    let Ok(Begin::Receive(ticket)) = store.begin(id_of(&content)) else { panic!() };
    ticket.receive([Ok(bytes::Bytes::copy_from_slice(&content))]).unwrap();
    store.index(&Work::default()).unwrap();
    let file = store.layout.blob(&id_of(&content)).1;
    let mut rotten = content.clone();
    rotten[100_000] ^= 1;
    // Root may write what is read-only; others may rename.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, &rotten).unwrap();
    let after = [&content[..], b"more"].concat();
    let (id, all) = (id_of(&after), recipe(&after));
    begin(&store, id);
    let missing = store.lay_chunks(&id, "me", 0, &all).unwrap().missing;
    let mut end = 0;
    let bad = all.iter().position(|chunk| {
        end += chunk.size_bytes;
        end > 100_000
    });
    assert!(missing.contains(&(bad.unwrap() as u32)) && missing.len() <= 3, "{missing:?}");
    std::fs::remove_file(&file).unwrap();
    let after = [&content[..], b"other"].concat();
    begin(&store, id_of(&after));
    let missing = store.lay_chunks(&id_of(&after), "me", 0, &recipe(&after)).unwrap().missing;
    assert_eq!(missing.len(), recipe(&after).len());
}

#[test]
fn lies_are_refused_and_publish_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (a, b) = (noise(10_000, 1), noise(10_000, 2));
    let content = [&a[..], &b[..]].concat();
    let id = id_of(&content);
    assert!(matches!(put(&store, &id, 0, &a), Err(UnfinishedError::NotBegun)));
    begin(&store, id);
    let wrong = store.put_chunk(&id, "me", 0, &chunk(&a), &b);
    assert!(matches!(wrong, Err(UnfinishedError::WrongChunk { offset: 0 })));
    let short = store.put_chunk(&id, "me", 0, &chunk(&a), &a[..9_999]);
    assert!(matches!(short, Err(UnfinishedError::WrongChunk { .. })));
    for offset in [10_001, u64::MAX, u64::MAX - 5_000] {
        let outside = store.put_chunk(&id, "me", offset, &chunk(&a), &a);
        assert!(matches!(outside, Err(UnfinishedError::Outside { .. })), "{offset}");
        let outside = store.lay_chunks(&id, "me", offset, &[chunk(&a)]);
        assert!(matches!(outside, Err(UnfinishedError::Outside { .. })), "{offset}");
    }
    assert!(matches!(
        store.put_chunk(&id, "another", 0, &chunk(&a), &a),
        Err(UnfinishedError::NotBegun)
    ));
    assert!(matches!(store.begin_pieces(id, "another").unwrap(), BeginPieces::Busy(_)));
    let nameless = Chunk { id: ChunkId::NAMELESS, size_bytes: 10_000 };
    let short = store.put_chunk(&id, "me", 0, &nameless, &a[1..]);
    assert!(matches!(short, Err(UnfinishedError::WrongChunk { .. })));
    // The right chunks in the wrong order.
    put(&store, &id, 0, &b).unwrap();
    put(&store, &id, 10_000, &a).unwrap();
    // What is right once never changes again.
    assert!(matches!(put(&store, &id, 0, &a), Err(UnfinishedError::Conflict { .. })));
    assert!(matches!(put(&store, &id, 5_000, &a), Err(UnfinishedError::Conflict { .. })));
    assert!(matches!(
        store.lay_chunks(&id, "me", 0, &[chunk(&a)]),
        Err(UnfinishedError::Conflict { .. })
    ));
    put(&store, &id, 0, &b).unwrap();
    let overlapping = [&b[5_000..], &a[..5_000]].concat();
    put(&store, &id, 5_000, &overlapping).unwrap();
    let error = store.finish_pieces(&id, "me").unwrap_err();
    assert!(matches!(error, UnfinishedError::WrongBlob));
    // Not even what it is instead: that would be a way to learn what is in chunks of others.
    let other = id_of(&[&b[..], &a[..]].concat());
    assert!(!error.to_string().contains(&other.digest.to_string()[..8]));
    assert_eq!(store.status(&id).unwrap(), BlobStatus::Unknown);
    assert_eq!(store.status(&other).unwrap(), BlobStatus::Unknown);
    assert_eq!(std::fs::read_dir(store.layout.uploading()).unwrap().count(), 0);
    assert!(!begin(&store, id), "it begins anew");
}

#[test]
fn who_is_silent_gives_way_and_what_has_come_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let content = noise(20_000, 1);
    let (id, empty) = (id_of(&content), id_of(b"never sent"));
    begin(&store, id);
    begin(&store, empty);
    put(&store, &id, 0, &content[..10_000]).unwrap();
    let request = store.request(&id, "me").unwrap();
    let is_silent_since = |time: Duration| {
        let long_ago = Instant::now().checked_sub(time).unwrap();
        for unfinished in store.unfinished.map().values() {
            unfinished.state().seen = long_ago;
        }
    };
    is_silent_since(SILENT_FOR);
    assert!(matches!(store.begin_pieces(id, "another").unwrap(), BeginPieces::Busy(_)));
    store.give_up_silent();
    assert!(store.unfinished.map().contains_key(&id), "a request is under way");
    drop(request);
    is_silent_since(SILENT_FOR);
    // Nobody wants this one.
    let begun = store.begin_pieces(empty, "me").unwrap();
    assert!(matches!(begun, BeginPieces::Begun { resumable: true }));
    is_silent_since(SILENT_FOR);
    store.give_up_silent();
    assert_eq!(store.status(&id).unwrap(), BlobStatus::Unknown);
    assert_eq!(store.status(&empty).unwrap(), BlobStatus::Uploading);
    assert!(matches!(put(&store, &id, 10_000, &content[10_000..]), Err(UnfinishedError::NotBegun)));
    is_silent_since(FORGOTTEN_FOR);
    store.give_up_silent();
    assert!(!store.has_unfinished() && !store.layout.unfinished(&empty).exists());
    let begun = store.begin_pieces(id, "another").unwrap();
    assert!(matches!(begun, BeginPieces::Begun { resumable: true }));
    // Whoever comes when somebody is silent need not wait.
    is_silent_since(SILENT_FOR);
    let begun = store.begin_pieces(id, "a third").unwrap();
    assert!(matches!(begun, BeginPieces::Begun { resumable: true }));
    is_silent_since(SILENT_FOR);
    assert!(matches!(store.begin(id).unwrap(), Begin::Receive(_)), "nor who sends it plainly");
    let begun = store.begin_pieces(id, "me").unwrap();
    assert!(matches!(begun, BeginPieces::Begun { resumable: true }));
    // One that is being sent does not expire.
    assert_eq!(store.forget_unfinished(Duration::ZERO).unwrap(), 0);
    store.give_up_all();
    assert_eq!(store.forget_unfinished(Duration::from_secs(3600)).unwrap(), 0);
    assert_eq!(store.forget_unfinished(Duration::ZERO).unwrap(), 1);
    assert!(!store.layout.unfinished(&id).exists());
}

#[test]
fn what_was_written_before_takes_no_room_twice_and_is_young_when_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let content = noise(3 << 20, 1);
    let id = id_of(&content);
    begin(&store, id);
    put(&store, &id, 0, &content[..1 << 20]).unwrap();
    put(&store, &id, 1 << 20, &content[1 << 20..2 << 20]).unwrap();
    let admitted = || store.room().unwrap().unwrap().admitted_bytes;
    assert_eq!(admitted(), 1 << 20);
    store.give_up_all();
    assert_eq!(admitted(), 0);
    let long_ago = SystemTime::now() - Duration::from_secs(100_000);
    let part = std::fs::File::options().write(true).open(store.layout.unfinished(&id)).unwrap();
    part.sync_all().unwrap();
    part.set_modified(long_ago).unwrap();
    begin(&store, id);
    assert_eq!(admitted(), 1 << 20);
    for offset in [0, 1 << 20] {
        let pieces = [chunk(&content[offset..offset + (1 << 20)])];
        assert_eq!(store.lay_chunks(&id, "me", offset as u64, &pieces).unwrap(), Laid::default());
    }
    assert_eq!(admitted(), 1 << 20);
    put(&store, &id, 2 << 20, &content[2 << 20..]).unwrap();
    assert_eq!(admitted(), 0);
    // As if nothing had been written just now.
    part.set_modified(long_ago).unwrap();
    store.finish_pieces(&id, "me").unwrap().unwrap();
    let modified = std::fs::metadata(store.layout.blob(&id).1).unwrap().modified().unwrap();
    assert!(modified > long_ago + Duration::from_secs(90_000), "garbage collection goes by this");
}

#[test]
fn where_there_is_no_room_the_oldest_that_nobody_goes_on_with_goes_and_no_more_than_helps() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let contents: Vec<_> = (0..3).map(|seed| noise(1 << 20, seed)).collect();
    let ids: Vec<_> = contents.iter().map(|content| id_of(content)).collect();
    for (content, id) in contents.iter().zip(&ids) {
        begin(&store, *id);
        put(&store, id, 0, &content[..1 << 19]).unwrap();
    }
    store.give_up_all();
    for (age, id) in (1..).zip(&ids) {
        let part = std::fs::File::options().write(true).open(store.layout.unfinished(id)).unwrap();
        part.sync_all().unwrap();
        part.set_modified(SystemTime::now() - Duration::from_secs(1000 * age)).unwrap();
    }
    let there = || ids.iter().map(|id| store.layout.unfinished(id).exists()).collect::<Vec<_>>();
    let (another, mib) = (id_of(b"another"), 1 << 20);
    assert!(!store.make_room(0, &another).unwrap());
    assert!(!store.make_room(2 * mib, &another).unwrap(), "all of it would not do");
    // A request that is impossible is nobody's loss.
    let huge = BlobId { size_bytes: i64::MAX as u64, ..another };
    assert!(store.begin(huge).unwrap_err().is_full());
    assert_eq!(there(), [true; 3]);
    assert!(store.make_room(1000, &ids[2]).unwrap(), "not what it is asked for");
    assert_eq!(there(), [true, false, true]);
    assert!(store.make_room(mib / 2 + 1000, &another).unwrap());
    assert_eq!(there(), [false; 3]);
}

#[test]
fn one_that_was_made_read_only_and_not_published_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let part = PartFile::open(dir.path().join("part")).unwrap();
    part.write_at(0, b"all of it").unwrap();
    drop(part);
    let path = dir.path().join("part");
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&path, permissions).unwrap();
    // For root, everything is writable.
    PartFile::open(path).unwrap().write_at(0, b"ALL").unwrap();
}

/// A store with a secret, and what somebody knows of it who has seen but the names of its chunks.
fn with_secret(dir: &Path) -> (Arc<Store>, Vec<u8>, Vec<Chunk>) {
    let store = open(dir);
    let secret = noise(300_000, 1);
    let Ok(Begin::Receive(ticket)) = store.begin(id_of(&secret)) else { panic!() };
    ticket.receive([Ok(bytes::Bytes::copy_from_slice(&secret))]).unwrap();
    store.index(&Work::default()).unwrap();
    let chunks = recipe(&secret);
    (store, secret, chunks)
}

#[test]
fn what_is_borrowed_tells_nothing_of_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, secret, chunks) = with_secret(dir.path());
    let size = u64::from(chunks[0].size_bytes);
    let mine = BlobId { size_bytes: 2 * size, ..id_of(b"made up") };
    let lay = |offset: u64, chunk: Chunk| {
        store.lay_chunks(&mine, "me", offset, &[chunk]).map(|laid| laid.missing.len())
    };
    begin(&store, mine);
    assert_eq!(lay(0, chunks[0]).unwrap(), 0);
    assert_eq!(lay(0, chunks[0]).unwrap(), 0, "the very same may be said again");
    put(&store, &mine, 0, &secret[..size as usize]).unwrap();
    // Without a name it is not the same.
    let nameless = Chunk { id: ChunkId::NAMELESS, ..chunks[0] };
    let answer = store.put_chunk(&mine, "me", 0, &nameless, &secret[..size as usize]);
    assert!(matches!(answer, Err(UnfinishedError::Conflict { .. })));
    for offset in [0, 100, size - 1] {
        let at = offset as usize;
        for guess in [secret[at], !secret[at]] {
            // Right or wrong, in a recipe or sent: the same answer.
            let answer = lay(offset, chunk(&[guess]));
            assert!(matches!(answer, Err(UnfinishedError::Conflict { .. })), "{answer:?}");
            let answer = put(&store, &mine, at, &[guess]);
            assert!(matches!(answer, Err(UnfinishedError::Conflict { .. })), "{answer:?}");
        }
    }
    // Nor does what is sent before tell anything of what would be borrowed over it.
    for (offset, guess) in [(size, secret[0]), (size + 1, !secret[1])] {
        put(&store, &mine, offset as usize, &[guess]).unwrap();
    }
    assert_eq!(lay(size, chunks[0]).unwrap(), 1);
    // Also if it comes between the look and the borrowing.
    let unfinished = store.unfinished.map()[&mine].clone();
    let content = &secret[..size as usize];
    assert!(!unfinished.borrow(&chunks[0], &(size..2 * size), content).unwrap());
    drop(unfinished);
    // And when it is begun again, here or after a restart, nothing of it is there.
    let again = |store: &Arc<Store>| {
        store.give_up_all();
        assert!(begin(store, mine));
        for guess in [secret[5], !secret[5]] {
            let laid = store.lay_chunks(&mine, "me", 5, &[chunk(&[guess])]).unwrap();
            assert_eq!(laid.missing, [0]);
        }
    };
    again(&store);
    store.give_up_all();
    drop(store);
    let store = open(dir.path());
    again(&store);
    // It can be borrowed anew, and sent over.
    let laid = store.lay_chunks(&mine, "me", 0, &chunks[..1]).unwrap();
    assert_eq!((laid.missing.len(), laid.reused_bytes), (0, size));
    store.give_up_all();
    begin(&store, mine);
    put(&store, &mine, 0, &secret[..1000]).unwrap();
    let laid = store.lay_chunks(&mine, "me", 0, &[chunk(&secret[..1000])]).unwrap();
    assert_eq!(laid, Laid::default());
    store.abandon_pieces(&mine, "me").unwrap();
    assert_eq!(std::fs::read_dir(store.layout.uploading()).unwrap().count(), 0);
}

#[test]
fn what_was_sent_of_a_blob_is_there_after_a_restart_beside_what_was_borrowed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, secret, chunks) = with_secret(dir.path());
    let content = [&secret[..], &noise(100_000, 2)].concat();
    let (id, all) = (id_of(&content), recipe(&content));
    begin(&store, id);
    let laid = store.lay_chunks(&id, "me", 0, &all).unwrap();
    let first = laid.missing[0] as usize;
    let offset: usize = all[..first].iter().map(|chunk| chunk.size_bytes as usize).sum();
    let end = offset + all[first].size_bytes as usize;
    put(&store, &id, offset, &content[offset..end]).unwrap();
    store.give_up_all();
    drop(store);
    let store = open(dir.path());
    assert!(begin(&store, id));
    let again = store.lay_chunks(&id, "me", 0, &all).unwrap();
    assert_eq!(again.missing, laid.missing[1..]);
    assert_eq!(again.reused_bytes, laid.reused_bytes);
    let mut offset = 0;
    for (place, chunk) in (0u32..).zip(&all) {
        let end = offset + chunk.size_bytes as usize;
        if again.missing.contains(&place) {
            put(&store, &id, offset, &content[offset..end]).unwrap();
        }
        offset = end;
    }
    store.finish_pieces(&id, "me").unwrap().unwrap();
    assert_eq!(stored(&store, &id), content);
    assert_eq!(std::fs::read_dir(store.layout.uploading()).unwrap().count(), 0);
    assert!(chunks.len() > 5);
}

#[test]
fn a_blob_in_too_many_places_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = BlobId { size_bytes: 1 << 40, ..id_of(b"made up") };
    // Nothing is written: a file of so many holes would take long.
    let mut free = store.room().unwrap().unwrap().free_bytes;
    free = free.min(1 << 40);
    let id_small = BlobId { size_bytes: free / 2, ..id };
    begin(&store, id_small);
    let unfinished = store.unfinished.map()[&id_small].clone();
    {
        let mut state = unfinished.state();
        for place in 0..MAX_RANGES as u64 {
            state.is_right(2 * place..2 * place + 1).unwrap();
        }
    }
    drop(unfinished);
    let end = 2 * MAX_RANGES;
    assert!(matches!(put(&store, &id_small, end + 10, b"x"), Err(UnfinishedError::Scattered)));
    put(&store, &id_small, end - 1, b"x").unwrap();
}

#[test]
fn what_is_stored_meanwhile_counts_as_needed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let content = noise(1000, 1);
    let id = id_of(&content);
    for finishes in [false, true] {
        if finishes {
            begin(&store, id);
        }
        if let Ok(Begin::Receive(ticket)) = store.begin(id) {
            ticket.receive([Ok(bytes::Bytes::copy_from_slice(&content))]).unwrap();
        } else {
            store.join(id).receive([Ok(bytes::Bytes::copy_from_slice(&content))]).unwrap();
        }
        let blob = store.layout.blob(&id).1;
        let long_ago = SystemTime::now() - Duration::from_secs(100_000);
        std::fs::File::open(&blob).unwrap().set_modified(long_ago).unwrap();
        if finishes {
            assert!(store.finish_pieces(&id, "me").unwrap().is_none());
        } else {
            assert!(matches!(store.begin_pieces(id, "me").unwrap(), BeginPieces::Stored));
        }
        let modified = std::fs::metadata(&blob).unwrap().modified().unwrap();
        assert!(modified > long_ago + Duration::from_secs(50_000));
        std::fs::remove_file(&blob).unwrap();
    }
    assert!(!store.has_unfinished());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever is said in whatever order: what is stored is what its name says.
    #[test]
    fn nothing_but_the_blob_is_ever_published(
        steps in prop::collection::vec((0u8..4, 0usize..8, 0usize..8, 1usize..4), 1..40)
    ) {
        const PIECE: usize = 1000;
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let content = noise(8 * PIECE, 7);
        let id = id_of(&content);
        begin(&store, id);
        for (what, from, to, count) in steps {
            let piece = &content[from * PIECE..(from * PIECE + count * PIECE).min(content.len())];
            match what {
                // Mostly the truth.
                0 => drop(put(&store, &id, from * PIECE, piece)),
                1 => drop(put(&store, &id, to * PIECE, piece)),
                2 => drop(store.lay_chunks(&id, "me", (to * PIECE) as u64, &[chunk(piece)])),
                _ => {
                    let finished = store.finish_pieces(&id, "me");
                    let there = store.status(&id).unwrap() == BlobStatus::Stored;
                    prop_assert_eq!(finished.is_ok(), there);
                    if there {
                        prop_assert_eq!(&stored(&store, &id), &content);
                    } else {
                        begin(&store, id);
                    }
                }
            }
        }
        // And it can always be sent whole.
        store.give_up_all();
        if let Ok(Begin::Receive(ticket)) = store.begin(id) {
            ticket.receive([Ok(bytes::Bytes::copy_from_slice(&content))]).unwrap();
        }
        prop_assert_eq!(&stored(&store, &id), &content);
    }
}
