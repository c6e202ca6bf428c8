//! The layering of `src/` is law: a room names only the rooms listed for it in `docs/DESIGN.md`, and here.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// (room, rooms it may name), bottom-up: a room may only name rooms above it in this list.
const ROOMS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("disk", &[]),
    ("exec", &[]),
    ("meter", &[]),
    ("chunks", &["domain"]),
    ("preview", &["domain"]),
    ("wire", &["domain"]),
    ("sha256", &[]),
    ("jobs", &["domain"]),
    ("ledger", &["jobs"]),
    ("scan", &["domain", "disk", "meter", "sha256"]),
    ("store", &["domain", "disk", "chunks"]),
    ("client", &["domain", "wire", "jobs"]),
    ("server", &["domain", "disk", "exec", "wire", "jobs", "ledger", "store"]),
    ("agent", &["domain", "disk", "exec", "meter", "chunks", "wire", "scan", "client"]),
    ("control", &["domain", "disk", "scan", "client", "agent"]),
    ("conformance", &["domain", "wire", "client"]),
    (
        "cli",
        &[
            "domain",
            "disk",
            "exec",
            "meter",
            "preview",
            "wire",
            "jobs",
            "ledger",
            "scan",
            "store",
            "client",
            "server",
            "agent",
            "control",
            "conformance",
        ],
    ),
];

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The rooms that a file names: whatever follows `crate::`, alone or in braces.
fn named_rooms(source: &str) -> BTreeSet<String> {
    let ident = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let code: Vec<&str> =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut found = BTreeSet::new();
    for tail in code.split("crate::").skip(1) {
        let Some(group) = tail.strip_prefix('{') else {
            found.insert(ident(tail));
            continue;
        };
        let (mut depth, mut starts) = (0, true);
        for (at, character) in group.char_indices() {
            if starts {
                found.insert(ident(&group[at..]));
                starts = false;
            }
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => starts = true,
                _ => {}
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn rooms_name_only_the_rooms_below_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (place, (room, below)) in ROOMS.iter().enumerate() {
        for name in *below {
            assert!(ROOMS[..place].iter().any(|(room, _)| room == name), "{room} → {name} goes up");
        }
    }
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    for file in rust_files(&src) {
        let relative = file.strip_prefix(&src).unwrap();
        let room = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = room.trim_end_matches(".rs");
        if matches!(room, "lib" | "main") {
            continue;
        }
        let (_, below) = ROOMS
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("the room `{room}` is not listed"));
        for name in named_rooms(&fs::read_to_string(&file).unwrap()) {
            assert!(
                name == room || below.contains(&name.as_str()),
                "{}: `{room}` may not name `{name}`",
                relative.display()
            );
            used.insert((room.to_owned(), name));
        }
    }
    // The list says what is, not what might be: but for `cli`, which may name everything.
    for (room, below) in ROOMS.iter().filter(|(room, _)| *room != "cli") {
        for name in *below {
            assert!(
                used.contains(&(room.to_string(), name.to_string())),
                "{room} does not use {name}"
            );
        }
    }
}

#[test]
fn the_check_sees_every_way_to_name_a_room() {
    let source = "use crate::{disk::{self, touch}, store};\nuse crate::wire::X;\n// crate::cli\nfn f() { crate::exec::g() }";
    let expected = ["disk", "exec", "store", "wire"];
    assert_eq!(named_rooms(source).into_iter().collect::<Vec<_>>(), expected);
}
