//! Compresses what is sent, where that helps.

use std::io;

/// Fast enough for any line on which it is tried.
const LEVEL: i32 = 1;

/// How many are not tried at most, after some that did not get shorter.
const SKIP_MAX: u32 = 64;

/// Compresses one content after another, and learns from those before. What it makes is only used where it is
/// shorter.
pub(super) struct Packer {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// How many are not tried now.
    skip: u32,
    /// How many are not tried after the next one that does not get shorter.
    skip_next: u32,
}

impl Packer {
    /// One that compresses, or not.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(compresses: bool) -> io::Result<Self> {
        let zstd = compresses.then(|| zstd::bulk::Compressor::new(LEVEL)).transpose()?;
        Ok(Self { zstd, skip: 0, skip_next: 1 })
    }

    /// The content as a zstd frame, if that is shorter by something.
    pub fn pack(&mut self, content: &[u8]) -> Option<Vec<u8>> {
        let zstd = self.zstd.as_mut()?;
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let packed = zstd.compress(content).ok();
        let packed = packed.filter(|packed| packed.len() < content.len() - content.len() / 16);
        if packed.is_some() {
            self.skip_next = 1;
        } else {
            self.skip = self.skip_next;
            self.skip_next = (2 * self.skip_next).min(SKIP_MAX);
        }
        packed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_compresses_what_gets_shorter_and_soon_leaves_the_rest_alone() {
        let mut random = fastrand::Rng::with_seed(1);
        let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(10_000).collect();
        let mut packer = Packer::new(true).unwrap();
        assert!(packer.pack(&[7; 10_000]).unwrap().len() < 100);
        assert!(packer.pack(&noise).is_none());
        assert!(packer.pack(&[7; 10_000]).is_none(), "one is left out");
        let tried = (0..1000).filter(|_| {
            let tries = packer.skip == 0;
            packer.pack(&noise);
            tries
        });
        assert!(tried.count() < 25);
        // And finds out when it helps again.
        assert!((0..=SKIP_MAX).any(|_| packer.pack(&[7; 10_000]).is_some()));
        assert!(packer.pack(&[7; 10_000]).is_some());
        assert!(Packer::new(false).unwrap().pack(&[7; 10_000]).is_none());
    }
}
