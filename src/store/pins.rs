//! Blobs that are kept whether a checkout holds them or not: a file of digests, one to a line, that
//! people may edit.

use std::{collections::BTreeSet, fs, io};

use super::{Durability, Store};
use crate::{
    disk::{DiskError, IoContext, replace_file},
    domain::Digest,
};

impl Store {
    /// All pinned digests.
    ///
    /// # Errors
    /// If the file cannot be read or understood: what it was to keep is not known then.
    pub fn pins(&self) -> Result<BTreeSet<Digest>, DiskError> {
        let file = self.layout.pins();
        match fs::read_to_string(&file) {
            Ok(text) => parse(&text).on("understand", &file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(error).on("read", &file),
        }
    }

    /// Keeps a digest from now on, or no more. Returns whether that is a change.
    ///
    /// # Errors
    /// If the file of pins cannot be read or written.
    pub fn pin(&self, digest: Digest, keep: bool) -> Result<bool, DiskError> {
        let _one = self.pinning.lock().expect("BUG: no one panics with this lock");
        let mut pins = self.pins()?;
        let is_change = if keep { pins.insert(digest) } else { pins.remove(&digest) };
        if is_change {
            let text: String = pins.iter().map(|digest| format!("{digest}\n")).collect();
            let file = self.layout.pins();
            let durable = self.options.durability == Durability::Full;
            replace_file(&file, text.as_bytes(), durable)?;
            self.sync_dir(file.parent().expect("BUG: the file of pins is in a directory"))?;
        }
        Ok(is_change)
    }
}

fn parse(text: &str) -> io::Result<BTreeSet<Digest>> {
    let lines = text.lines().enumerate();
    lines
        .map(|(index, line)| (index, line.split('#').next().unwrap_or_default().trim()))
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            line.parse().map_err(|error| {
                let reason = format!("line {}: {error}", index + 1);
                io::Error::new(io::ErrorKind::InvalidData, reason)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_lines_and_nothing_is_guessed() {
        let digest = "ab".repeat(32);
        let pins = parse(&format!("# kept\n\n  {digest}  # the library\n")).unwrap();
        assert_eq!(pins.into_iter().collect::<Vec<_>>(), [digest.parse().unwrap()]);
        let error = parse(&format!("{digest}\n{}\n", &digest[1..])).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(parse("\0").is_err());
    }
}
