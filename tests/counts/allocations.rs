//! Allocations, in all threads, for each entry of a request and each file of a folder.

use std::sync::Arc;

use farmhand::{meter::Progress, scan, server};
use stats_alloc::Region;

use super::{
    ALLOCATOR, alone,
    bodies::{self, ask, contents, folder},
    common::*,
    ledger::{Counts, Ledger, each},
    limits::{ALLOCATIONS, Limit},
};

const FEW: (usize, usize) = (1000, 2000);
const MANY: (usize, usize) = (10_000, 20_000);

/// Of what is on the disk there is less, since each file takes its time.
const FEW_FILES: (usize, usize) = (50, 100);
const MANY_FILES: (usize, usize) = (500, 1000);

fn limit(unit: &str) -> &'static Limit {
    ALLOCATIONS.iter().find(|limit| limit.unit == unit).unwrap()
}

/// What is done for this work in all threads; what the client needs to read the answer is a part of it.
fn count(work: impl FnOnce()) -> Counts {
    let region = Region::new(ALLOCATOR);
    work();
    let change = region.change();
    // Who counts nothing finds no fault.
    assert!(change.allocations > 0, "allocations are not counted");
    let mut counts = Counts::default();
    counts.0.insert("allocations", (change.allocations + change.reallocations) as f64);
    counts.0.insert("kilobytes", change.bytes_allocated as f64 / 1000.0);
    counts
}

fn hold_flat(
    ledger: &mut Ledger,
    unit: &str,
    numbers: [(usize, usize); 2],
    mut count: impl FnMut(usize) -> Counts,
) {
    // What is only done the first time.
    count(numbers[0].0);
    // How threads meet can only add to it.
    let mut count = |number| (0..3).map(|_| count(number)).reduce(Counts::least).unwrap();
    let [few, many] = numbers.map(|numbers| each(numbers, &mut count));
    ledger.is_flat(unit, &few, &many);
    ledger.hold(limit(unit), &many);
}

#[test]
fn an_entry_of_a_request_takes_no_more_allocations_than_listed() {
    let _alone = alone();
    let dir = bodies::directory();
    let server = TestServer::over(dir.path().join("storage"), server::Options::default());
    let mut connection = server.connect();
    let mut ledger = Ledger::default();
    let unknown = contents("unknown", MANY.1, 100);
    let known = contents("known", MANY_FILES.1, 100);
    let batches: Vec<_> = known.chunks(500).map(bodies::batch).collect();
    ask(&mut connection, &batches, 200);
    // They are too small for that, but it looks.
    server.until_indexed(0);

    hold_flat(&mut ledger, "requirement, unknown", [FEW, MANY], |number| {
        let request = bodies::requirements(&unknown[..number]);
        count(|| drop(ask(&mut connection, &[request], 200)))
    });
    hold_flat(&mut ledger, "requirement, known", [FEW_FILES, MANY_FILES], |number| {
        let request = bodies::requirements(&known[..number]);
        count(|| drop(ask(&mut connection, &[request], 200)))
    });
    hold_flat(&mut ledger, "link of a checkout", [FEW_FILES, MANY_FILES], |number| {
        let request = bodies::checkout("shot", &known[..number]);
        count(|| drop(ask(&mut connection, &[request], 200)))
    });
    ledger.balance();
}

#[test]
fn a_file_of_a_folder_takes_no_more_allocations_than_listed() {
    let _alone = alone();
    let home = bodies::directory();
    let scanner = |cache: &str| {
        let options = scan::Options {
            cache: Some(home.path().join(cache)),
            readers: Some(2),
            ..scan::Options::default()
        };
        scan::Scanner::new(options, Arc::new(Progress::default()), Arc::default()).unwrap()
    };
    let folders = [FEW_FILES.0, FEW_FILES.1, MANY_FILES.0, MANY_FILES.1]
        .map(|number| (number, folder(home.path(), number)));
    let folder = |number| &folders.iter().find(|(files, _)| *files == number).unwrap().1;
    let mut ledger = Ledger::default();

    let mut known = scanner("cache");
    for (_, folder) in &folders {
        known.scan(folder).unwrap();
    }
    hold_flat(&mut ledger, "unchanged file, scan", [FEW_FILES, MANY_FILES], |number| {
        count(|| {
            let scan = known.scan(folder(number)).unwrap();
            assert!(scan.files.iter().all(|file| file.cached));
            assert_eq!(scan.manifest().unwrap().entries().len(), number);
        })
    });
    let small = home.path().join("small");
    std::fs::create_dir(&small).unwrap();
    std::fs::write(small.join("file"), "content").unwrap();
    let mut run = 0;
    hold_flat(&mut ledger, "new file, scan", [FEW_FILES, MANY_FILES], |number| {
        run += 1;
        let mut new = scanner(&format!("cache-{run}"));
        // Its threads begin when there is something to do.
        new.scan(&small).unwrap();
        count(|| {
            let scan = new.scan(folder(number)).unwrap();
            assert_eq!(scan.files.iter().filter(|file| !file.cached).count(), number);
        })
    });
    ledger.balance();
}
