//! Reads which other files a `.blend` refers to: images, libraries, sounds, caches and so on.
//!
//! A `.blend` is a list of blocks (`blocks`), each of which is a C struct, and carries a description of all
//! structs (`dna`). With that, `paths` reads exactly the fields that hold the paths of inputs: a search for
//! strings would also find bookmarks of the file browser, output paths, and the old paths of images that
//! have been packed into the file.

mod blocks;
mod dna;
mod paths;

pub use blocks::BlendError;
pub use paths::{BlendPath, BlendPathKind, blend_paths};
