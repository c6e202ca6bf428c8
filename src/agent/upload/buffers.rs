//! Buffers that are used again.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;

/// What files are read into. A new buffer for each piece would take as long as reading it: the system hands out
/// memory page by page, and clears it.
///
/// There are as many as there ever were in use at once.
#[derive(Debug, Clone, Default)]
pub(in crate::agent) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    fn idle(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().expect("BUG: no one panics with this lock")
    }

    /// Reads so many bytes. When nobody needs them any more, their buffer is used again.
    ///
    /// # Errors
    /// If they cannot be read, or there are fewer.
    pub fn read(&self, from: &mut impl Read, length: usize) -> io::Result<Bytes> {
        let buffer = self.idle().pop().unwrap_or_default();
        let mut lent = Lent { buffer, length, home: self.clone() };
        if lent.buffer.len() < length {
            lent.buffer.resize(length, 0);
        }
        from.read_exact(&mut lent.buffer[..length])?;
        Ok(Bytes::from_owner(lent))
    }
}

/// A buffer, as long as its content is needed.
struct Lent {
    /// At least as long as its content.
    buffer: Vec<u8>,
    length: usize,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.home.idle().push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_nobody_needs_it() {
        let buffers = Buffers::default();
        let first = buffers.read(&mut &b"first"[..], 5).unwrap();
        let slice = first.slice(1..3);
        let second = buffers.read(&mut &b"2nd"[..], 3).unwrap();
        drop(first);
        assert_eq!(buffers.idle().len(), 0, "a slice of it is needed");
        assert_eq!(slice, &b"ir"[..]);
        drop(slice);
        let shorter = buffers.read(&mut &b"3"[..], 1).unwrap();
        assert_eq!(buffers.idle().len(), 0);
        assert_eq!((&shorter[..], &second[..]), (&b"3"[..], &b"2nd"[..]));
        drop((shorter, second));
        assert_eq!(buffers.idle().len(), 2);
        let longer = buffers.read(&mut &b"longer"[..], 6).unwrap();
        assert_eq!(longer, &b"longer"[..]);
    }

    #[test]
    fn what_cannot_be_read_to_its_end_is_an_error() {
        let buffers = Buffers::default();
        let error = buffers.read(&mut &b"short"[..], 6).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(buffers.idle().len(), 1);
    }
}
