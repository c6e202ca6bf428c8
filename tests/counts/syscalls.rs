//! System calls of the real program for each thing it does.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::{
    alone,
    bodies::{self, ask, contents, folder},
    common::*,
    ledger::{Counts, Ledger, each},
    limits::{CALLS, Limit},
    trace::Traced,
};

/// How many are done, and with how many more that is compared; and the same for ten times as many.
const FEW: (usize, usize) = (50, 100);
const MANY: (usize, usize) = (500, 1000);

fn limit(unit: &str) -> &'static Limit {
    CALLS.iter().find(|limit| limit.unit == unit).unwrap()
}

/// Counts one unit, and looks whether one of many costs the same.
fn hold_flat(ledger: &mut Ledger, unit: &str, mut count: impl FnMut(usize) -> Counts) {
    // What is only done the first time.
    count(FEW.0);
    let [few, many] = [FEW, MANY].map(|numbers| each(numbers, &mut count));
    ledger.is_flat(unit, &few, &many);
    ledger.hold(limit(unit), &many);
}

/// As if all of it had been needed last two hours ago.
fn age(storage: &Path) {
    let then = SystemTime::now() - Duration::from_secs(7200);
    let then = then.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let then = Timespec { tv_sec: then.try_into().unwrap(), tv_nsec: 0 };
    let times = Timestamps { last_access: then, last_modification: then };
    for blob in walkdir::WalkDir::new(storage.join("file-store/stored")).min_depth(3) {
        let path = blob.unwrap().into_path();
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    }
}

#[test]
fn an_upload_takes_no_more_calls_than_listed() {
    let _alone = alone();
    let mut ledger = Ledger::default();
    for (durability, unit, batched, numbers) in [
        ("full", "upload, full durability", "upload in a batch, full durability", (20, 50)),
        ("relaxed", "upload, relaxed", "upload in a batch, relaxed", (50, 150)),
    ] {
        let home = bodies::directory();
        let (mut server, address) = Traced::server(home.path(), durability);
        let mut connection = Connection::new(address);
        let mut run = 0;
        let mut fresh = |number| {
            run += 1;
            contents(&format!("{unit} {run}"), number, 16 << 10)
        };
        let mut stored = |number| {
            let uploads: Vec<_> = fresh(number).iter().map(|one| bodies::upload(one)).collect();
            server.count(|| drop(ask(&mut connection, &uploads, 204)))
        };
        // What is only done the first time.
        stored(1);
        let stored = each(numbers, stored);
        ledger.hold(limit(unit), &stored);
        let stored = each(numbers, |number| {
            let batch = bodies::batch(&fresh(number));
            server.count(|| drop(ask(&mut connection, &[batch], 200)))
        });
        ledger.hold(limit(batched), &stored);
    }
    ledger.balance();
}

/// Whether a file system, asked again for what it does not have, says so without looking; those in memory do not.
fn remembers_what_it_lacks(dir: &Path) -> bool {
    use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
    let nothing = dir.join("nothing");
    assert!(!nothing.exists());
    let looked = openat2(CWD, &nothing, OFlags::PATH, Mode::empty(), ResolveFlags::CACHED);
    looked.unwrap_err() == rustix::io::Errno::NOENT
}

