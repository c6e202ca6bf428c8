//! Tokens and what they allow. Only their SHA-256 is kept, in memory as in the file.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{domain::Digest, wire::TOKEN_PREFIX};

/// The longest name of a token, in characters.
const MAX_NAME: usize = 64;

/// What a request may be about. None implies another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    /// To ask what is there.
    Read = 1,
    /// To send blobs.
    Upload = 2,
    /// To have checkouts made.
    Checkout = 4,
    /// To do anything to the store itself.
    Admin = 8,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Upload, Self::Checkout, Self::Admin];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Upload => "upload",
            Self::Checkout => "checkout",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that is no scope. It is not repeated: it might be a token in the wrong place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no scope: the scopes are read, upload, checkout and admin")]
pub struct NoScope;

impl FromStr for Scope {
    type Err = NoScope;

    fn from_str(text: &str) -> Result<Self, NoScope> {
        Self::ALL.into_iter().find(|scope| scope.name() == text).ok_or(NoScope)
    }
}

/// Some scopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether this one is among them.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope as u8 != 0
    }

    /// All that either has.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// In their usual order.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope as u8))
    }
}

/// A token, as far as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Who has it; for logs.
    pub name: String,
    /// What it allows.
    pub scopes: Scopes,
    /// The SHA-256 of its text.
    pub sha256: Digest,
}

impl Token {
    /// The token with this text.
    ///
    /// # Errors
    /// If the name cannot be one.
    pub fn new(name: &str, scopes: Scopes, text: &str) -> Result<Self, &'static str> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), scopes, sha256: hash(text.as_bytes()) })
    }
}

/// As an entry of the file.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scopes: Vec<_> = self.scopes.iter().map(|scope| format!("\"{scope}\"")).collect();
        writeln!(f, "[[token]]")?;
        writeln!(f, "name = {}", toml::Value::String(self.name.clone()))?;
        writeln!(f, "scopes = [{}]", scopes.join(", "))?;
        writeln!(f, "sha256 = \"{}\"", self.sha256)
    }
}

/// The text of a new token: 32 random bytes of the operating system.
///
/// # Errors
/// If it gives none.
pub fn fresh_token() -> io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

fn hash(text: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(text).into())
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err("a name has 1 to 64 characters, and no control characters");
    }
    if name.contains(TOKEN_PREFIX) {
        return Err("a name does not contain fh_: names are shown, and tokens must not be");
    }
    Ok(())
}

/// Why a file of tokens is not valid. Nothing of the file is repeated but names and keys: somebody
/// may have put a token itself into it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadTokens {
    /// Where, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file cannot be read.
    #[error("cannot read the tokens in {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause, and part of the message.
        source: io::Error,
    },
    /// What is in it is not valid.
    #[error("the tokens in {} are not valid: {problem}", .path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong, and part of the message.
        problem: BadTokens,
    },
}

