//! Configuration files of all kinds: settings or an error that says what is wrong, never a panic.

use std::{fs, time::Duration};

use proptest::prelude::*;
use toml::{Table, Value};

use super::settings::{Overrides, Settings};
use crate::store::Reserve;

/// Loads a file with this content; the error is what a user would read.
fn load(text: &[u8]) -> Result<Settings, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, text).unwrap();
    Settings::load(Some(&file), &Overrides::default()).map_err(|failure| format!("{failure:?}"))
}

/// Names of settings and sections, and others.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "server", "storage", "log_format", "progress", "store", "durability", "reserve", "serve",
            "listen", "anonymous", "default_ignores", "defer", "hold", "max_json", "max_files", "scan", "readers",
            "cache_dir", "upload", "parallel",
        ]).prop_map(str::to_owned),
        1 => "[a-z._\" ]{0,5}",
    ]
}

fn any_toml() -> impl Strategy<Value = Table> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec![
            "30s", "5%", "10GiB", "text", "auto", "-1s", "101%", "9e99 B", "full"
        ])
        .prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name(), inner, 0..6)
                .prop_map(|fields| Value::Table(fields.into_iter().collect())),
        ]
    });
    prop::collection::btree_map(name(), value, 0..8).prop_map(|fields| fields.into_iter().collect())
}

/// Settings that are right.
#[derive(Debug, Clone)]
struct Sample {
    hold_ms: u64,
    grace_s: u64,
    max_files: u32,
    max_json: u64,
    reserve: Result<u64, f64>,
    server: String,
    listen: Vec<String>,
    parallel: u32,
    default_ignores: bool,
}

fn sample() -> impl Strategy<Value = Sample> {
    let reserve = prop_oneof![(0..1_u64 << 50).prop_map(Ok), (0.0..=100.0).prop_map(Err)];
    (
        (1..u64::from(u32::MAX), 1..1_000_000_u64),
        (any::<u32>(), 0..1_u64 << 50),
        reserve,
        "[^\\p{Cc}]{1,20}",
        prop::collection::vec("[^\\p{Cc}]{0,20}", 0..4),
        (any::<u32>(), any::<bool>()),
    )
        .prop_map(|(times, limits, reserve, server, listen, others)| Sample {
            hold_ms: times.0,
            grace_s: times.1,
            max_files: limits.0,
            max_json: limits.1,
            reserve,
            server,
            listen,
            parallel: others.0,
            default_ignores: others.1,
        })
}

impl Sample {
    fn text(&self) -> String {
        let reserve = match self.reserve {
            Ok(bytes) => format!("{bytes} B"),
            Err(percent) => format!("{percent}%"),
        };
        let table = toml::toml! {
            [store]
            [serve]
            [scan]
            [upload]
        };
        let mut table: Table = table;
        table.insert("server".into(), self.server.clone().into());
        let mut put = |section: &str, name: &str, value: Value| {
            table[section].as_table_mut().unwrap().insert(name.to_owned(), value);
        };
        put("store", "reserve", reserve.into());
        put("serve", "hold", format!("{}ms", self.hold_ms).into());
        put("serve", "grace", format!("{}s", self.grace_s).into());
        put("serve", "max_files", i64::from(self.max_files).into());
        put("serve", "max_json", format!("{} B", self.max_json).into());
        put("serve", "listen", self.listen.clone().into());
        put("scan", "default_ignores", self.default_ignores.into());
        put("upload", "parallel", i64::from(self.parallel).into());
        table.to_string()
    }
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(sample in sample()) {
        let settings = load(sample.text().as_bytes()).unwrap();
        let (serve, options) = (&settings.values.serve, settings.server_options());
        prop_assert_eq!(options.hold, Duration::from_millis(sample.hold_ms));
        prop_assert_eq!(options.grace, Duration::from_secs(sample.grace_s));
        prop_assert_eq!(options.max_files, sample.max_files as usize);
        prop_assert_eq!(options.max_json_bytes, sample.max_json);
        let reserve = match sample.reserve {
            Ok(bytes) => Reserve::Bytes(bytes),
            Err(percent) => Reserve::Percent(percent),
        };
        prop_assert_eq!(settings.store_options().reserve, reserve);
        prop_assert_eq!(settings.server(), Some(sample.server.as_str()));
        prop_assert_eq!(&serve.listen, &sample.listen);
        prop_assert_eq!(settings.values.scan.default_ignores, sample.default_ignores);
        prop_assert_eq!(settings.values.upload.parallel, sample.parallel);
        // And what is not written is as it is without a file.
        prop_assert_eq!(options.idle_timeout, crate::server::Options::default().idle_timeout);
    }

    #[test]
    fn any_toml_is_settings_or_an_error(table in any_toml()) {
        if let Err(reason) = load(table.to_string().as_bytes()) {
            prop_assert!(reason.contains("config.toml") || reason.contains("is not valid"), "{}", reason);
        }
    }

    #[test]
    fn mangled_files_are_settings_or_an_error(
        sample in sample(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..5),
    ) {
        let mut text = sample.text().into_bytes();
        for (place, byte, kind) in changes {
            let place = place.index(text.len() + 1);
            match kind {
                0 => text.insert(place, byte),
                1 if place < text.len() => text[place] = byte,
                _ => text.truncate(place.max(1)),
            }
        }
        if let Err(reason) = load(&text) {
            prop_assert!(reason.contains("config.toml") || reason.contains("is not valid"), "{}", reason);
        }
    }
}
