//! Tokens in paths: `/t/TOKEN/…` is how a client that can send no header of its own, like Blender's
//! add-on, brings one. Whoever shows a path or an address to people hides them.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// What all our tokens begin with.
pub const TOKEN_PREFIX: &str = "fh_";

/// How many characters follow that: 32 bytes as base64url.
const TOKEN_CHARACTERS: usize = 43;

/// How often something may be percent-encoded over again and still be shown.
const MAX_LAYERS: usize = 4;

/// The token before a path, decoded, and the path without it. In any spelling of the prefix.
pub fn split_token(path: &str) -> Option<(Vec<u8>, &str)> {
    let (first, rest) = path.strip_prefix('/')?.split_once('/')?;
    if !percent_decode_str(first).eq(*b"t") {
        return None;
    }
    let end = rest.find('/').unwrap_or(rest.len());
    let (token, path) = rest.split_at(end);
    let path = if path.is_empty() { "/" } else { path };
    Some((percent_decode_str(token).collect(), path))
}

/// A path, an address, or a text that has them, with `…` in the place of tokens: of whatever follows
/// `/t/`, of whatever looks like one of ours, and of the user and the password in an address.
pub fn hide_tokens(text: &str) -> Cow<'_, str> {
    let (mut layer, mut hidden) = (Cow::Borrowed(text), false);
    // Each layer may have tokens of its own, and what separates them may differ.
    for _ in 0..MAX_LAYERS {
        if let Some(shown) = hide_plain(&layer) {
            (layer, hidden) = (Cow::Owned(shown), true);
        }
        let decoded = percent_decode_str(&layer).decode_utf8_lossy().into_owned();
        if decoded == *layer {
            return if hidden { layer } else { Cow::Borrowed(text) };
        }
        layer = Cow::Owned(decoded);
    }
    // Nobody encodes so often who has nothing to hide.
    Cow::Borrowed("…")
}

/// The text with its tokens hidden; `None` if there are none.
fn hide_plain(text: &str) -> Option<String> {
    let ends_word = |c: char| matches!(c, '/' | '?' | '#' | '"' | '\'') || c.is_whitespace();
    let (mut shown, mut hidden, mut after_t) = (String::new(), false, false);
    for piece in text.split_inclusive(ends_word) {
        let word = piece.trim_end_matches(ends_word);
        let is_token = after_t && !word.is_empty();
        after_t = word == "t" && piece.ends_with('/') && shown.ends_with('/');
        if is_token || looks_like_token(word) {
            hidden = true;
            shown.push('…');
            shown.push_str(&piece[word.len()..]);
        } else if let (true, Some((_, host))) = (shown.ends_with("//"), piece.rsplit_once('@')) {
            hidden |= !piece.starts_with("…@");
            shown.push_str("…@");
            shown.push_str(host);
        } else {
            shown.push_str(piece);
        }
    }
    hidden.then_some(shown)
}

fn looks_like_token(word: &str) -> bool {
    word.match_indices(TOKEN_PREFIX).any(|(at, _)| {
        word[at + TOKEN_PREFIX.len()..]
            .bytes()
            .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            .count()
            >= TOKEN_CHARACTERS
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn splits_tokens_off_in_any_spelling() {
        for (path, token, rest) in [
            ("/t/abc/api/v3", "abc", "/api/v3"),
            ("/t/abc", "abc", "/"),
            ("/t/abc/", "abc", "/"),
            ("/t//api", "", "/api"),
            ("/%74/a%62c/api%2Fv3", "abc", "/api%2Fv3"),
            ("/t/a%2Fb/x", "a/b", "/x"),
            ("/t/a/t/b/x", "a", "/t/b/x"),
        ] {
            assert_eq!(split_token(path), Some((token.into(), rest)), "{path}");
        }
        for path in ["", "*", "/", "/t", "t/abc", "/T/abc", "//t/abc", "/tt/abc", "/api/t/abc"] {
            assert_eq!(split_token(path), None, "{path}");
        }
    }

    #[test]
    fn hides_what_is_a_token() {
        let fresh = format!("fh_{}", "aB3-_".repeat(9));
        for (text, shown) in [
            ("/t/abc/api/v3", "/t/…/api/v3"),
            ("/t/abc", "/t/…"),
            ("http://farm:8080/t/abc/?x", "http://farm:8080/t/…/?x"),
            ("there is no GET //t/abc/x here", "there is no GET //t/…/x here"),
            ("/%74/a%62c/x", "/t/…/x"),
            ("/%2574%2fabc/x", "/t/…/x"),
            ("/%74/abc/t/def", "/t/…/t/…"),
            ("/t/a%2Fb/%74/c", "/t/…/t/…"),
            ("/%252525252574/abc", "…"),
            ("http://me:secret@farm:8080/x", "http://…@farm:8080/x"),
            ("http://me:s%40c@et@farm/t/abc/", "http://…@farm/t/…/"),
            ("is https://secret@[::1]?", "is https://…@[::1]?"),
            (&format!("/x/{fresh}/y"), "/x/…/y"),
            (&format!("/x?key={fresh}"), "/x?…"),
        ] {
            assert_eq!(hide_tokens(text), shown);
        }
        for text in [
            "/api/v3/shaman/files/00/1",
            "/t",
            "/t/",
            "/fh_scene.blend",
            "100%",
            "",
            "/%",
            "http://farm/a@b",
            "a@b//",
        ] {
            assert_eq!(hide_tokens(text), text);
        }
    }

    proptest! {
        /// Whatever counts as the token of a path is hidden in it.
        #[test]
        fn what_is_split_off_is_hidden(
            token in "[a-zA-Z0-9_-]{20,50}", before in "(/|/%74|//|/t%2f)", rest in "[a-z/%0-9]{0,20}"
        ) {
            for path in [format!("/t/{token}/{rest}"), format!("{before}/t/{token}/{rest}"), format!("/%74/{token}{rest}")] {
                prop_assert!(!hide_tokens(&path).contains(&token), "{}", hide_tokens(&path));
            }
        }

        #[test]
        fn any_text_passes(text in any::<String>()) {
            let _ = (split_token(&text), hide_tokens(&text));
        }
    }
}
