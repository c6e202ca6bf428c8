//! Texts in jobs that stand for others, by platform and by who reads them.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::jobs::Platform;

/// Who a value is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    /// Those who work on jobs.
    Workers,
    /// Those who submit them.
    Users,
}

/// One value of a variable: `{name}` in a job's settings stands for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Its name, without braces.
    pub name: String,
    /// What it stands for.
    pub value: String,
    /// On which platform; on all, if this is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// For whom; for all, if this is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<Audience>,
    /// Settings of submitted jobs that begin with the value are made to begin with the name.
    #[serde(default)]
    pub two_way: bool,
}

/// What a variable is for somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ManagerVariable)]
pub(super) struct Meaning {
    /// What it stands for.
    pub value: String,
    /// Whether values become names, too.
    pub is_twoway: bool,
}

pub(super) type Meanings = BTreeMap<String, Meaning>;

/// What all variables are for somebody on a platform; what is said for that platform alone counts more
/// than what is said for all.
pub(super) fn meanings(variables: &[Variable], audience: Audience, platform: Platform) -> Meanings {
    let fits = |variable: &&Variable| {
        variable.platform.is_none_or(|only| only == platform)
            && variable.audience.is_none_or(|only| only == audience)
    };
    let mut fitting: Vec<_> = variables.iter().filter(fits).collect();
    fitting.sort_by_key(|one| (one.platform.is_some(), one.audience.is_some()));
    let meaning = |one: &Variable| Meaning { value: one.value.clone(), is_twoway: one.two_way };
    fitting.into_iter().map(|one| (one.name.clone(), meaning(one))).collect()
}

/// Calls `change` with every text that is anywhere in a value.
fn each_text(value: &mut Value, change: &impl Fn(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| each_text(item, change)),
        Value::Object(fields) => fields.values_mut().for_each(|field| each_text(field, change)),
        _ => {}
    }
}

/// Puts names where values are at the beginning: the longest that fits.
pub(super) fn abbreviate(settings: &mut Map<String, Value>, meanings: &Meanings) {
    let mut two_way: Vec<_> = meanings.iter().filter(|(_, meaning)| meaning.is_twoway).collect();
    two_way.sort_by_key(|(_, meaning)| std::cmp::Reverse(meaning.value.len()));
    let change = |text: &mut String| {
        for (name, meaning) in &two_way {
            let Some(rest) = text.strip_prefix(meaning.value.as_str()) else { continue };
            // Whole parts of a path only: `/mnt/farm` is not the beginning of `/mnt/farm2/x`.
            let ends_part = meaning.value.ends_with(['/', '\\']);
            if !meaning.value.is_empty()
                && (ends_part || rest.is_empty() || rest.starts_with(['/', '\\']))
            {
                *text = format!("{{{name}}}{rest}");
                return;
            }
        }
    };
    settings.values_mut().for_each(|value| each_text(value, &change));
}

/// Puts values where names are, and the time for `{timestamp}`.
pub(super) fn expand(settings: &mut Map<String, Value>, meanings: &Meanings, created: Timestamp) {
    let time =
        created.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d_%H%M%S").to_string();
    let change = |text: &mut String| {
        if !text.contains('{') {
            return;
        }
        for (name, meaning) in meanings {
            *text = text.replace(&format!("{{{name}}}"), &meaning.value);
        }
        *text = text.replace("{timestamp}", &time);
    };
    settings.values_mut().for_each(|value| each_text(value, &change));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn variables() -> Vec<Variable> {
        let text = r#"[
            {"name": "ffmpeg", "value": "ffmpeg"},
            {"name": "ffmpeg", "value": "ffmpeg.exe", "platform": "windows"},
            {"name": "share", "value": "/mnt/farm", "platform": "linux", "two_way": true},
            {"name": "share", "value": "F:\\farm", "platform": "windows", "two_way": true},
            {"name": "shots", "value": "/mnt/farm/shots/", "platform": "linux", "two_way": true},
            {"name": "own", "value": "w", "audience": "workers"}
        ]"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_platforms_own_value_counts_more() {
        let of = |audience, platform| meanings(&variables(), audience, platform);
        let windows = of(Audience::Workers, Platform::Windows);
        assert_eq!(windows["ffmpeg"].value, "ffmpeg.exe");
        assert_eq!(windows["own"].value, "w");
        let users = of(Audience::Users, Platform::Linux);
        assert_eq!(users["ffmpeg"].value, "ffmpeg");
        assert!(!users.contains_key("own") && users["share"].is_twoway);
    }

    #[test]
    fn paths_become_names_and_paths_of_another_platform() {
        let mut settings = json!({
            "a": "/mnt/farm/x", "b": "/mnt/farm2/x", "c": "/mnt/farm", "d": ["/mnt/farm/shots/1"], "n": 1
        });
        let settings = settings.as_object_mut().unwrap();
        abbreviate(settings, &meanings(&variables(), Audience::Users, Platform::Linux));
        let expected = json!({
            "a": "{share}/x", "b": "/mnt/farm2/x", "c": "{share}", "d": ["{shots}1"], "n": 1
        });
        assert_eq!(json!(settings), expected);
        let now = Timestamp::now();
        expand(settings, &meanings(&variables(), Audience::Workers, Platform::Windows), now);
        assert_eq!(settings["a"], "F:\\farm/x");
        assert_eq!(settings["d"][0], "{shots}1", "what is not known stays");
        let mut settings = json!({ "t": "x/{timestamp}/######" });
        let settings = settings.as_object_mut().unwrap();
        expand(settings, &Meanings::new(), now);
        let text = settings["t"].as_str().unwrap();
        assert_eq!(text.len(), "x/2026-01-01_000000/######".len(), "{text}");
    }
}
