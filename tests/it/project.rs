//! Which folder `farmhand submit` sends, and what a `.blend` refers to outside of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use farmhand::server::FarmOptions;
use serde_json::Value;
use tempfile::TempDir;

use super::{common::*, submit::*};

/// The shot refers to `../textures`, as `lib/asset.blend` of the fixture does.
fn film() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let film = dir.path().join("home/projects/film");
    copy(&fixture("blend-project/textures"), &film.join("textures"));
    fs::create_dir_all(film.join("shots")).unwrap();
    fs::copy(fixture("blend-project/lib/asset.blend"), film.join("shots/010.blend")).unwrap();
    (dir, film)
}

/// The sample project, in a folder of some depth.
fn sample() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("a/b/c/project");
    copy(&fixture("blend-project"), &project);
    (dir, project)
}

fn submit_root(dir: &TempDir, file: &Path, root: &Path, url: &str, more: &[&str]) -> Output {
    let root = ["--root", root.to_str().unwrap()];
    submit(dir, file, url, &[&FRAMES[..], &root, more].concat())
}

fn put(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn checkout_of(server: &TestServer) -> PathBuf {
    let [checkout] = &checkouts_of(server)[..] else { panic!("not one checkout") };
    server.storage().join("jobs").join(checkout)
}

/// Puts another path in the place of one in a file that is not compressed.
fn replace_path(blend: &Path, from: &str, to: &str) {
    let mut content = fs::read(blend).unwrap();
    let at = content.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
    content[at..at + from.len()].fill(0);
    content[at..at + to.len()].copy_from_slice(to.as_bytes());
    fs::write(blend, content).unwrap();
}

#[test]
fn submit_without_root_lists_candidates() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, film) = film();
    let film = film.canonicalize().unwrap();
    let file = film.join("shots/010.blend");
    let output = submit(&dir, &file, &server.url(), &FRAMES);
    failed(&output, 2, "nothing was sent: the project of");
    nothing_was_sent(&server);
    let error = text(&output.stderr);
    let lines: Vec<_> = error.lines().filter(|line| line.contains("--root /")).collect();
    let line = |start: String| *lines.iter().find(|line| line.trim().starts_with(&start)).unwrap();
    let shots = line(format!("--root {}/shots  (1 file, ", film.display()));
    assert!(shots.contains("the folder of the file; does not hold all files"), "{shots}");
    let all = line(format!("--root {}  (14 files, ", film.display()));
    assert!(all.ends_with("; holds all files that are referred to)"), "{all}");
    assert_eq!(lines.len(), 2, "{error}");

    // A marker of version control is a candidate, and does not decide.
    fs::create_dir(film.parent().unwrap().join(".git")).unwrap();
    let output = submit(&dir, &file, &server.url(), &FRAMES);
    failed(&output, 2, "nothing was sent");
    let error = text(&output.stderr);
    assert!(error.contains("has .git; holds all files"), "{error}");
    nothing_was_sent(&server);

    // The flag as it is shown.
    let shown = all.trim().split("  (").next().unwrap();
    let flag: Vec<_> = shown.split(' ').collect();
    succeeded(&submit(&dir, &file, &server.url(), &[&FRAMES[..], &flag].concat()));
    assert!(tree(&checkout_of(&server)) == tree(&film));
}

#[test]
fn large_candidates_are_not_counted_out() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, film) = film();
    fs::create_dir(film.join(".hg")).unwrap();
    let many = film.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..10_001 {
        fs::hard_link(film.join("shots/010.blend"), many.join(number.to_string())).unwrap();
    }
    let output = submit(&dir, &film.join("shots/010.blend"), &server.url(), &FRAMES);
    let error = text(&output.stderr);
    let line = error.lines().find(|line| line.contains("has .hg")).unwrap();
    assert!(line.contains("(more than ") && line.contains(" files, more than "), "{line}");
}

/// The command line as README.md shows it, with another home and server.
#[test]
fn the_submit_example_of_readme_is_complete() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let mut examples = readme.lines().filter(|line| line.starts_with("farmhand submit "));
    let example = examples.next().unwrap();
    assert!(example.contains("film/shots/010.blend"), "{example}");
    assert!(examples.next().is_none());

    let server = TestServer::with_farm(farm_with_command("exit 0"));
    let (dir, film) = film();
    let home = dir.path().join("home");
    let (before, after) = (home.to_str().unwrap(), server.url());
    let example = example.replace('~', before).replace("http://farm:8080/", &after);
    let arguments: Vec<_> = example.split(' ').skip(1).collect();
    let output = farmhand(&dir.path().join("own")).args(arguments).output().unwrap();
    succeeded(&output);
    assert!(tree(&checkout_of(&server)) == tree(&film));
    let jobs = jobs_of(&server);
    assert_eq!(jobs[0]["status"], "completed");
    let blend = jobs[0]["settings"]["blendfile"].as_str().unwrap();
    assert!(blend.ends_with("/shots/010.blend"), "{blend}");
}

#[test]
fn submit_reports_what_is_sent_and_where() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, film) = film();
    let file = film.join("shots/010.blend");
    let bytes: usize = tree(&film).values().map(Vec::len).sum();
    let said = format!("{}: 14 files, ", film.display());
    for dry_run in [&["--dry-run"][..], &[]] {
        let output = submit_root(&dir, &file, &film, &server.url(), dry_run);
        succeeded(&output);
        let error = text(&output.stderr);
        let line = error.lines().find(|line| line.starts_with(&said)).expect(&error);
        assert!(line.ends_with(&format!("MiB, to {}", server.url())), "{line}");
        let json = [dry_run, &["--json"]].concat();
        let output = submit_root(&dir, &file, &film, &server.url(), &json);
        let answer: Value = serde_json::from_str(&succeeded(&output)).unwrap();
        assert_eq!(answer["root"], film.to_str().unwrap());
        assert_eq!((&answer["files"], &answer["bytes"]), (&14.into(), &bytes.into()));
        assert_eq!(answer["server"], server.url());
    }
}