#[test]
fn what_is_asked_of_a_store_takes_no_more_calls_than_listed() {
    let _alone = alone();
    let home = bodies::directory();
    let storage = home.path().join("storage");
    let known = contents("known", MANY.1, 100);
    let batches: Vec<_> = known.chunks(500).map(bodies::batch).collect();
    {
        // How long it takes to make them durable depends on what others write.
        let mut relaxed = farmhand(home.path());
        relaxed.args(["serve", "--listen", "127.0.0.1:0", "--storage"]).arg(&storage);
        relaxed.env("FARMHAND_STORE_DURABILITY", "relaxed").stderr(Stdio::null());
        let server = ServerProcess::spawn(&mut relaxed);
        ask(&mut server.connect(), &batches, 200);
    }
    let (mut server, address) = Traced::server(home.path(), "full");
    let mut connection = Connection::new(address);
    let mut ledger = Ledger::default();

    let again = each(FEW, |number| {
        let uploads: Vec<_> = known[..number].iter().map(|one| bodies::upload(one)).collect();
        server.count(|| drop(ask(&mut connection, &uploads, 208)))
    });
    ledger.hold(limit("upload of what is stored"), &again);
    let looked = each(FEW, |number| {
        let looks: Vec<_> = known[..number].iter().map(|one| bodies::status(one)).collect();
        server.count(|| drop(ask(&mut connection, &looks, 200)))
    });
    ledger.hold(limit("status"), &looked);

    hold_flat(&mut ledger, "requirement, known", |number| {
        let request = bodies::requirements(&known[..number]);
        server.count(|| assert_eq!(ask(&mut connection, &[request], 200), b"{\"files\":[]}"))
    });
    hold_flat(&mut ledger, "requirement, known for long", |number| {
        age(&storage);
        let request = bodies::requirements(&known[..number]);
        server.count(|| drop(ask(&mut connection, &[request], 200)))
    });
    let unknown = contents("unknown", MANY.1, 100);
    hold_flat(&mut ledger, "requirement, unknown", |number| {
        let request = bodies::requirements(&unknown[..number]);
        server.count(|| drop(ask(&mut connection, &[request], 200)))
    });
    hold_flat(&mut ledger, "link of a checkout", |number| {
        let request = bodies::checkout("shot", &known[..number]);
        server.count(|| drop(ask(&mut connection, &[request], 200)))
    });
    ledger.balance();
}

#[test]
fn what_is_lacking_is_looked_for_once() {
    let _alone = alone();
    let home = tempfile::tempdir().unwrap();
    let (mut server, address) = Traced::server(home.path(), "full");
    let mut connection = Connection::new(address);
    let mut ledger = Ledger::default();
    let missed = contents("missed", FEW.1, 100);
    let looked = each(FEW, |number| {
        let looks: Vec<_> = missed[..number].iter().map(|one| bodies::status(one)).collect();
        // The first time, the disk is asked.
        server.count(|| drop(ask(&mut connection, &looks, 200)));
        server.count(|| drop(ask(&mut connection, &looks, 200)))
    });
    let unit = match remembers_what_it_lacks(home.path()) {
        true => "status, unknown",
        false => "status, unknown, where that is not remembered",
    };
    ledger.hold(limit(unit), &looked);
    ledger.balance();
}

#[test]
fn a_file_of_a_folder_takes_no_more_calls_than_listed() {
    let _alone = alone();
    let home = bodies::directory();
    let server = ServerProcess::start(home.path(), &home.path().join("storage"), &[]);
    let mut ledger = Ledger::default();

    let folders = [FEW.0, FEW.1, MANY.0, MANY.1].map(|number| {
        let folder = folder(home.path(), number);
        let mut push = farmhand(home.path());
        push.arg("push").arg(&folder).args(["--server", &server.url]).stderr(Stdio::null());
        assert!(push.status().unwrap().success());
        (number, folder.into_os_string().into_string().unwrap())
    });
    let folder = |number| folders.iter().find(|(files, _)| *files == number).unwrap().1.as_str();
    for (unit, command) in [("unchanged file, plan", "plan"), ("unchanged file, push", "push")] {
        hold_flat(&mut ledger, unit, |number| {
            Traced::command(home.path(), &[command, folder(number), "--server", &server.url])
        });
    }
    let mut run = 0;
    hold_flat(&mut ledger, "new file, hash", |number| {
        // To a cache that is empty all files are new.
        run += 1;
        let cache = home.path().join(format!("cache-{run}"));
        let cache = cache.to_str().unwrap();
        let arguments = ["hash", folder(number), "--cache-dir", cache, "--readers", "2"];
        Traced::command(home.path(), &arguments)
    });
    ledger.balance();
}
