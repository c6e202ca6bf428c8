//! Types of jobs, and whether settings are what a type takes.

use std::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use crate::domain::Digest;

/// How much of a value an error repeats, in characters.
const SHOWN_CHARS: usize = 60;

/// A type of job: what can be set about its jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = AvailableJobType)]
pub struct JobType {
    /// What jobs call it.
    pub name: String,
    /// What people call it.
    pub label: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Another one for each other definition.
    #[serde(default)]
    pub etag: String,
    /// What can be set.
    pub settings: Vec<Setting>,
}

/// One thing that can be set about a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = AvailableJobSetting)]
pub struct Setting {
    /// Its name.
    pub key: String,
    /// What values it takes.
    #[serde(rename = "type")]
    pub kind: ValueKind,
    /// Whether a job must have it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub required: bool,
    /// What it is if nobody sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    pub default: Option<Value>,
    /// The only values it takes, if there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<Vec<String>>,
    /// What is said of it besides, for other programs.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub more: Map<String, Value>,
}

/// The values that a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = AvailableJobSettingType)]
pub enum ValueKind {
    /// Texts.
    String,
    /// Whole numbers of 32 bits.
    Int32,
    /// Numbers.
    Float,
    /// `true` and `false`.
    Bool,
}

impl fmt::Display for ValueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "a text",
            Self::Int32 => "a whole number",
            Self::Float => "a number",
            Self::Bool => "true or false",
        })
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Why settings are not what a type of job takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSetting {
    /// It is not `KEY=VALUE`.
    #[error("{0:?} is no setting; write KEY=VALUE")]
    NoPair(String),
    /// There is nothing of that name.
    #[error("the job type {job_type} has no setting {key:?}; it has {known}")]
    Unknown {
        /// The type.
        job_type: String,
        /// The name.
        key: String,
        /// The names there are.
        known: String,
    },
    /// The value is of another kind.
    #[error("the setting {key} takes {kind}, not {value}")]
    Kind {
        /// The name.
        key: String,
        /// What it takes.
        kind: String,
        /// What it was given.
        value: String,
    },
    /// The value is none of those there are.
    #[error("the setting {key} takes one of {choices}, not {value}")]
    Choice {
        /// The name.
        key: String,
        /// What it takes.
        choices: String,
        /// What it was given.
        value: String,
    },
    /// The number is too small or too large.
    #[error("the setting {key} takes numbers {range}, not {value}")]
    Range {
        /// The name.
        key: String,
        /// What it takes.
        range: String,
        /// What it was given.
        value: String,
    },
    /// Something is not set that must be.
    #[error("missing settings that the job type {job_type} requires: {keys}")]
    Missing {
        /// The type.
        job_type: String,
        /// Their names.
        keys: String,
    },
}

/// Why a text defines no type of job.
#[derive(Debug, thiserror::Error)]
pub enum BadType {
    /// It is not the right JSON.
    #[error("it is no job type: {0}")]
    Json(#[from] serde_json::Error),
    /// A name is missing.
    #[error("it has no name")]
    NoName,
    /// Two settings have one name.
    #[error("the setting {0} is there twice")]
    Twice(String),
    /// A default is none of its own values.
    #[error("a default is wrong: {0}")]
    Default(BadSetting),
}

impl JobType {
    /// Reads a definition. Its etag is made from what it says.
    ///
    /// # Errors
    /// If it is none, or contradicts itself.
    pub fn from_json(text: &str) -> Result<Self, BadType> {
        let mut this: Self = serde_json::from_str(text)?;
        if this.name.trim().is_empty() {
            return Err(BadType::NoName);
        }
        for (index, setting) in this.settings.iter().enumerate() {
            if this.settings[..index].iter().any(|other| other.key == setting.key) {
                return Err(BadType::Twice(setting.key.clone()));
            }
            if let Some(default) = &setting.default {
                setting.check(default).map_err(BadType::Default)?;
            }
        }
        this.etag.clear();
        let text = serde_json::to_vec(&this)?;
        this.etag = Digest::from_bytes(Sha256::digest(&text).into()).to_string()[..40].to_owned();
        Ok(this)
    }

    /// The setting of this name.
    pub fn setting(&self, key: &str) -> Result<&Setting, BadSetting> {
        self.settings.iter().find(|setting| setting.key == key).ok_or_else(|| {
            let known: Vec<_> = self.settings.iter().map(|setting| setting.key.as_str()).collect();
            BadSetting::Unknown {
                job_type: self.name.clone(),
                key: shortened(key),
                known: known.join(", "),
            }
        })
    }