#[test]
fn references_outside_the_root_are_refused() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, project) = sample();
    let file = project.join("scene_outside.blend");
    let outside = project.with_file_name("blend-project-shared").join("outside_tex.png");
    // Blender does not find it either.
    let output = submit_root(&dir, &file, &project, &server.url(), &["--dry-run"]);
    succeeded(&output);
    assert!(text(&output.stderr).contains("nor do they exist"), "{}", text(&output.stderr));

    put(&outside, "x");
    let output = submit_root(&dir, &file, &project, &server.url(), &[]);
    let says = format!("1 needed files are not in {}", project.display());
    failed(&output, 2, &says);
    failed(&output, 2, outside.to_str().unwrap());
    nothing_was_sent(&server);

    // A root with all of it decides.
    let root = project.parent().unwrap();
    succeeded(&submit_root(&dir, &file, root, &server.url(), &["--dry-run"]));
    // Workers may find it elsewhere.
    let output = submit_root(&dir, &file, &project, &server.url(), &["--allow-outside"]);
    succeeded(&output);
    assert!(text(&output.stderr).contains("outside_tex.png"), "{}", text(&output.stderr));
    assert!(tree(&checkout_of(&server)) == tree(&project));
}

#[test]
fn caches_and_tiles_outside_are_refused() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, project) = sample();
    let root = project.join("shots");
    // It is compressed.
    let file = root.join("сцена 01/сцена_中文.blend");
    let output = submit_root(&dir, &file, &root, &server.url(), &[]);
    failed(&output, 2, "9 needed files are not in");
    let named = [
        "cache/fluid",
        "textures/udim/wall.<UDIM>.png",
        "lib/asset.blend",
        "звуки и кэш/дождь.wav",
    ];
    for path in named {
        failed(&output, 2, project.join(path).to_str().unwrap());
    }
    nothing_was_sent(&server);
    succeeded(&submit_root(&dir, &file, &project, &server.url(), &["--dry-run"]));
}

#[test]
fn references_of_libraries_are_followed() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, project) = sample();
    // A library that refers to `../../textures`.
    let library = project.join("shots/сцена 01/сцена_中文.blend");
    fs::copy(library, project.join("lib/asset.blend")).unwrap();
    let outside = project.with_file_name("textures").join("environment.exr");
    put(&outside, "x");
    let file = project.join("scene.blend");
    let output = submit_root(&dir, &file, &project, &server.url(), &[]);
    failed(&output, 2, outside.to_str().unwrap());
    nothing_was_sent(&server);
}

/// The sample's sequencer remembers `//../../../../Desktop/` as the last folder that was looked into.
#[test]
fn paths_that_are_no_input_block_nothing() {
    let server = TestServer::with_farm(farm_with_command("exit 0"));
    let (dir, project) = sample();
    put(&dir.path().join("Desktop/notes.txt"), "x");
    let blend = fs::read(project.join("scene.blend")).unwrap();
    let bookmark = b"//../../../../Desktop/";
    assert!(blend.windows(bookmark.len()).any(|bytes| bytes == bookmark));
    let file = project.join("scene.blend");
    let output = submit_root(&dir, &file, &project, &server.url(), &["--dry-run"]);
    succeeded(&output);
    assert!(!text(&output.stderr).contains("WARN"), "{}", text(&output.stderr));
}

#[test]
fn absolute_references_are_not_silent() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, project) = sample();
    let file = project.join("scene.blend");
    let (inside, outside) = (project.join("textures/environment.exr"), dir.path().join("env.exr"));
    replace_path(&file, "//textures/environment.exr", inside.to_str().unwrap());
    let output = submit_root(&dir, &file, &project, &server.url(), &["--dry-run"]);
    succeeded(&output);
    let error = text(&output.stderr);
    assert!(error.contains("1 files are referred to by absolute paths"), "{error}");

    replace_path(&file, inside.to_str().unwrap(), outside.to_str().unwrap());
    let submitted = || submit_root(&dir, &file, &project, &server.url(), &[]);
    put(&outside, "x");
    failed(&submitted(), 2, outside.to_str().unwrap());
    nothing_was_sent(&server);
    // It may exist where the workers are.
    fs::remove_file(&outside).unwrap();
    succeeded(&submitted());
}

#[test]
fn ignored_references_are_refused() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, project) = sample();
    fs::write(project.join(".farmhandignore"), "*.exr\n").unwrap();
    let file = project.join("scene.blend");
    let output = submit_root(&dir, &file, &project, &server.url(), &[]);
    failed(&output, 2, "1 needed files are ignored by the rules");
    failed(&output, 2, "textures/environment.exr");
    nothing_was_sent(&server);
}

#[test]
fn unreadable_references_are_a_warning() {
    let server = TestServer::with_farm(FarmOptions::default());
    let (dir, project) = sample();
    let file = project.join("scene.blend");
    fs::write(&file, [0x1f, 0x8b, 8, 0]).unwrap();
    let output = submit_root(&dir, &file, &project, &server.url(), &["--dry-run"]);
    succeeded(&output);
    assert!(text(&output.stderr).contains("compressed with gzip"), "{}", text(&output.stderr));
}
