//! The checksum of a row of the hash cache.
//!
//! SQLite's pages have none: a bit that flips on the disk or in memory changes a digest, and SQLite reads it
//! without an error. The checksum detects accidents, not attackers: a program that writes to the cache can
//! write checksums as well. It is the 64-bit mixing step of MurmurHash3. A keyed BLAKE3 took nine times as
//! long, a quarter of the time of a scan that finds nothing changed.

use super::CacheRow;

/// Computes the checksums of the rows of one root.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowChecksum {
    seed: u64,
}

impl RowChecksum {
    /// The path of the root goes into each checksum, and not its number: a row whose number changes, or that
    /// of the root, holds for no other root.
    pub fn new(root_key: &[u8]) -> Self {
        Self { seed: mix_bytes(0, root_key) }
    }

    /// Covers everything that decides whether the digest is used, and the digest.
    pub fn of(self, path: &str, row: &CacheRow) -> i64 {
        let seen = &row.fingerprint;
        let numbers = [
            seen.size_bytes,
            seen.mtime_ns.cast_unsigned(),
            seen.ctime_ns.cast_unsigned(),
            seen.inode,
            seen.device,
            seen.born_ns.cast_unsigned(),
            row.hashed_at_ns.cast_unsigned(),
        ];
        let state = numbers.into_iter().fold(mix_bytes(self.seed, path.as_bytes()), mix);
        mix_bytes(state, row.digest.as_bytes()).cast_signed()
    }
}

/// One step. For the same state, two words give two results; for the same word, two states do. So a change
/// within one word always changes the checksum.
fn mix(state: u64, word: u64) -> u64 {
    let word = word
        .wrapping_mul(0x87c3_7b91_1142_53d5)
        .rotate_left(31)
        .wrapping_mul(0x4cf5_ad43_2745_937f);
    (state ^ word).rotate_left(27).wrapping_mul(5).wrapping_add(0x52dc_e729)
}

/// Mixes in bytes of any number, and the number.
fn mix_bytes(state: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words.iter().fold(state, |state, word| mix(state, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(state, u64::from_le_bytes(last)), bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{disk::Fingerprint, domain::Digest};

    fn row() -> CacheRow {
        let fingerprint = Fingerprint {
            size_bytes: 1,
            mtime_ns: 2,
            ctime_ns: 3,
            inode: 4,
            device: 5,
            born_ns: 6,
        };
        CacheRow { fingerprint, hashed_at_ns: 7, digest: Digest::from_bytes([9; 32]) }
    }

    /// Every row that differs in one bit, in its path or in a value.
    fn flipped(path: &str, row: CacheRow) -> Vec<(String, CacheRow)> {
        let mut all = Vec::new();
        for bit in 0..64 {
            let seen = row.fingerprint;
            for fingerprint in [
                Fingerprint { size_bytes: seen.size_bytes ^ (1 << bit), ..seen },
                Fingerprint { mtime_ns: seen.mtime_ns ^ (1 << bit), ..seen },
                Fingerprint { ctime_ns: seen.ctime_ns ^ (1 << bit), ..seen },
                Fingerprint { inode: seen.inode ^ (1 << bit), ..seen },
                Fingerprint { device: seen.device ^ (1 << bit), ..seen },
                Fingerprint { born_ns: seen.born_ns ^ (1 << bit), ..seen },
            ] {
                all.push((path.to_owned(), CacheRow { fingerprint, ..row }));
            }
            let hashed_at_ns = row.hashed_at_ns ^ (1 << bit);
            all.push((path.to_owned(), CacheRow { hashed_at_ns, ..row }));
        }
        for bit in 0..256 {
            let mut digest = *row.digest.as_bytes();
            digest[bit / 8] ^= 1 << (bit % 8);
            all.push((path.to_owned(), CacheRow { digest: Digest::from_bytes(digest), ..row }));
        }
        for bit in (0..path.len() * 8).filter(|bit| bit % 8 != 7) {
            let mut bytes = path.as_bytes().to_owned();
            bytes[bit / 8] ^= 1 << (bit % 8);
            all.push((String::from_utf8(bytes).unwrap(), row));
        }
        all
    }

    #[test]
    fn every_flipped_bit_changes_the_checksum() {
        let (checksum, path) = (RowChecksum::new(b"/home/ada/shot"), "textures/wood.png");
        let mut seen = HashSet::from([checksum.of(path, &row())]);
        let flipped = flipped(path, row());
        for (path, row) in &flipped {
            assert!(seen.insert(checksum.of(path, row)), "{path} {row:?}");
        }
        assert!(flipped.len() > 800);
    }

    #[test]
    fn each_root_has_checksums_of_its_own() {
        let of = |root: &[u8]| RowChecksum::new(root).of("x", &row());
        let roots = [&b"/a"[..], b"/b", b"/a/", b"/a\0", b"", b"\0", b"\0\0\0\0\0\0\0\0"];
        assert_eq!(roots.map(of).into_iter().collect::<HashSet<_>>().len(), roots.len());
    }

    /// Another result would make every cache on disk count as damaged: then the layout gets a new version.
    #[test]
    fn the_checksum_stays_the_same() {
        let checksum = RowChecksum::new(b"/home/ada/shot").of("textures/wood.png", &row());
        assert_eq!(checksum, -5_365_138_940_149_123_975);
    }
}