/// All tokens of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens(Vec<Token>);

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or anything in it is not valid.
    pub fn read(path: &Path) -> Result<Self, TokensError> {
        let text = fs::read_to_string(path)
            .map_err(|source| TokensError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|problem| TokensError::Bad { path: path.to_owned(), problem })
    }

    /// Parses what a file holds.
    ///
    /// # Errors
    /// If anything in it is not valid.
    pub fn parse(text: &str) -> Result<Self, BadTokens> {
        let line_at = |at: usize| 1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count();
        let bad = |at: usize, reason: String| BadTokens { line: line_at(at), reason };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            // The library's words may quote what is there.
            bad(at, "this is not TOML: a quote, a bracket, or a second key of one name?".into())
        })?;
        let mut tokens = Self::default();
        for (key, value) in table.get_ref() {
            if key.get_ref() != "token" {
                return Err(bad(key.span().start, "only [[token]] is known here".into()));
            }
            let not_a_list =
                || bad(value.span().start, "write [[token]], in double brackets".into());
            let DeValue::Array(entries) = value.get_ref() else { return Err(not_a_list()) };
            for (index, entry) in entries.iter().enumerate() {
                let DeValue::Table(fields) = entry.get_ref() else { return Err(not_a_list()) };
                let token = parse_entry(fields, entry.span().start)
                    .and_then(|token| tokens.add(token).map_err(|why| (entry.span().start, why)))
                    .map_err(|(at, why)| bad(at, format!("token {}: {why}", index + 1)));
                token?;
            }
        }
        Ok(tokens)
    }

    /// Adds one.
    ///
    /// # Errors
    /// If there is one of that name, or the same token under another.
    pub fn add(&mut self, token: Token) -> Result<(), String> {
        for other in &self.0 {
            if other.name == token.name {
                return Err(format!("there is one named {:?} already", token.name));
            }
            if other.sha256 == token.sha256 {
                return Err(format!("it is the same as {:?}", other.name));
            }
        }
        self.0.push(token);
        Ok(())
    }

    /// The token with this text. Takes the same time whichever it is, and if it is none.
    pub fn find(&self, text: &[u8]) -> Option<&Token> {
        if self.0.is_empty() {
            return None;
        }
        let sha256 = hash(text);
        let mut place = 0u64;
        for (number, token) in (1..).zip(&self.0) {
            place.conditional_assign(&number, token.sha256.as_bytes().ct_eq(sha256.as_bytes()));
        }
        self.0.get(usize::try_from(place).ok()?.checked_sub(1)?)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One `[[token]]`; or where something is wrong, and what.
fn parse_entry(fields: &DeTable<'_>, start: usize) -> Result<Token, (usize, String)> {
    let (mut name, mut scopes, mut sha256) = (None, None, None);
    for (key, value) in fields {
        let at = value.span().start;
        let wrong = |why: &str| (at, format!("{}: {why}", key.get_ref()));
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("name", DeValue::String(text)) => {
                check_name(text).map_err(wrong)?;
                name = Some(text.to_string());
            }
            ("name", _) => return Err(wrong("write a text")),
            ("scopes", DeValue::Array(list)) => scopes = Some(parse_scopes(list)?),
            ("scopes", _) => return Err(wrong("write a list, like [\"read\", \"upload\"]")),
            ("sha256", DeValue::String(text)) => {
                let why =
                    "not 64 lower-case hex digits; it is the SHA-256 of the token, not the token";
                sha256 = Some(text.parse().map_err(|_| wrong(why))?);
            }
            ("sha256", _) => return Err(wrong("write a text of 64 lower-case hex digits")),
            _ => {
                let why = "there is a key that is none: a token has name, scopes and sha256";
                return Err((key.span().start, why.into()));
            }
        }
    }
    match (name, scopes, sha256) {
        (Some(name), Some(scopes), Some(sha256)) => Ok(Token { name, scopes, sha256 }),
        (None, ..) => Err((start, "it has no name".into())),
        (_, None, _) => Err((start, "it has no scopes".into())),
        (.., None) => Err((start, "it has no sha256".into())),
    }
}

