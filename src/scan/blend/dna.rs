//! The description of structs that each `.blend` carries ("DNA"): names, types, and where fields are.

use std::ops::Range;

/// The structs of a file.
#[derive(Debug)]
pub(super) struct Dna<'a> {
    /// Names of fields as they are declared: `filepath[1024]`, `*packedfile`.
    names: Vec<&'a str>,
    types: Vec<&'a str>,
    /// The sizes of types, in bytes.
    sizes: Vec<usize>,
    structs: Vec<Struct>,
    pointer_bytes: usize,
}

#[derive(Debug)]
struct Struct {
    kind: usize,
    /// Type and name of each field.
    fields: Vec<(usize, usize)>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn tag(&mut self, tag: &[u8; 4]) -> Option<()> {
        self.at = self.at.next_multiple_of(4);
        (self.take(4)? == tag).then_some(())
    }

    fn count(&mut self) -> Option<usize> {
        usize::try_from(i32::from_le_bytes(self.take(4)?.try_into().ok()?)).ok()
    }

    fn short(&mut self) -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(self.take(2)?.try_into().ok()?)))
    }

    fn texts(&mut self) -> Option<Vec<&'a str>> {
        let count = self.count()?;
        let mut texts = Vec::new();
        for _ in 0..count {
            let rest = self.bytes.get(self.at..)?;
            let length = memchr::memchr(0, rest)?;
            texts.push(std::str::from_utf8(&rest[..length]).ok()?);
            self.at += length + 1;
        }
        Some(texts)
    }
}

impl<'a> Dna<'a> {
    /// `None` if this is no such description.
    pub fn parse(bytes: &'a [u8], pointer_bytes: usize) -> Option<Self> {
        let mut cursor = Cursor { bytes, at: 0 };
        cursor.tag(b"SDNA")?;
        cursor.tag(b"NAME")?;
        let names = cursor.texts()?;
        cursor.tag(b"TYPE")?;
        let types = cursor.texts()?;
        cursor.tag(b"TLEN")?;
        let sizes = types.iter().map(|_| cursor.short()).collect::<Option<_>>()?;
        cursor.tag(b"STRC")?;
        let count = cursor.count()?;
        let mut structs = Vec::new();
        for _ in 0..count {
            let (kind, fields) = (cursor.short()?, cursor.short()?);
            let fields = (0..fields).map(|_| Some((cursor.short()?, cursor.short()?)));
            structs.push(Struct { kind, fields: fields.collect::<Option<_>>()? });
        }
        Some(Self { names, types, sizes, structs, pointer_bytes })
    }

    /// The name of a struct.
    pub fn name(&self, index: usize) -> Option<&'a str> {
        self.types.get(self.structs.get(index)?.kind).copied()
    }

    /// Where a field of a struct is, in bytes. Structs have no padding but what is declared in them.
    pub fn field(&self, index: usize, wanted: &str) -> Option<Range<usize>> {
        let mut at = 0usize;
        for (kind, name) in &self.structs.get(index)?.fields {
            let name = self.names.get(*name)?;
            let is_pointer = name.starts_with(['*', '(']);
            let size = if is_pointer { self.pointer_bytes } else { *self.sizes.get(*kind)? };
            let end = at.checked_add(size.checked_mul(elements(name)?)?)?;
            if base(name) == wanted {
                return Some(at..end);
            }
            at = end;
        }
        None
    }
}

/// `filepath[1024]` → `filepath`, `(*free_edit)()` → `free_edit`.
fn base(name: &str) -> &str {
    let name = name.trim_start_matches(['*', '(']);
    name.split(['[', ')']).next().unwrap_or(name)
}

/// How many values a field has: `matrix[4][4]` → 16.
fn elements(name: &str) -> Option<usize> {
    let mut lengths = name.split('[').skip(1).map(|text| text.split(']').next()?.parse().ok());
    lengths.try_fold(1usize, |all, length: Option<usize>| all.checked_mul(length?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described() -> Vec<u8> {
        let mut bytes = b"SDNANAME".to_vec();
        let texts = |bytes: &mut Vec<u8>, texts: &[&str]| {
            bytes.extend(i32::try_from(texts.len()).unwrap().to_le_bytes());
            texts.iter().for_each(|text| bytes.extend(format!("{text}\0").bytes()));
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        };
        texts(&mut bytes, &["id", "*cache[3][2]", "(*call)()", "path[16]"]);
        bytes.extend(b"TYPE");
        texts(&mut bytes, &["char", "void", "ID", "Image"]);
        bytes.extend(b"TLEN");
        [1u16, 0, 10, 82].iter().for_each(|size| bytes.extend(size.to_le_bytes()));
        bytes.extend(b"STRC");
        bytes.extend(1i32.to_le_bytes());
        let fields = [3u16, 4, 2, 0, 1, 1, 1, 2, 0, 3];
        fields.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes
    }

    #[test]
    fn fields_are_found_by_their_sizes() {
        let bytes = described();
        let dna = Dna::parse(&bytes, 8).unwrap();
        assert_eq!((dna.name(0), dna.name(1)), (Some("Image"), None));
        assert_eq!(dna.field(0, "id"), Some(0..10));
        assert_eq!(dna.field(0, "cache"), Some(10..58));
        assert_eq!(dna.field(0, "path"), Some(66..82));
        assert_eq!(dna.field(0, "other"), None);
        assert_eq!(Dna::parse(&bytes, 4).unwrap().field(0, "path"), Some(38..54));
    }

    #[test]
    fn a_damaged_description_is_none() {
        let bytes = described();
        for length in 0..bytes.len() {
            assert!(Dna::parse(&bytes[..length], 8).is_none(), "{length}");
        }
    }
}
