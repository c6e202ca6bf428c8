//! The paths in the structs of a `.blend`.

use std::{path::Path, sync::atomic::AtomicBool};

use super::{
    BlendError,
    blocks::{Block, BlockReader},
    dna::Dna,
};

/// Structs with paths are shorter than this; longer blocks are skipped.
const MAX_STRUCT_BYTES: u64 = 64 << 10;

/// The longest description of structs; those of Blender 5 have 132 KiB.
const MAX_DNA_BYTES: u64 = 16 << 20;

/// The most memory for structs that may have a path, until the description of structs has been read.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// Images with these sources are made by Blender, and their path means nothing.
const GENERATED: u16 = 4;
const VIEWER: u16 = 5;

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlendPathKind {
    /// A file, like an image.
    File,
    /// A directory of files that Blender reads, like a fluid cache.
    Directory,
    /// A `.blend` that data is linked from.
    Library,
}

/// A path in a `.blend`, as it is written there: `//textures/wood.png` begins in the directory of the
/// `.blend`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlendPath {
    /// The path.
    pub text: String,
    /// What it leads to.
    pub kind: BlendPathKind,
}

/// Structs, the field with the path (by the names that it has had), and what that leads to. Fields with
/// output paths are not listed.
const FIELDS: &[(&str, &[&str], BlendPathKind)] = &[
    ("CacheFile", &["filepath"], BlendPathKind::File),
    ("CacheFileLayer", &["filepath"], BlendPathKind::File),
    ("Camera", &["custom_filepath"], BlendPathKind::File),
    ("CustomDataExternal", &["filename"], BlendPathKind::File),
    ("FluidDomainSettings", &["cache_directory"], BlendPathKind::Directory),
    ("Image", &["name", "filepath"], BlendPathKind::File),
    ("Library", &["name", "filepath"], BlendPathKind::Library),
    ("MeshCacheModifierData", &["filepath"], BlendPathKind::File),
    ("MovieClip", &["name", "filepath"], BlendPathKind::File),
    ("NodeShaderScript", &["filepath"], BlendPathKind::File),
    ("NodeShaderTexIES", &["filepath"], BlendPathKind::File),
    ("OceanModifierData", &["cachepath"], BlendPathKind::Directory),
    ("PointCache", &["path"], BlendPathKind::Directory),
    ("Strip", &["dir", "dirpath"], BlendPathKind::Directory),
    ("StripData", &["dir", "dirpath"], BlendPathKind::Directory),
    ("VFont", &["name", "filepath"], BlendPathKind::File),
    ("Volume", &["filepath"], BlendPathKind::File),
    ("bSound", &["name", "filepath"], BlendPathKind::File),
];

/// Fields that, if they are not zero, say that the content is in the `.blend` itself.
const PACKED: &[&str] = &["packedfile", "packedfiles", "newpackedfile", "archive_parent_library"];

