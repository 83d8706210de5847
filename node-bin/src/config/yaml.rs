//! YAML as configuration files use it, read into JSON values. JSON is YAML, so both forms go through here.
//!
//! Depends on the event parser of `saphyr-parser`. Invariant: nesting and the number of values are bounded, so that a
//! file of aliases to aliases costs what its size justifies.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// Values in one file, aliases counted as often as they are used.
const VALUES_MAX: usize = 100_000;

/// How deep values may nest.
const DEPTH_MAX: usize = 64;

/// Reads the first document; an empty text is null. The error says what and where.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        values: 0,
    };
    loop {
        match reader.next()? {
            None | Some(Event::StreamEnd) => return Ok(Value::Null),
            Some(Event::DocumentStart(_)) => break,
            Some(_) => {}
        }
    }
    let first = reader.next()?;
    let value = reader.value(first, 0)?;
    // What follows the first document still has to be YAML.
    while reader
        .next()?
        .is_some_and(|event| !matches!(event, Event::StreamEnd))
    {}
    Ok(value)
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Value>,
    values: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<Event<'a>>, String> {
        match self.parser.next() {
            Some(Ok((event, _))) => Ok(Some(event)),
            Some(Err(error)) => Err(format!("line {}: {}", error.marker().line(), error.info())),
            None => Ok(None),
        }
    }

    fn value(&mut self, event: Option<Event<'a>>, depth: usize) -> Result<Value, String> {
        self.count(1)?;
        if depth > DEPTH_MAX {
            return Err("nested too deeply".into());
        }
        let (value, anchor) = match event {
            Some(Event::Scalar(text, style, anchor, tag)) => {
                let text_only =
                    style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.suffix == "str");
                let value = if text_only {
                    Value::String(text.into_owned())
                } else {
                    plain(&text)
                };
                (value, anchor)
            }
            Some(Event::SequenceStart(anchor, _)) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        Some(Event::SequenceEnd) => break,
                        event => list.push(self.value(event, depth + 1)?),
                    }
                }
                (Value::Array(list), anchor)
            }
            Some(Event::MappingStart(anchor, _)) => (self.mapping(depth)?, anchor),
            Some(Event::Alias(anchor)) => {
                let value = self.anchors.get(&anchor).cloned().ok_or("unknown alias")?;
                self.count(size(&value))?;
                (value, 0)
            }
            _ => return Err("the text ends within a value".into()),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, String> {
        let mut map = Map::new();
        loop {
            let key = match self.next()? {
                Some(Event::MappingEnd) => return Ok(Value::Object(map)),
                Some(Event::Scalar(text, ..)) => text.into_owned(),
                _ => return Err("a key is no plain text".into()),
            };
            let event = self.next()?;
            let value = self.value(event, depth + 1)?;
            map.insert(key, value);
        }
    }

    fn count(&mut self, values: usize) -> Result<(), String> {
        self.values = self.values.saturating_add(values);
        if self.values > VALUES_MAX {
            Err("too many values".into())
        } else {
            Ok(())
        }
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(size).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// A scalar without quotes, by YAML 1.1's rules as Go's configuration files know them.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let (sign, digits) = match text.as_bytes()[0] {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let radix = match digits.get(..2) {
        Some("0x") => 16,
        Some("0o") => 8,
        Some("0b") => 2,
        _ => 10,
    };
    let number = if radix == 10 { digits } else { &digits[2..] };
    if number.starts_with(|c: char| c.is_digit(radix)) {
        if let Ok(number) = u64::from_str_radix(number, radix) {
            return match (sign, i64::try_from(number)) {
                (1, _) => Value::Number(number.into()),
                (_, Ok(number)) => Value::Number((-number).into()),
                _ => Value::String(text.into()),
            };
        }
        let float = digits.parse::<f64>().ok().filter(|_| radix == 10);
        if let Some(number) = float.and_then(|float| Number::from_f64(float * f64::from(sign))) {
            return Value::Number(number);
        }
    }
    Value::String(text.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_the_forms_of_configuration_files() {
        let text = "# a comment\nname: 'foo'\ndata-dir: /var/lib/etcd\nheartbeat-interval: 100\npre-vote: yes\n\
                    wal-dir:\nquota-backend-bytes: -1\nlog-outputs: [stderr, \"x\"]\nx: 1.5\ny: 0x10\n\
                    peer-transport-security:\n  cert-file: a:b\n  client-cert-auth: false\nz: \"5\"\nv: 3.6.1\n";
        let value = json!({
            "name": "foo", "data-dir": "/var/lib/etcd", "heartbeat-interval": 100, "pre-vote": true, "wal-dir": null,
            "quota-backend-bytes": -1, "log-outputs": ["stderr", "x"], "x": 1.5, "y": 16,
            "peer-transport-security": {"cert-file": "a:b", "client-cert-auth": false}, "z": "5", "v": "3.6.1",
        });
        assert_eq!(parse(text), Ok(value));
        assert_eq!(
            parse("{\"name\": \"json\", \"n\": 5}"),
            Ok(json!({"name": "json", "n": 5}))
        );
        assert_eq!(parse(""), Ok(Value::Null));
        assert_eq!(
            parse("a: &x [1, 2]\nb: *x"),
            Ok(json!({"a": [1, 2], "b": [1, 2]}))
        );
    }

    #[test]
    fn errors_say_where() {
        assert!(
            parse("name: foo\nfoo: bar\n\tx: y")
                .unwrap_err()
                .contains("line ")
        );
        assert!(parse("a: [1, 2").is_err());
        assert!(parse("a: *nobody").is_err());
    }

    #[test]
    fn aliases_cannot_multiply_without_end() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
            text += &format!("a{i}: &a{i} [{aliases}]\n");
        }
        assert_eq!(parse(&text), Err("too many values".into()));
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        assert!(parse(&deep).is_err());
    }
}