    /// Reads `KEY=VALUE`, as the type of the setting asks for.
    ///
    /// # Errors
    /// If there is no such setting, or the value is of another kind.
    pub fn read(&self, pair: &str) -> Result<(String, Value), BadSetting> {
        let Some((key, text)) = pair.split_once('=') else {
            return Err(BadSetting::NoPair(shortened(pair)));
        };
        let setting = self.setting(key)?;
        let value = setting.kind.read(text).ok_or_else(|| setting.wrong_kind(&text.into()))?;
        setting.check(&value)?;
        Ok((key.to_owned(), value))
    }

    /// Whether a job may have these settings; what it does not say is put in where there is a default.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn complete(&self, settings: &mut Map<String, Value>) -> Result<(), BadSetting> {
        for (key, value) in settings.iter() {
            self.setting(key)?.check(value)?;
        }
        let mut missing = Vec::new();
        for setting in &self.settings {
            if settings.contains_key(&setting.key) {
                continue;
            }
            match &setting.default {
                Some(value) => {
                    settings.insert(setting.key.clone(), value.clone());
                }
                None if setting.required => missing.push(setting.key.as_str()),
                None => {}
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(BadSetting::Missing { job_type: self.name.clone(), keys: missing.join(", ") })
    }
}

impl Setting {
    fn wrong_kind(&self, value: &Value) -> BadSetting {
        BadSetting::Kind {
            key: self.key.clone(),
            kind: self.kind.to_string(),
            value: shortened(&value.to_string()),
        }
    }

    fn check(&self, value: &Value) -> Result<(), BadSetting> {
        const INT32: RangeInclusive<i64> = i32::MIN as i64..=i32::MAX as i64;
        let fits = match self.kind {
            ValueKind::String => value.is_string(),
            ValueKind::Int32 => value.as_i64().is_some_and(|number| INT32.contains(&number)),
            ValueKind::Float => value.is_number(),
            ValueKind::Bool => value.is_boolean(),
        };
        if !fits {
            return Err(self.wrong_kind(value));
        }
        if let (Some(choices), Some(text)) = (&self.choices, value.as_str())
            && !choices.iter().any(|choice| choice == text)
        {
            let (key, choices) = (self.key.clone(), choices.join(", "));
            return Err(BadSetting::Choice { key, choices, value: shortened(&value.to_string()) });
        }
        self.check_range(value)
    }

    /// The bounds that Blender's own input field would have: it gets these properties.
    fn check_range(&self, value: &Value) -> Result<(), BadSetting> {
        // Whoever sets nothing gets the default, whatever it is.
        let (Some(number), false) = (value.as_f64(), self.default.as_ref() == Some(value)) else {
            return Ok(());
        };
        let bound = |name: &str| self.more.get("propargs")?.get(name).filter(|it| it.is_number());
        let (min, max) = (bound("min"), bound("max"));
        let is_below = min.and_then(Value::as_f64).is_some_and(|min| number < min);
        let is_above = max.and_then(Value::as_f64).is_some_and(|max| number > max);
        if !is_below && !is_above {
            return Ok(());
        }
        let range = match (min, max) {
            (Some(min), Some(max)) => format!("from {min} to {max}"),
            (Some(min), None) => format!("from {min} on"),
            (None, max) => format!("up to {}", max.unwrap_or(&Value::Null)),
        };
        Err(BadSetting::Range {
            key: self.key.clone(),
            range,
            value: shortened(&value.to_string()),
        })
    }
}

impl ValueKind {
    fn read(self, text: &str) -> Option<Value> {
        match self {
            Self::String => Some(text.into()),
            Self::Int32 => text.trim().parse::<i32>().ok().map(Value::from),
            Self::Float => {
                let number: f64 = text.trim().parse().ok()?;
                serde_json::Number::from_f64(number).map(Value::Number)
            }
            Self::Bool => match text.trim() {
                "true" => Some(true.into()),
                "false" => Some(false.into()),
                _ => None,
            },
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::jobs::SIMPLE_BLENDER_RENDER;

    fn job_type() -> JobType {
        JobType::from_json(
            r#"{"name": "t", "label": "T", "settings": [
                {"key": "text", "type": "string", "required": true, "eval": "C.x"},
                {"key": "count", "type": "int32", "default": 7},
                {"key": "rate", "type": "float"},
                {"key": "on", "type": "bool", "default": false, "required": true},
                {"key": "pick", "type": "string", "choices": ["a", "b"]},
                {"key": "size", "type": "int32", "default": 0, "propargs": {"min": 1, "max": 9}},
                {"key": "scale", "type": "float", "propargs": {"min": 0.5, "description": "x"}}
            ]}"#,
        )
        .unwrap()
    }

