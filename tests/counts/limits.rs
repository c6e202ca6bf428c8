//! What may be spent.
//!
//! A test that finds more prints lines of these tables with what it has counted. If something has become cheaper,
//! put in the lower figure; a higher one wants a reason that is worth it.

/// One thing, and the most that may be done for it. What is not listed may not be done at all.
pub struct Limit {
    pub unit: &'static str,
    /// What, and how often for each.
    pub most: &'static [(&'static str, f64)],
    /// What each cannot be done without: if that is not found, not everything was counted.
    pub needs: &'static [&'static str],
}

/// A few calls that come late, or with a thread that has begun meanwhile, are not held against a unit.
pub const SLACK: f64 = 0.05;

/// By how much one may cost more if there are ten times as many: as with the logarithm of their number, and no worse. What is
/// worth while only for many may be done only then.
pub const GROWTH: f64 = 1.6;

/// What one of many takes, whatever becomes of all of them. The two directories of a blob are opened, so that
/// no link on the way to its name is followed; with full durability, one by one, they are synced by that, too.
const IN_A_BATCH: &[(&str, f64)] = &[
    ("close", 3.0),
    ("mkdir", 1.0),
    ("open", 3.0),
    ("rename", 1.0),
    ("stat", 2.0),
    ("statfs", 1.0),
    ("write", 1.0),
];

/// System calls. There is a directory for each hundred files. To open a file by what the system has in memory, look at
/// it and close it is cheaper than to wake a thread that may wait for the disk; for a new upload, that is in vain. Many blobs are
/// looked at from open directories, of which there are 256.
pub const CALLS: &[Limit] = &[
    Limit {
        unit: "upload, full durability",
        most: &[
            ("close", 3.0),
            ("fdatasync", 1.0),
            ("fsync", 2.0),
            ("mkdir", 1.0),
            ("open", 4.0),
            ("rename", 1.0),
            ("stat", 1.0),
            ("statfs", 1.0),
            ("write", 1.0),
        ],
        needs: &["write"],
    },
    Limit {
        unit: "upload, relaxed",
        most: &[
            ("close", 3.0),
            ("mkdir", 1.0),
            ("open", 4.0),
            ("rename", 1.0),
            ("stat", 1.0),
            ("statfs", 1.0),
            ("write", 1.0),
        ],
        needs: &["write"],
    },
    // The whole batch is synced as one.
    Limit { unit: "upload in a batch, full durability", most: IN_A_BATCH, needs: &["write"] },
    Limit { unit: "upload in a batch, relaxed", most: IN_A_BATCH, needs: &["write"] },
    Limit {
        unit: "upload of what is stored",
        most: &[("close", 1.0), ("open", 1.0), ("stat", 1.0)],
        needs: &["stat"],
    },
    Limit {
        unit: "status",
        most: &[("close", 1.0), ("open", 1.0), ("stat", 1.0)],
        needs: &["stat"],
    },
    Limit { unit: "status, unknown", most: &[("open", 1.0)], needs: &["open"] },
    Limit {
        unit: "status, unknown, where that is not remembered",
        most: &[("open", 1.0), ("stat", 1.0)],
        needs: &["stat"],
    },
    Limit {
        unit: "requirement, known",
        most: &[("close", 0.2), ("open", 0.2), ("stat", 1.0)],
        needs: &["stat"],
    },
    Limit {
        unit: "requirement, known for long",
        most: &[("close", 0.2), ("open", 0.2), ("stat", 1.0), ("utimens", 1.0)],
        needs: &["utimens"],
    },
    Limit {
        unit: "requirement, unknown",
        most: &[("close", 0.25), ("getdents", 0.1), ("open", 0.25), ("stat", 1.05)],
        needs: &["stat"],
    },
    Limit {
        unit: "link of a checkout",
        most: &[("close", 0.25), ("open", 0.25), ("stat", 1.0), ("symlink", 1.0)],
        needs: &["symlink"],
    },
    Limit { unit: "unchanged file, plan", most: &[("stat", 1.01)], needs: &["stat"] },
    Limit { unit: "unchanged file, push", most: &[("stat", 1.01)], needs: &["stat"] },
    Limit {
        unit: "new file, hash",
        // What is written are pages of the hash cache.
        most: &[("close", 1.01), ("open", 1.01), ("read", 1.03), ("stat", 2.01), ("write", 0.1)],
        needs: &["read"],
    },
];

/// Allocations, and how much memory they are in sum: not at once. How work is shared between threads makes a
/// difference, so these are a little above what is counted.
pub const ALLOCATIONS: &[Limit] = &[
    Limit {
        unit: "requirement, unknown",
        most: &[("allocations", 0.2), ("kilobytes", 0.9)],
        needs: &[],
    },
    Limit {
        unit: "requirement, known",
        most: &[("allocations", 1.0), ("kilobytes", 0.6)],
        needs: &[],
    },
    Limit {
        unit: "link of a checkout",
        most: &[("allocations", 2.2), ("kilobytes", 0.75)],
        needs: &[],
    },
    Limit {
        unit: "unchanged file, scan",
        most: &[("allocations", 10.0), ("kilobytes", 0.85)],
        needs: &[],
    },
    Limit {
        unit: "new file, scan",
        most: &[("allocations", 10.0), ("kilobytes", 1.2)],
        needs: &[],
    },
];
