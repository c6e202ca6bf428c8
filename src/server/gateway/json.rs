//! JSON objects of which one member is changed, and the rest stays byte for byte.

use std::{fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The members of an object, in their order, with their values as they are written.
#[derive(Debug)]
pub(super) struct Members<'a> {
    text: &'a str,
    all: Vec<(String, &'a RawValue)>,
}

impl<'a> Members<'a> {
    /// The members of the object that this is; `None` if it is none.
    pub fn read(text: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let Pairs(all) = serde_json::from_str(text).ok()?;
        Some(Self { text, all })
    }

    /// The value of a member; `Err` if there are several of that name.
    pub fn get(&self, name: &str) -> Result<Option<&'a str>, Several> {
        let mut values = self.all.iter().filter(|(other, _)| other == name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value.map(|(_, value)| value.get())),
            _ => Err(Several),
        }
    }

    /// The object with this value in the place of all members of that name, or behind the last.
    pub fn with(&self, name: &str, value: &str) -> String {
        let places: Vec<Range<usize>> = self
            .all
            .iter()
            .filter(|(other, _)| other == name)
            .map(|(_, at)| self.place(at))
            .collect();
        let mut text = String::with_capacity(self.text.len() + name.len() + value.len() + 8);
        let mut from = 0;
        for place in &places {
            text.push_str(&self.text[from..place.start]);
            text.push_str(value);
            from = place.end;
        }
        if !places.is_empty() {
            text.push_str(&self.text[from..]);
            return text;
        }
        let end = self.text.rfind('}').expect("BUG: an object ends so");
        text.push_str(&self.text[..end]);
        if !self.all.is_empty() {
            text.push(',');
        }
        text.push_str(&format!("{}:{value}", quoted(name)));
        text.push_str(&self.text[end..]);
        text
    }

    /// The object without the members of this name.
    pub fn without(&self, name: &str) -> String {
        let others = self.all.iter().filter(|(other, _)| other != name);
        let others: Vec<_> =
            others.map(|(name, value)| format!("{}:{}", quoted(name), value.get())).collect();
        format!("{{{}}}", others.join(","))
    }

    /// Where in the text a value is.
    fn place(&self, value: &RawValue) -> Range<usize> {
        let start = value.get().as_ptr() as usize - self.text.as_ptr() as usize;
        start..start + value.get().len()
    }
}

/// There are several members of one name: readers differ in which one counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Several;

/// A text as JSON.
pub(super) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("BUG: a text is JSON")
}

struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rest_of_an_object_stays_as_it_is() {
        for (before, after) in [
            (r#"{"z":1.0, "on" : false,"a":[1e3 ,2]}"#, r#"{"z":1.0, "on" : true,"a":[1e3 ,2]}"#),
            ("{}", r#"{"on":true}"#),
            (" { } \n", " { \"on\":true} \n"),
            ("{\"a\":\"}\"\n}", "{\"a\":\"}\"\n,\"on\":true}"),
            (r#"{"\u006fn":1,"on":2}"#, r#"{"\u006fn":true,"on":true}"#),
        ] {
            assert_eq!(Members::read(before.as_bytes()).unwrap().with("on", "true"), after);
        }
        for none in ["[1]", "", "1", "{\"a\":1", "{\"a\":1}}"] {
            assert!(Members::read(none.as_bytes()).is_none(), "{none}");
        }
        let members = Members::read(br#"{"on":1,"a\"b":[ 2],"on":3}"#).unwrap();
        assert_eq!(members.get("on"), Err(Several));
        assert_eq!(members.get("a\"b"), Ok(Some("[ 2]")));
        assert_eq!(members.without("on"), r#"{"a\"b":[ 2]}"#);
    }

    proptest! {
        #[test]
        fn a_changed_object_differs_in_one_member(
            before in proptest::collection::hash_map("[a-c]{1,2}", any::<Option<i32>>(), 0..5),
            name in "[a-c\"é]{1,2}",
        ) {
            let mut value = serde_json::json!(before);
            let text = serde_json::to_string_pretty(&value).unwrap();
            let changed = Members::read(text.as_bytes()).unwrap().with(&name, "[7]");
            value[&name] = serde_json::json!([7]);
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&changed).unwrap(), value);
        }
    }
}
