//! What clients may send as JSON: never a panic, never our fault, and what is right is taken.

use std::path::{Component, Path};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    ApiError,
    routes::{check_files, parse, to_checkout},
};
use crate::{
    domain::{CheckoutPath, Manifest},
    wire::{CheckoutRequest, FileSpec, RequirementsRequest},
};

const MAX_FILES: usize = 20;

/// Any JSON at all.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(
                prop_oneof![
                    "[a-z]{0,4}",
                    prop::sample::select(vec!["files", "checkoutPath", "sha", "size", "path"])
                        .prop_map(str::to_owned),
                ],
                inner,
                0..6
            )
            .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A request that must be taken.
fn valid() -> impl Strategy<Value = Value> {
    let file = ("[0-9a-f]{64}", 0..=i64::MAX as u64)
        .prop_map(|(sha, size)| json!({ "sha": sha, "size": size }));
    let files = prop::collection::vec((file, "[^/\\\\\0\\p{Cc}]{1,12}"), 0..MAX_FILES);
    ("[a-z0-9 é]{1,9}(/[a-z]{1,9}){0,3}", files).prop_map(|(name, files)| {
        let files: Vec<_> = files
            .into_iter()
            .enumerate()
            .map(|(number, (mut file, name))| {
                // No two alike, and none of the names that mean something.
                file["path"] = json!(format!("dir {number}/f{name}"));
                file
            })
            .collect();
        json!({ "checkoutPath": name, "files": files })
    })
}

/// A valid request with one value replaced or taken out.
fn almost_valid() -> impl Strategy<Value = Value> {
    (valid(), any_json(), any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut request, other, place, remove)| {
            let mut places = vec!["/checkoutPath".to_owned(), "/files".to_owned()];
            for number in 0..request["files"].as_array().map_or(0, Vec::len) {
                places.push(format!("/files/{number}"));
                places
                    .extend(["sha", "size", "path"].map(|name| format!("/files/{number}/{name}")));
            }
            let place = place.get(&places);
            let (above, name) = place.rsplit_once('/').unwrap();
            match request.pointer_mut(above) {
                Some(Value::Object(fields)) if remove => {
                    fields.remove(name);
                }
                _ => *request.pointer_mut(place).unwrap() = other,
            }
            request
        },
    )
}

/// A request's text with some bytes overwritten, put in, or cut off.
fn mangled() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..5);
    (valid(), changes).prop_map(|(request, changes)| {
        let mut text = request.to_string().into_bytes();
        for (place, byte, kind) in changes {
            let place = place.index(text.len() + 1).min(text.len());
            match kind {
                0 => text.insert(place, byte),
                1 if place < text.len() => text[place] = byte,
                _ => text.truncate(place.max(1)),
            }
        }
        text
    })
}

/// As the handlers do it.
fn checkout(body: &[u8]) -> Result<(CheckoutPath, Manifest), ApiError> {
    let CheckoutRequest { checkout_path, files } = parse(body)?;
    to_checkout(&checkout_path, &files, MAX_FILES)
}

fn requirements(body: &[u8]) -> Result<usize, ApiError> {
    let RequirementsRequest { files } = parse(body)?;
    check_files(&files, MAX_FILES, FileSpec::to_blob).map(|blobs| blobs.len())
}

/// It is taken and harmless, or it is the client's error.
fn check(body: &[u8]) -> Result<(), TestCaseError> {
    match checkout(body) {
        Ok((name, manifest)) => {
            let dir = Path::new("/jobs").join(name.as_str());
            for path in manifest.entries().iter().map(|entry| dir.join(entry.path.as_str())) {
                let normal = |part| matches!(part, Component::Normal(_) | Component::RootDir);
                prop_assert!(path.starts_with("/jobs") && path.components().all(normal));
            }
            prop_assert!(requirements(body).is_ok());
        }
        Err(error) => prop_assert!(error.status().is_client_error() && !error.message().is_empty()),
    }
    if let Err(error) = requirements(body) {
        prop_assert!(error.status().is_client_error());
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_is_right_is_taken(request in valid()) {
        let body = request.to_string();
        let files = request["files"].as_array().unwrap().len();
        prop_assert_eq!(requirements(body.as_bytes()).unwrap(), files);
        let (name, manifest) = checkout(body.as_bytes()).unwrap();
        prop_assert_eq!(name.as_str(), request["checkoutPath"].as_str().unwrap());
        prop_assert_eq!(manifest.len(), files);
        check(body.as_bytes())?;
    }

    #[test]
    fn what_is_almost_right_is_taken_or_refused(request in almost_valid()) {
        check(request.to_string().as_bytes())?;
    }

    #[test]
    fn any_json_is_taken_or_refused(request in any_json()) {
        check(request.to_string().as_bytes())?;
    }

    #[test]
    fn mangled_json_is_taken_or_refused(body in mangled()) {
        check(&body)?;
    }

    #[test]
    fn any_bytes_are_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&body)?;
    }
}
