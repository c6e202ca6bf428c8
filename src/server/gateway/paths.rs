//! The ways in which a Manager's job names files of this storage.

use serde_json::{Map, Value};

use super::storage::Comparison;
use crate::{domain::CheckoutPath, jobs::JOBS_VARIABLE};

/// The setting of a job that names its .blend.
pub(super) const BLENDFILE: &str = "blendfile";

/// The path from the storage to the checkouts, with a slash at its end.
const JOBS_DIR: &str = "jobs/";

/// The meaning of the paths in jobs, given the latest comparison.
#[derive(Debug)]
pub(super) struct JobPaths {
    /// The directory of checkouts, as this server and as the Manager see it; with `/`, and none at
    /// the end.
    checkouts: Vec<String>,
    /// The path from `{jobs}` to the checkouts; `None`: it does not lead to this storage.
    jobs_prefix: Option<&'static str>,
    /// Whether the Manager's own Shaman is enabled; `None`: not known.
    manager_shaman: Option<bool>,
}

impl JobPaths {
    /// `checkouts` is the directory of checkouts on this machine.
    pub fn new(checkouts: &str, comparison: &Comparison) -> Self {
        let mut dirs = vec![with_slashes(checkouts)];
        let mut jobs_prefix = None;
        if let Comparison::Same { checkouts, jobs_prefix: prefix, .. } = comparison {
            dirs.push(with_slashes(checkouts));
            jobs_prefix = Some(*prefix);
        }
        let manager_shaman = comparison.manager().map(|manager| manager.shaman_enabled);
        Self { checkouts: dirs, jobs_prefix, manager_shaman }
    }

    /// Whether `{jobs}` leads to this storage.
    pub fn is_shared(&self) -> bool {
        self.jobs_prefix.is_some()
    }

    /// Whether the Manager's own Shaman is certainly disabled: it erases no checkout.
    pub fn manager_erases_nothing(&self) -> bool {
        self.manager_shaman == Some(false)
    }

    /// Whether a checkout of this storage may be the `shaman_checkout_id` of a job. Not if the
    /// Manager's own Shaman, in another storage, would erase its own checkout of that name.
    pub fn may_be_named(&self) -> bool {
        self.is_shared() || self.manager_erases_nothing()
    }

    /// The part of an absolute path below the directory of checkouts.
    fn below_checkouts<'a>(&self, text: &'a str) -> Option<&'a str> {
        self.checkouts.iter().find_map(|dir| text.strip_prefix(dir.as_str())?.strip_prefix('/'))
    }

    /// The path below the directory of checkouts that a path in a job's settings leads to;
    /// nothing if it leads elsewhere, or has a part like `..`.
    pub fn resolve(&self, text: &str) -> Option<String> {
        let text = with_slashes(text);
        let rest = match below_jobs(&text) {
            Some(rest) => rest.strip_prefix(self.jobs_prefix?)?,
            None => self.below_checkouts(&text)?,
        };
        let is_plain = |part: &str| !matches!(part, "" | "." | "..");
        rest.split('/').all(is_plain).then(|| rest.to_owned())
    }

    /// The checkout that an id names in a form in which `checkout/create` answers, other than by
    /// its plain name: older add-ons send the answer back as the id.
    pub fn answered(&self, id: &str) -> Option<CheckoutPath> {
        let id = with_slashes(id);
        let prefix = self.jobs_prefix.filter(|prefix| !prefix.is_empty());
        let rest = self.below_checkouts(&id).or_else(|| id.strip_prefix(prefix?))?;
        rest.parse().ok()
    }

    /// The checkout that the id of a job means: its plain name, or an absolute path. A plain name
    /// is none of this storage if the Manager's own Shaman has another one.
    pub fn identified(&self, id: &str) -> Option<CheckoutPath> {
        match self.below_checkouts(&with_slashes(id)) {
            Some(rest) => rest.parse().ok(),
            None => id.parse().ok().filter(|_| self.may_be_named()),
        }
    }

    /// Whether a job with this id and these settings may use a checkout, anything in it, or a
    /// directory above it. In doubt it does: that costs room, and the opposite costs files.
    pub fn may_use(&self, id: Option<&str>, settings: &Value, checkout: &CheckoutPath) -> bool {
        if id.is_some_and(|id| self.may_mean(id, checkout)) {
            return true;
        }
        settings.as_object().into_iter().flat_map(Map::iter).any(|(name, value)| {
            let Some(text) = value.as_str() else { return false };
            let is_ours = || {
                below_jobs(text).is_some() || self.below_checkouts(&with_slashes(text)).is_some()
            };
            (name == BLENDFILE || is_ours()) && self.may_mean(text, checkout)
        })
    }

    fn may_mean(&self, text: &str, checkout: &CheckoutPath) -> bool {
        let text = with_slashes(text);
        let rest = below_jobs(&text).or_else(|| self.below_checkouts(&text)).unwrap_or(&text);
        // Submitted while the Manager's Shaman was disabled, or enabled: `{jobs}` was another
        // directory then.
        let readings = [Some(rest), rest.strip_prefix(JOBS_DIR)];
        let mut parsed = readings.into_iter().flatten().map(str::parse::<CheckoutPath>);
        parsed.any(|path| match path {
            Ok(path) => path.overlaps(checkout),
            // Behind a variable, in another directory, or with `..`: the name alone decides.
            Err(_) => mentions(&text, checkout),
        })
    }
}

