//! The values of settings: what kinds there are and how each is spelled on a command line.
//!
//! Depends on `duration`, `url` and `features`. Invariant: a text is accepted here exactly if Go's `flag` package and
//! etcd's own flag types accept it, and refused with their words.

use std::{collections::BTreeSet, time::Duration};

use super::{duration, features::FeatureGates, url::Url};

/// What a setting holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`; the flag alone means true.
    Bool,
    /// An unsigned number of at most 64 bits.
    Uint,
    /// An unsigned number of at most 32 bits.
    Uint32,
    /// A signed number.
    Int,
    /// A duration as Go writes it.
    Duration,
    /// Any text.
    Text,
    /// A comma separated list, order kept.
    List,
    /// A comma separated set.
    Set,
    /// A comma separated list of URLs; the empty text keeps the default.
    Urls,
    /// `*` or a comma separated set of URLs.
    Origins,
    /// One of the given words.
    OneOf(&'static [&'static str]),
    /// A comma separated list of the given words.
    SomeOf(&'static [&'static str]),
    /// `Name=bool,…`
    Gates,
    /// No longer has a meaning; any value or none.
    Anything,
}

/// A value that was given.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Uint`] and [`Kind::Uint32`].
    Uint(u64),
    /// Of [`Kind::Int`].
    Int(i64),
    /// Of [`Kind::Duration`].
    Duration(Duration),
    /// Of [`Kind::Text`], [`Kind::OneOf`] and [`Kind::SomeOf`].
    Text(String),
    /// Of [`Kind::List`].
    List(Vec<String>),
    /// Of [`Kind::Set`] and [`Kind::Origins`].
    Set(BTreeSet<String>),
    /// Of [`Kind::Urls`]; `None` keeps the default.
    Urls(Option<Vec<Url>>),
    /// Of [`Kind::Gates`].
    Gates(String, FeatureGates),
    /// Of [`Kind::Anything`].
    Nothing,
}

/// Reads a value of the given kind; the error is the reason as Go gives it.
pub fn parse(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Bool => parse_bool(text)
            .map(Value::Bool)
            .ok_or_else(|| SYNTAX.into()),
        Kind::Uint => parse_uint(text, u64::MAX)
            .map(Value::Uint)
            .map_err(String::from),
        Kind::Uint32 => parse_uint(text, u64::from(u32::MAX))
            .map(Value::Uint)
            .map_err(|reason| {
                let reason = if reason == SYNTAX {
                    "invalid syntax"
                } else {
                    reason
                };
                format!("strconv.ParseUint: parsing {text:?}: {reason}")
            }),
        Kind::Int => parse_int(text).map(Value::Int).map_err(String::from),
        Kind::Duration => duration::parse(text)
            .map(Value::Duration)
            .ok_or_else(|| SYNTAX.into()),
        Kind::Text => Ok(Value::Text(text.into())),
        Kind::List => Ok(Value::List(text.split(',').map(str::to_string).collect())),
        Kind::Set => Ok(Value::Set(text.split(',').map(str::to_string).collect())),
        Kind::Urls if text.is_empty() => Ok(Value::Urls(None)),
        Kind::Urls => Url::parse_list(text)
            .map(|urls| Value::Urls(Some(urls)))
            .map_err(|e| e.to_string()),
        Kind::Origins if text == "*" => Ok(Value::Set(BTreeSet::from(["*".to_string()]))),
        Kind::Origins => match Url::parse_list(text) {
            Ok(urls) => Ok(Value::Set(urls.iter().map(Url::to_string).collect())),
            Err(error) => Err(error.to_string()),
        },
        Kind::OneOf(words) if words.contains(&text) => Ok(Value::Text(text.into())),
        Kind::OneOf(_) => Err("invalid value".into()),
        Kind::SomeOf(words) => match text.split(',').find(|word| !words.contains(word)) {
            Some(word) => Err(format!("invalid value {word:?}")),
            None => Ok(Value::Text(text.into())),
        },
        Kind::Anything => Ok(Value::Nothing),
        Kind::Gates => FeatureGates::parse(text).map(|gates| Value::Gates(text.into(), gates)),
    }
}

const SYNTAX: &str = "parse error";
const RANGE: &str = "value out of range";

/// The spellings of a truth value that Go's `strconv.ParseBool` knows.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A number with Go's optional base prefix (`0x`, `0o`, `0b`, `0`) and underscores between digits.
fn parse_uint(text: &str, max: u64) -> Result<u64, &'static str> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', b'o' | b'O', ..] => (&text[2..], 8),
        [b'0', b'b' | b'B', ..] => (&text[2..], 2),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    let misplaced = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    let digits: String = digits.chars().filter(|c| *c != '_').collect();
    if misplaced || digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(SYNTAX);
    }
    match u64::from_str_radix(&digits, radix) {
        Ok(number) if number <= max => Ok(number),
        _ => Err(RANGE),
    }
}

fn parse_int(text: &str) -> Result<i64, &'static str> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let limit = i64::MAX as u64 + u64::from(negative);
    let number = parse_uint(digits, limit)?;
    Ok(if negative {
        (number as i64).wrapping_neg()
    } else {
        number as i64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_go_s_spellings() {
        assert_eq!(parse(Kind::Uint, "0x10"), Ok(Value::Uint(16)));
        assert_eq!(parse(Kind::Uint, "1_000"), Ok(Value::Uint(1000)));
        assert_eq!(parse(Kind::Uint, "010"), Ok(Value::Uint(8)));
        assert_eq!(parse(Kind::Uint, "0"), Ok(Value::Uint(0)));
        assert_eq!(
            parse(Kind::Int, "-0x8000000000000000"),
            Ok(Value::Int(i64::MIN))
        );
        assert_eq!(parse(Kind::Int, "-1"), Ok(Value::Int(-1)));
        for text in [
            "", "abc", "-1", "+1", "1.5", "_1", "1__0", "0x", "100 # ms", "09",
        ] {
            assert_eq!(parse(Kind::Uint, text), Err("parse error".into()), "{text}");
        }
        assert_eq!(
            parse(Kind::Uint, "99999999999999999999"),
            Err("value out of range".into())
        );
        assert_eq!(
            parse(Kind::Int, "9223372036854775808"),
            Err("value out of range".into())
        );
        let refused = "strconv.ParseUint: parsing \"x\": invalid syntax";
        assert_eq!(parse(Kind::Uint32, "x"), Err(refused.into()));
        let refused = "strconv.ParseUint: parsing \"4294967296\": value out of range";
        assert_eq!(parse(Kind::Uint32, "4294967296"), Err(refused.into()));
    }

    #[test]
    fn words_must_be_known() {
        let kind = Kind::OneOf(&["new", "existing"]);
        assert_eq!(parse(kind, "new"), Ok(Value::Text("new".into())));
        assert_eq!(parse(kind, ""), Err("invalid value".into()));
        assert_eq!(
            parse(Kind::SomeOf(&["a", "b"]), "a,c"),
            Err("invalid value \"c\"".into())
        );
    }

    #[test]
    fn lists_of_urls_keep_their_default_when_empty() {
        assert_eq!(parse(Kind::Urls, ""), Ok(Value::Urls(None)));
        assert_eq!(
            parse(Kind::Origins, "*"),
            Ok(Value::Set(BTreeSet::from(["*".to_string()])))
        );
        assert!(parse(Kind::Origins, "foo").is_err());
    }
}