/// The paths of all inputs that a `.blend` names, sorted, each once.
///
/// Reads the file once, in little memory. A compressed file is decompressed for that.
///
/// # Errors
/// If the file cannot be read, is no `.blend`, or is one that is not understood.
pub fn blend_paths(file: &Path, stop: &AtomicBool) -> Result<Vec<BlendPath>, BlendError> {
    let mut blocks = BlockReader::open(file, stop)?;
    let (mut kept, mut kept_bytes): (Vec<(usize, Vec<u8>)>, usize) = (Vec::new(), 0);
    let (mut description, mut content) = (None, Vec::new());
    while let Some(block) = blocks.next()? {
        if block.code == *b"DNA1" {
            if block.size_bytes > MAX_DNA_BYTES {
                return Err(BlendError::Damaged("its description of structs is too long"));
            }
            blocks.read(&block, &mut content)?;
            description = Some(std::mem::take(&mut content));
        } else if may_have_path(&block) {
            blocks.read(&block, &mut content)?;
            if has_path(&content) {
                kept_bytes += content.len();
                if kept_bytes > MAX_KEPT_BYTES {
                    return Err(BlendError::Unsupported("it names too many paths"));
                }
                kept.push((block.struct_index, content.clone()));
            }
        } else {
            blocks.skip(&block)?;
        }
    }
    let description = description.unwrap_or_default();
    let dna = Dna::parse(&description, blocks.pointer_bytes())
        .ok_or(BlendError::Damaged("its description of structs cannot be read"))?;
    let mut paths: Vec<_> =
        kept.iter().filter_map(|(index, content)| path_in(&dna, *index, content)).collect();
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

/// Structs with paths are data-blocks or items of lists, and so alone in their block. Struct 0 is raw data.
fn may_have_path(block: &Block) -> bool {
    block.struct_index > 0 && block.count == 1 && block.size_bytes <= MAX_STRUCT_BYTES
}

/// Whether a text in this may be an absolute or blend-relative path. Rules out most structs without a path
/// before their fields are known.
fn has_path(content: &[u8]) -> bool {
    memchr::memchr2_iter(b'/', b'\\', content).any(|at| {
        let start = match content[..at] {
            [.., letter, b':'] if letter.is_ascii_alphabetic() => at - 2,
            // The last byte of a number or pointer before an aligned field may look like text.
            [.., before] if (0x20..0x7f).contains(&before) && at % 4 != 0 => return false,
            _ => at,
        };
        text(&content[start..]).is_some_and(|path| path.len() > 2)
    })
}

/// A text up to its NUL.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = memchr::memchr(0, bytes).unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    (!text.is_empty() && !text.contains(char::is_control)).then_some(text)
}

fn path_in(dna: &Dna<'_>, index: usize, content: &[u8]) -> Option<BlendPath> {
    let name = dna.name(index)?;
    let (_, fields, kind) = FIELDS.iter().find(|(of, ..)| *of == name)?;
    let field = |name: &str| content.get(dna.field(index, name)?);
    let is_set = |name: &&str| field(name).is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0));
    if PACKED.iter().any(is_set) {
        return None;
    }
    if let Some([low, high]) = field("source").filter(|_| name == "Image")
        && matches!(u16::from_le_bytes([*low, *high]), GENERATED | VIEWER)
    {
        return None;
    }
    let text = text(fields.iter().find_map(|name| field(name))?)?.to_owned();
    Some(BlendPath { text, kind: *kind })
}