    #[test]
    fn ours_can_be_read_and_says_what_others_need() {
        let ours = JobType::from_json(SIMPLE_BLENDER_RENDER).unwrap();
        assert_eq!(ours.name, "simple-blender-render");
        assert_eq!(ours.etag.len(), 40);
        let json = serde_json::to_value(&ours).unwrap();
        assert_eq!(json["settings"][0]["evalInfo"]["showLinkButton"], true);
        let again = JobType::from_json(&json.to_string()).unwrap();
        assert_eq!(again, ours, "an etag that is given counts for nothing");
    }

    #[test]
    fn another_definition_has_another_etag() {
        let text = serde_json::to_string(&job_type()).unwrap();
        let other = JobType::from_json(&text.replace("C.x", "C.y")).unwrap();
        assert_ne!(other.etag, job_type().etag);
    }

    #[test]
    fn values_are_read_by_the_type_of_their_setting() {
        for (pair, value) in [
            ("text=", json!("")),
            ("text=a=b", json!("a=b")),
            ("text=12", json!("12")),
            ("count=-3", json!(-3)),
            ("rate=24", json!(24.0)),
            ("rate=1e3", json!(1000.0)),
            ("on=true", json!(true)),
            ("pick=b", json!("b")),
            ("size=9", json!(9)),
            ("size=0", json!(0)),
            ("scale=0.5", json!(0.5)),
        ] {
            let key = pair.split('=').next().unwrap().to_owned();
            assert_eq!(job_type().read(pair).unwrap(), (key, value), "{pair}");
        }
        for (pair, says) in [
            ("text", "write KEY=VALUE"),
            ("", "write KEY=VALUE"),
            ("other=1", "no setting \"other\"; it has text, count"),
            ("count=", "takes a whole number, not \"\""),
            ("count=1.5", "takes a whole number"),
            ("count=2147483648", "takes a whole number"),
            ("rate=fast", "takes a number, not \"fast\""),
            ("rate=NaN", "takes a number"),
            ("rate=inf", "takes a number"),
            ("on=1", "takes true or false"),
            ("pick=c", "takes one of a, b, not \"c\""),
            ("size=-1", "takes numbers from 1 to 9, not -1"),
            ("size=10", "takes numbers from 1 to 9, not 10"),
            ("scale=0", "takes numbers from 0.5 on, not 0.0"),
        ] {
            let error = job_type().read(pair).unwrap_err().to_string();
            assert!(error.contains(says), "{pair}: {error}");
        }
        let long = job_type().read(&format!("count={}", "é".repeat(1000))).unwrap_err();
        assert!(long.to_string().chars().count() < 150, "{long}");
    }

    #[test]
    fn a_job_is_checked_and_completed() {
        let complete = |mut settings: Value| {
            let map = settings.as_object_mut().unwrap();
            job_type().complete(map).map(|()| settings.clone()).map_err(|error| error.to_string())
        };
        assert_eq!(
            complete(json!({"text": "x"})),
            Ok(json!({"text": "x", "count": 7, "on": false, "size": 0}))
        );
        for (settings, says) in [
            (json!({}), "requires: text"),
            (json!({"text": "x", "more": 1}), "no setting \"more\""),
            (json!({"text": null}), "takes a text, not null"),
            (json!({"text": ["x"]}), "takes a text"),
            (json!({"text": "x", "count": "7"}), "takes a whole number, not \"7\""),
            (json!({"text": "x", "count": 7.5}), "takes a whole number"),
            (json!({"text": "x", "count": 1_u64 << 40}), "takes a whole number"),
            (json!({"text": "x", "rate": "1"}), "takes a number"),
            (json!({"text": "x", "on": 1}), "takes true or false"),
            (json!({"text": "x", "pick": "z"}), "takes one of a, b"),
        ] {
            let error = complete(settings.clone()).unwrap_err();
            assert!(error.contains(says), "{settings}: {error}");
        }
        assert!(complete(json!({"text": "x", "rate": 24})).is_ok(), "whole numbers are numbers");
    }

    #[test]
    fn what_defines_no_type_is_an_error() {
        for (text, says) in [
            ("", "no job type"),
            ("[]", "no job type"),
            (r#"{"name": "x"}"#, "label"),
            (r#"{"name": " ", "label": "x", "settings": []}"#, "no name"),
            (
                r#"{"name": "x", "label": "x", "settings": [{"key": "a", "type": "int"}]}"#,
                "unknown variant `int`",
            ),
            (
                r#"{"name": "x", "label": "x", "settings": [{"key": "a", "type": "bool"}, {"key": "a", "type": "bool"}]}"#,
                "the setting a is there twice",
            ),
            (
                r#"{"name": "x", "label": "x", "settings": [{"key": "a", "type": "bool", "default": 1}]}"#,
                "a default is wrong: the setting a takes true or false, not 1",
            ),
        ] {
            let error = JobType::from_json(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