fn parse_scopes(list: &[Spanned<DeValue<'_>>]) -> Result<Scopes, (usize, String)> {
    let scopes = list.iter().map(|item| {
        let text = item.get_ref().as_str().unwrap_or_default();
        text.parse().map_err(|error| (item.span().start, format!("scopes: {error}")))
    });
    let scopes: Scopes = scopes.collect::<Result<_, _>>()?;
    if scopes == Scopes::default() {
        let at = list.first().map_or(0, |item| item.span().start);
        return Err((at, "scopes: there are none, so it would be of no use".into()));
    }
    Ok(scopes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"; // "a"
    const B: &str = "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"; // "b"

    fn entry(name: &str, scopes: &str, sha256: &str) -> String {
        format!("[[token]]\nname = \"{name}\"\nscopes = [{scopes}]\nsha256 = \"{sha256}\"\n")
    }

    #[test]
    fn reads_tokens_and_finds_them() {
        let text = entry("one", "\"read\", \"upload\"", A) + &entry("two", "\"admin\"", B);
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(tokens.len(), 2);
        let one = tokens.find(b"a").unwrap();
        assert_eq!(one.name, "one");
        assert!(one.scopes.has(Scope::Read) && one.scopes.has(Scope::Upload));
        assert!(!one.scopes.has(Scope::Admin) && !one.scopes.has(Scope::Checkout));
        let two = tokens.find(b"b").unwrap();
        assert_eq!((two.name.as_str(), two.scopes.has(Scope::Read)), ("two", false));
        for wrong in ["", "c", "aa", A] {
            assert_eq!(tokens.find(wrong.as_bytes()), None);
        }
        assert_eq!(Tokens::default().find(b"a"), None);
        assert!(Tokens::parse("# none yet\n").unwrap().is_empty());
    }

    #[test]
    fn says_where_a_file_is_wrong_and_never_what_a_secret_is() {
        let good = entry("one", "\"read\"", A);
        for (text, line, says) in [
            (format!("{good}[[token]]\nnme = \"fh_x\""), 6, "token 2: there is a key that is none"),
            (format!("{good}token = \"fh_secret\""), 5, "token 1: there is a key that is none"),
            ("fh_secret = 1".into(), 1, "only [[token]]"),
            ("[token]\nname = \"x\"".into(), 1, "double brackets"),
            ("token = [\"fh_secret\"]".into(), 1, "double brackets"),
            (entry("x", "\"fh_secret\"", A), 3, "scopes: no scope: the scopes are read"),
            (entry("x", "7", A), 3, "scopes: no scope"),
            (entry("x", "", A), 1, "scopes: there are none"),
            (entry("x", "\"read\"", "fh_secret"), 4, "sha256: not 64 lower-case hex digits"),
            (entry("x", "\"read\"", &A.to_uppercase()), 4, "sha256"),
            (entry("", "\"read\"", A), 2, "name: a name has"),
            (entry("fh_secret", "\"read\"", A), 2, "name: a name does not"),
            (entry("a\\nb", "\"read\"", A), 2, "name: a name has"),
            (
                format!("{good}\n{}", entry("one", "\"read\"", B)),
                6,
                "token 2: there is one named \"one\"",
            ),
            (
                format!("{good}\n{}", entry("two", "\"read\"", A)),
                6,
                "token 2: it is the same as \"one\"",
            ),
            ("[[token]]\nname = \"x\"\nscopes = [\"read\"]".into(), 1, "no sha256"),
            ("[[token]]\nname = \"x\"".into(), 1, "no scopes"),
            ("[[token]]".into(), 1, "no name"),
            ("[[token]]\nname = fh_secret".into(), 2, "not TOML"),
            ("[[token]]\nname = \"a\"\nname = \"fh_secret\"".into(), 3, "not TOML"),
        ] {
            let error = Tokens::parse(&text).expect_err(&text);
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.reason.contains(says), "{text}: {error}");
            assert!(!error.to_string().contains("fh_s"), "{error}");
        }
    }

    #[test]
    fn a_fresh_token_is_written_and_read_back() {
        let text = fresh_token().unwrap();
        assert!(text.len() == 46 && text.starts_with("fh_"), "{text}");
        assert_ne!(text, fresh_token().unwrap());
        let scopes = [Scope::Checkout, Scope::Read].into_iter().collect();
        let token = Token::new("the \"big\" one", scopes, &text).unwrap();
        assert!(!token.to_string().contains(&text));
        let tokens = Tokens::parse(&token.to_string()).unwrap();
        assert_eq!(tokens.find(text.as_bytes()), Some(&token));
        assert!(Token::new("", scopes, &text).is_err());
    }

    proptest! {
        /// Whatever is in the file: an error, or a set in which all is as it should be.
        #[test]
        fn any_text_is_an_error_or_a_valid_set(text in prop_oneof![
            any::<String>(),
            prop::collection::vec(prop_oneof![
                Just("[[token]]\n".to_owned()), Just("[token]\n".to_owned()), Just("token = [{}]\n".to_owned()),
                "name = \"[a-c]{0,2}\"\n", Just("name = 1\n".to_owned()),
                "scopes = \\[(\"read\"|\"admin\"|\"x\"|1|,){0,3}\\]\n",
                Just(format!("sha256 = \"{A}\"\n")), Just(format!("sha256 = '{B}'\n")), "sha256 = \"[0-9a-f]{64}\"\n",
                "[a-z\"\\[\\]=\n#.\\\\]{0,6}",
            ], 0..12).prop_map(|parts| parts.concat()),
        ]) {
            match Tokens::parse(&text) {
                Ok(tokens) => for (place, token) in tokens.iter().enumerate() {
                    prop_assert!(check_name(&token.name).is_ok());
                    prop_assert!(token.scopes.iter().next().is_some());
                    let mut others = tokens.iter().take(place);
                    let alone = others.all(|o| o.name != token.name && o.sha256 != token.sha256);
                    prop_assert!(alone);
                },
                Err(error) => prop_assert!(error.line <= text.lines().count().max(1) + 1),
            }
        }

        /// Sets that are valid are read as they were written.
        #[test]
        fn what_is_written_is_read_back(tokens in prop::collection::vec(
            (r#"[^\p{Cc}]{1,20}"#, 1u8..16, any::<[u8; 32]>()), 0..6,
        )) {
            let mut set = Tokens::default();
            for (name, bits, bytes) in tokens {
                let token = Token { name, scopes: Scopes(bits), sha256: Digest::from_bytes(bytes) };
                if check_name(&token.name).is_ok() {
                    let _ = set.add(token);
                }
            }
            let text: String = set.iter().map(Token::to_string).collect();
            prop_assert_eq!(Tokens::parse(&text).unwrap(), set);
        }
    }
}
