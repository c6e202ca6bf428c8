//! `X-Shaman-Original-Filename`: RFC 2047 encoded words.
//!
//! Written here because what the add-on sends is outside that RFC (words of any length), and because
//! the value is only ever shown: whatever cannot be decoded is shown as it came.

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use percent_encoding::percent_decode;

/// Padding may be missing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Encodes a name as one encoded word (`=?utf-8?q?…?=`), as the add-on does.
pub fn encode_filename(name: &str) -> String {
    let mut word = String::from("=?utf-8?q?");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'!' | b'*' | b'+') {
            word.push(char::from(byte));
        } else if byte == b' ' {
            word.push('_');
        } else {
            word.push_str(&format!("={byte:02X}"));
        }
    }
    word + "?="
}

/// Decodes a header value made of encoded words; anything else is given back as it is, with
/// control characters replaced.
pub fn decode_filename(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let decoded = decode_words(text.trim()).unwrap_or_else(|| text.into_owned());
    decoded.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Words are decoded to bytes and joined before they are read as UTF-8: encoders split in the
/// middle of characters. The space between two words is part of the encoding.
fn decode_words(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    for word in text.split_ascii_whitespace() {
        let inner = word.strip_prefix("=?")?.strip_suffix("?=")?;
        let mut fields = inner.splitn(3, '?');
        let (charset, encoding, content) = (fields.next()?, fields.next()?, fields.next()?);
        if !charset.eq_ignore_ascii_case("utf-8") && !charset.eq_ignore_ascii_case("us-ascii") {
            return None;
        }
        match encoding {
            "q" | "Q" => {
                // Quoted words differ from percent-encoding in the escape and in the space.
                let percent = content.replace('%', "%25").replace('_', " ").replace('=', "%");
                bytes.extend(percent_decode(percent.as_bytes()));
            }
            "b" | "B" => bytes.extend(BASE64.decode(content).ok()?),
            _ => return None,
        }
    }
    String::from_utf8(bytes).ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decodes_what_the_addon_sends() {
        for (value, name) in [
            ("=?utf-8?q?pack-info=2Etxt?=", "pack-info.txt"),
            (
                "=?utf-8?q?cache/fluid/data/empty=5Fmarker=2Euni?=",
                "cache/fluid/data/empty_marker.uni",
            ),
            (
                "=?utf-8?b?0LfQstGD0LrQuCDQuCDQutGN0Ygv0LTQvtC20LTRjC53YXY=?=",
                "звуки и кэш/дождь.wav",
            ),
            // Two words that split the two bytes of one character, as folding encoders do.
            ("=?utf-8?q?=D0?= =?utf-8?q?=B7?=", "з"),
            ("=?UTF-8?Q?100%25=25?=", "100%25%"),
        ] {
            assert_eq!(decode_filename(value.as_bytes()), name);
        }
    }

    #[test]
    fn shows_the_rest_as_it_came() {
        for raw in [
            "plain name.blend",
            "=?latin1?q?x?=",
            "=?utf-8?b?***?=",
            "=?utf-8?q?=ff?=",
            "=?utf-8?q",
            "",
        ] {
            assert_eq!(decode_filename(raw.as_bytes()), raw);
        }
        assert_eq!(decode_filename(b"a\nb"), "a\u{fffd}b");
        assert_eq!(decode_filename(b"=?utf-8?q?a=0Ab?="), "a\u{fffd}b");
    }

    proptest! {
        #[test]
        fn our_own_encoding_comes_back(name in "[^\\p{C}]{1,40}") {
            prop_assert_eq!(decode_filename(encode_filename(&name).as_bytes()), name);
        }

        #[test]
        fn any_bytes_are_shown(value in prop::collection::vec(any::<u8>(), 0..200)) {
            decode_filename(&value);
        }
    }
}