#[cfg(test)]
// `clippy.toml` allows this in test functions, but not in what they share.
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    fn paths(file: &Path) -> Result<Vec<(String, BlendPathKind)>, BlendError> {
        let paths = blend_paths(file, &AtomicBool::new(false))?;
        Ok(paths.into_iter().map(|path| (path.text, path.kind)).collect())
    }

    fn expected(up: &str) -> Vec<(String, BlendPathKind)> {
        use BlendPathKind::{Directory, File, Library};
        let mut expected: Vec<_> = [
            ("cache/anim.abc", File),
            ("cache/fluid", Directory),
            ("cache/plate/plate_0001.png", File),
            ("cache/volume/smoke_0001.vdb", File),
            ("lib/asset.blend", Library),
            ("lib/материалы.blend", Library),
            ("textures/environment.exr", File),
            ("textures/udim/wall.<UDIM>.png", File),
            ("звуки и кэш/дождь.wav", File),
        ]
        .into_iter()
        .map(|(path, kind)| (format!("//{up}{path}"), kind))
        .collect();
        expected.sort();
        expected
    }

    #[test]
    fn inputs_are_found_and_nothing_else() {
        assert_eq!(paths(&fixture("blend-project/scene.blend")).unwrap(), expected(""));
        // Compressed.
        let shot = fixture("blend-project/shots/сцена 01/сцена_中文.blend");
        assert_eq!(paths(&shot).unwrap(), expected("../../"));
        // By Blender 5, whose heads of blocks are longer.
        assert_eq!(paths(&fixture("blend-resaves/v0.blend")).unwrap(), []);
    }

    /// A file of one data-block.
    fn blend(
        dir: &Path,
        name: &str,
        fields: &[(&str, &str, u16)],
        content: &[u8],
    ) -> std::path::PathBuf {
        let mut dna = b"SDNANAME".to_vec();
        let texts = |dna: &mut Vec<u8>, texts: &mut dyn Iterator<Item = &str>| {
            let texts: Vec<_> = texts.collect();
            dna.extend(i32::try_from(texts.len()).unwrap().to_le_bytes());
            texts.iter().for_each(|text| dna.extend(format!("{text}\0").bytes()));
            dna.resize(dna.len().next_multiple_of(4), 0);
        };
        let numbers = |dna: &mut Vec<u8>, numbers: &[u16]| {
            numbers.iter().for_each(|number| dna.extend(number.to_le_bytes()));
            dna.resize(dna.len().next_multiple_of(4), 0);
        };
        texts(&mut dna, &mut fields.iter().map(|(_, name, _)| *name));
        dna.extend(b"TYPE");
        texts(
            &mut dna,
            &mut ["raw", name].into_iter().chain(fields.iter().map(|(kind, ..)| *kind)),
        );
        dna.extend(b"TLEN");
        let sizes: Vec<_> =
            [0, 0].into_iter().chain(fields.iter().map(|(.., size)| *size)).collect();
        numbers(&mut dna, &sizes);
        dna.extend(b"STRC\x02\0\0\0\0\0\0\0\x01\0");
        dna.extend(u16::try_from(fields.len()).unwrap().to_le_bytes());
        for number in 0..u16::try_from(fields.len()).unwrap() {
            numbers(&mut dna, &[number + 2, number]);
        }
        let mut bytes = b"BLENDER17-01v0500".to_vec();
        let mut block = |code: &[u8; 4], index: i32, content: &[u8]| {
            bytes.extend(code);
            bytes.extend(index.to_le_bytes());
            bytes.extend([0; 8]);
            bytes.extend(i64::try_from(content.len()).unwrap().to_le_bytes());
            bytes.extend(1i64.to_le_bytes());
            bytes.extend(content);
        };
        block(b"IM\0\0", 1, content);
        block(b"DNA1", 0, &dna);
        block(b"ENDB", 0, b"");
        let file = dir.join("made.blend");
        fs::write(&file, bytes).unwrap();
        file
    }

    #[test]
    fn packed_and_generated_images_have_no_path() {
        let dir = tempfile::tempdir().unwrap();
        let fields = [
            ("char", "name[12]", 1),
            ("short", "source", 2),
            ("char", "_pad[2]", 1),
            ("void", "*packedfile", 0),
        ];
        let content = |source: u8, packed: u8| {
            let mut content = b"//../a.png\0?".to_vec();
            content.extend([source, 0, 0, 0, packed, 0, 0, 0, 0, 0, 0, 0]);
            content
        };
        let of = |source, packed| {
            paths(&blend(dir.path(), "Image", &fields, &content(source, packed))).unwrap()
        };
        assert_eq!(of(1, 0), [("//../a.png".to_owned(), BlendPathKind::File)]);
        assert_eq!(of(1, 7), []);
        assert_eq!(of(4, 0), []);
        // Not every struct with a path names an input.
        let output = blend(dir.path(), "RenderData", &[("char", "pic[24]", 1)], &content(1, 0));
        assert_eq!(paths(&output).unwrap(), []);
    }

    #[test]
    fn unreadable_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.blend");
        let read = |content: &[u8]| {
            fs::write(&file, content).unwrap();
            paths(&file).unwrap_err().to_string()
        };
        assert_eq!(read(b""), "it is not a .blend file");
        assert_eq!(read(b"text"), "it is not a .blend file");
        assert!(read(&[0x1f, 0x8b, 8, 0]).contains("gzip"));
        assert!(read(b"BLENDER-V279").contains("big-endian"));
        assert!(read(b"BLENDER19-02v0600").contains("newer"));
        for name in ["scene.blend", "shots/сцена 01/сцена_中文.blend"] {
            let whole = fs::read(fixture("blend-project").join(name)).unwrap();
            for length in [20, 1000, whole.len() / 2, whole.len() * 3 / 4] {
                read(&whole[..length]);
            }
        }
        let missing = paths(&dir.path().join("missing")).unwrap_err();
        assert!(matches!(missing, BlendError::Io(_)), "{missing}");
        let stopped = blend_paths(&fixture("blend-project/scene.blend"), &AtomicBool::new(true));
        assert!(matches!(stopped, Err(BlendError::Stopped)));
    }
}
