//! Where most of it is: the few folders that say most about many files.

use std::collections::BTreeMap;

use super::{PlannedFile, Sum};

/// A folder, with what is below it or without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its path; empty: the root.
    pub path: String,
    /// Whether only the files directly in it count; otherwise all below it.
    pub is_direct: bool,
    /// The files.
    pub sum: Sum,
}

#[derive(Default)]
struct Node<'a> {
    path: &'a str,
    direct: Sum,
    all: Sum,
    children: BTreeMap<&'a str, usize>,
}

/// Divides files into places, the largest first: the largest is taken apart into what is directly in
/// it and the folders below, again and again, until there are `enough`. What is taken apart last may
/// make more than that.
pub fn overview<'a>(files: impl IntoIterator<Item = &'a PlannedFile>, enough: usize) -> Vec<Place> {
    let mut nodes = vec![Node::default()];
    for file in files {
        let path = file.path.as_str();
        let mut at = 0;
        nodes[at].all.add(file.size_bytes);
        let mut start = 0;
        for (end, _) in path.match_indices('/') {
            let next = nodes.len();
            let child = *nodes[at].children.entry(&path[start..end]).or_insert(next);
            if child == next {
                nodes.push(Node { path: &path[..end], ..Node::default() });
            }
            (at, start) = (child, end + 1);
            nodes[at].all.add(file.size_bytes);
        }
        nodes[at].direct.add(file.size_bytes);
    }

    let mut places: Vec<Place> = Vec::new();
    let mut whole = vec![0];
    while places.len() + whole.len() < enough {
        let by_size =
            |place: &usize| (nodes[whole[*place]].all.bytes, nodes[whole[*place]].all.files);
        let Some(largest) = (0..whole.len()).max_by_key(by_size) else { break };
        let node = &nodes[whole.swap_remove(largest)];
        places.extend(direct(node));
        whole.extend(node.children.values());
    }
    for mut node in whole.into_iter().map(|at| &nodes[at]) {
        // A folder with nothing but one folder in it says less than that one.
        while let (0, 1, Some(&only)) =
            (node.direct.files, node.children.len(), node.children.values().next())
        {
            node = &nodes[only];
        }
        if node.children.is_empty() {
            places.extend(direct(node));
        } else {
            places.push(Place { path: node.path.to_owned(), is_direct: false, sum: node.all });
        }
    }
    places.sort_unstable_by(|a, b| {
        let size = |place: &Place| std::cmp::Reverse((place.sum.bytes, place.sum.files));
        size(a).cmp(&size(b)).then_with(|| a.path.cmp(&b.path))
    });
    places
}

fn direct(node: &Node<'_>) -> Option<Place> {
    let place = Place { path: node.path.to_owned(), is_direct: true, sum: node.direct };
    (node.direct.files > 0).then_some(place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::Here, *};

    fn file(path: &str, size_bytes: u64) -> PlannedFile {
        let path = path.parse().unwrap();
        PlannedFile { path, size_bytes, digest: None, here: Here::New, there: None }
    }

    #[test]
    fn the_largest_is_taken_apart_first() {
        let files = [
            file("a/b/c/big", 100),
            file("a/b/c/d/deep", 1),
            file("small/x/1", 1),
            file("small/y/2", 2),
            file("root", 5),
        ];
        let shown = |enough| -> Vec<(String, bool, u64)> {
            let places = overview(&files, enough);
            places.into_iter().map(|place| (place.path, place.is_direct, place.sum.bytes)).collect()
        };
        assert_eq!(shown(1), [("".into(), false, 109)]);
        let chain = overview(&[file("a/b/c/1", 1), file("a/b/d/2", 1), file("a/b/d/3", 1)], 0);
        assert_eq!((chain.len(), chain[0].path.as_str(), chain[0].is_direct), (1, "a/b", false));
        let leaf = overview(&[file("a/b/c/1", 1)], 0);
        assert_eq!((leaf[0].path.as_str(), leaf[0].is_direct), ("a/b/c", true));
        assert_eq!(
            shown(4),
            [
                ("a/b/c".into(), true, 100),
                ("".into(), true, 5),
                ("small".into(), false, 3),
                ("a/b/c/d".into(), true, 1),
            ]
        );
        assert_eq!(shown(100).len(), 5);
        assert_eq!(overview(&[], 5), []);
    }

    proptest! {
        #[test]
        fn each_file_is_in_one_place(
            paths in prop::collection::btree_map("([a-c]/){0,3}x[0-9]", 0u64..9, 0..30),
            enough in 0usize..10,
        ) {
            let files: Vec<PlannedFile> = paths.iter().map(|(path, size)| file(path, *size)).collect();
            let places = overview(&files, enough);
            for file in &files {
                let path = file.path.as_str();
                let is_in = |place: &&Place| {
                    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                    folder == place.path || !place.is_direct
                        && (place.path.is_empty() || path.starts_with(&format!("{}/", place.path)))
                };
                prop_assert_eq!(places.iter().filter(is_in).count(), 1, "{} {:?}", path, places);
            }
            let mut sum = Sum::default();
            for place in &places {
                prop_assert!(place.sum.files > 0);
                sum += place.sum;
            }
            prop_assert_eq!(sum, Sum::of(&files));
            prop_assert!(places.is_sorted_by_key(|place| std::cmp::Reverse(place.sum.bytes)));
        }
    }
}