/// The part of a text behind `{jobs}/`.
fn below_jobs(text: &str) -> Option<&str> {
    text.strip_prefix(JOBS_VARIABLE)?.strip_prefix(['/', '\\'])
}

fn with_slashes(path: &str) -> String {
    path.replace('\\', "/").trim_end_matches('/').to_owned()
}

/// Whether the parts of a checkout's path follow each other somewhere in a path.
fn mentions(text: &str, checkout: &CheckoutPath) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let wanted: Vec<&str> = checkout.as_rel().parts().collect();
    parts.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::storage::ManagerStorage, *};

    fn manager(shaman_enabled: bool) -> ManagerStorage {
        ManagerStorage { location: "F:\\farm".into(), shaman_enabled }
    }

    fn shared(jobs_prefix: &'static str) -> JobPaths {
        let manager = manager(jobs_prefix.is_empty());
        let checkouts = "F:\\farm\\jobs".into();
        JobPaths::new("/mnt/farm/jobs", &Comparison::Same { manager, checkouts, jobs_prefix })
    }

    fn apart(shaman_enabled: bool) -> JobPaths {
        let manager = manager(shaman_enabled);
        let different = Comparison::Different { manager, reason: String::new() };
        JobPaths::new("/mnt/farm/jobs/", &different)
    }

    #[test]
    fn paths_lead_to_checkouts() {
        let of = |paths: &JobPaths, text: &str| paths.resolve(text);
        let (on, off, other) = (shared(""), shared("jobs/"), apart(true));
        assert_eq!(of(&on, "{jobs}/a b/x.blend").as_deref(), Some("a b/x.blend"));
        assert_eq!(of(&off, "{jobs}/jobs/a/x.blend").as_deref(), Some("a/x.blend"));
        assert_eq!(of(&off, "{jobs}/a/x.blend"), None, "that is beside the checkouts");
        assert_eq!(of(&other, "{jobs}/a/x.blend"), None, "that is another storage");
        for paths in [&on, &off, &other] {
            assert_eq!(of(paths, "/mnt/farm/jobs/a/x.blend").as_deref(), Some("a/x.blend"));
            for none in ["/mnt/farm/jobs2/a/x.blend", "x.blend", "{jobs}", "/mnt/farm/jobs/a/../b"]
            {
                assert_eq!(of(paths, none), None, "{none}");
            }
        }
        assert_eq!(of(&on, "F:\\farm\\jobs\\a\\x.blend").as_deref(), Some("a/x.blend"));
        assert_eq!(of(&other, "F:\\farm\\jobs\\a\\x.blend"), None);
    }

    #[test]
    fn ids_are_names_of_this_storage_or_not() {
        let text = |path: Option<CheckoutPath>| path.map(|path| path.as_str().to_owned());
        let (on, off, other) = (shared(""), shared("jobs/"), apart(true));
        assert_eq!(text(off.answered("jobs/a")).as_deref(), Some("a"));
        assert_eq!(text(on.answered("jobs/a")), None);
        for paths in [&on, &off, &other] {
            assert_eq!(text(paths.answered("/mnt/farm/jobs/a")).as_deref(), Some("a"));
            assert_eq!(text(paths.answered("a")), None);
            assert_eq!(text(paths.identified("/mnt/farm/jobs/a")).as_deref(), Some("a"));
        }
        assert_eq!(text(on.identified("a")).as_deref(), Some("a"));
        assert_eq!(text(off.identified("jobs/a")).as_deref(), Some("jobs/a"));
        assert_eq!(text(other.identified("a")), None, "the Manager's Shaman has an a of its own");
        assert_eq!(text(apart(false).identified("a")).as_deref(), Some("a"));
        assert!(!other.may_be_named() && apart(false).may_be_named() && on.may_be_named());
    }

    #[test]
    fn in_doubt_a_checkout_is_used() {
        let checkout: CheckoutPath = "alice/shot".parse().unwrap();
        let uses = |paths: &JobPaths, id: Option<&str>, settings: Value| {
            paths.may_use(id, &settings, &checkout)
        };
        for paths in [shared(""), shared("jobs/"), apart(true)] {
            for id in ["alice/shot", "alice/shot/textures", "alice", "/mnt/farm/jobs/alice/shot"] {
                assert!(uses(&paths, Some(id), json!({})), "{id}");
            }
            for file in [
                "{jobs}/alice/shot/x: 1.blend",
                "{jobs}/jobs/alice/shot/x.blend",
                "{jobs}\\alice\\shot\\x.blend",
                "/mnt/farm/jobs/alice/shot/x.blend",
                "{share}/jobs/alice/shot/x.blend",
                "Z:\\jobs\\alice\\shot\\x.blend",
                "{jobs}/bob/../alice/shot/x.blend",
                "{jobs}/alice",
            ] {
                assert!(uses(&paths, None, json!({ "blendfile": file })), "{file}");
            }
            assert!(uses(&paths, Some("bob"), json!({ "extra": "{jobs}/alice/shot/a.vdb" })));
            for file in ["{jobs}/alice/shot2/x.blend", "{jobs}/x/alice/shot/y.blend", "shot.blend"]
            {
                assert!(!uses(&paths, None, json!({ "blendfile": file })), "{file}");
            }
            let output = json!({ "render_output_path": "/home/alice/shot/######", "n": 1 });
            assert!(!uses(&paths, Some("bob/shot"), output));
            assert!(!uses(&paths, None, json!(null)));
        }
    }
}
