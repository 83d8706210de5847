//! The URLs of members and clients: `scheme://host:port`, or a path for Unix sockets.
//!
//! Depends on nothing. Invariant: the printed form is the one Go prints, because member ids are hashes of it (etcd:
//! client/pkg/types/urls.go).

use std::{fmt, str::FromStr};

/// The schemes etcd knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// A Unix socket.
    Unix,
    /// TLS over a Unix socket.
    Unixs,
}

impl Scheme {
    /// Whether the connection is encrypted.
    pub fn is_secure(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }

    /// Whether it is a Unix socket.
    pub fn is_unix(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::Unixs)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        })
    }
}

/// One URL. Ordered as its printed form, which is the order etcd sorts by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url {
    scheme: Scheme,
    /// `host:port`; for Unix sockets whatever stands before the path.
    host: String,
    /// Empty unless a Unix socket.
    path: String,
}

/// Why a text is no URL of etcd's; the messages are Go's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL at all.
    #[error("parse {text:?}: {reason}")]
    Syntax {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A scheme other than the four.
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    Scheme(String),
    /// No port.
    #[error("URL address does not have the form \"host:port\": {0}")]
    HostPort(String),
    /// A path on an HTTP URL.
    #[error("URL must not contain a path: {0}")]
    Path(String),
}

impl Url {
    /// An HTTP URL out of its parts.
    pub fn http(host_port: impl Into<String>) -> Url {
        Url {
            scheme: Scheme::Http,
            host: host_port.into(),
            path: String::new(),
        }
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// `host:port` as a dialler or listener wants it; for Unix sockets the path.
    pub fn address(&self) -> String {
        format!("{}{}", self.host, self.path)
    }

    /// The host without port and brackets, and the port; `None` for Unix sockets.
    pub fn host_port(&self) -> Option<(&str, &str)> {
        if self.scheme.is_unix() {
            None
        } else {
            split_host_port(&self.host)
        }
    }

    /// Reads a comma separated list, sorts it and keeps the first of equal ones.
    pub fn parse_list(text: &str) -> Result<Vec<Url>, UrlError> {
        let mut urls = text
            .split(',')
            .map(Url::from_str)
            .collect::<Result<Vec<_>, _>>()?;
        urls.sort();
        urls.dedup();
        Ok(urls)
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Url, UrlError> {
        let text = text.trim();
        let syntax = |reason| UrlError::Syntax {
            text: text.into(),
            reason,
        };
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err(syntax("net/url: invalid control character in URL"));
        }
        let Some((scheme, rest)) = scheme_of(text) else {
            if text.starts_with(':') {
                return Err(syntax("missing protocol scheme"));
            }
            // Go takes a text without scheme for a path, whose first segment must not hold a colon.
            let segment = text.split('/').next().unwrap_or_default();
            if segment.contains(':') {
                return Err(syntax("first path segment in URL cannot contain colon"));
            }
            return Err(UrlError::Scheme(text.into()));
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(UrlError::Scheme(text.into())),
        };
        let rest = rest.strip_prefix("//").unwrap_or("");
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if host.contains(['?', '#', ' ', '@', '<', '>', '"', '\\']) {
            return Err(syntax("invalid character in host name"));
        }
        if !scheme.is_unix() {
            if let Some((_, port)) = split_host_port(host) {
                if !port.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(syntax("invalid port after host"));
                }
            } else {
                return Err(UrlError::HostPort(text.into()));
            }
            if !path.is_empty() {
                return Err(UrlError::Path(text.into()));
            }
        }
        Ok(Url {
            scheme,
            host: host.into(),
            path: path.into(),
        })
    }
}

/// The scheme and what follows its colon, by the rules of RFC 3986.
fn scheme_of(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let mut bytes = scheme.bytes();
    let first = bytes.next()?.is_ascii_alphabetic();
    let others = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    (first && others).then_some((scheme, rest))
}

/// Splits `host:port`, `[v6]:port`; the port may be a name or empty, as in Go's `net.SplitHostPort`.
pub fn split_host_port(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once("]:")?;
        return (!host.contains(['[', ']']) && !port.contains(':')).then_some((host, port));
    }
    let (host, port) = text.split_once(':')?;
    (!port.contains(':') && !text.contains(['[', ']'])).then_some((host, port))
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.host, self.path)
    }
}

impl PartialOrd for Url {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Url {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.to_string().cmp(&other.to_string())
    }
}

/// The printed forms, in the given order.
pub fn strings(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_as_go_prints_them() {
        let cases = [
            ("http://127.0.0.1:2380", "http://127.0.0.1:2380"),
            (" HTTP://Host:1 ", "http://Host:1"),
            ("http://:80", "http://:80"),
            ("https://[::1]:2380", "https://[::1]:2380"),
            ("unix://tmp/etcd.sock", "unix://tmp/etcd.sock"),
            (
                "unix:///tmp/127.27.84.4:23432",
                "unix:///tmp/127.27.84.4:23432",
            ),
            ("unix://127.0.0.5:1456", "unix://127.0.0.5:1456"),
        ];
        for (text, printed) in cases {
            assert_eq!(
                text.parse::<Url>().map(|u| u.to_string()),
                Ok(printed.into()),
                "{text}"
            );
        }
    }

    #[test]
    fn refused_with_go_s_words() {
        let cases = [
            (
                "127.0.0.1:30001",
                "parse \"127.0.0.1:30001\": first path segment in URL cannot contain colon",
            ),
            (":2379", "parse \":2379\": missing protocol scheme"),
            (
                "somewhere",
                "URL scheme must be http, https, unix, or unixs: somewhere",
            ),
            ("", "URL scheme must be http, https, unix, or unixs: "),
            (
                "file://foo/bar",
                "URL scheme must be http, https, unix, or unixs: file://foo/bar",
            ),
            (
                "http://hello/asdf",
                "URL address does not have the form \"host:port\": http://hello/asdf",
            ),
            (
                "http://10.1.1.1",
                "URL address does not have the form \"host:port\": http://10.1.1.1",
            ),
            (
                "http://10.1.1.1:1/",
                "URL must not contain a path: http://10.1.1.1:1/",
            ),
            (
                "http:1",
                "URL address does not have the form \"host:port\": http:1",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(
                text.parse::<Url>().map_err(|e| e.to_string()),
                Err(message.into()),
                "{text}"
            );
        }
        for text in [
            "http://a:foo",
            "http://a b:1",
            "http://a\n:1",
            "http://a:1:2",
            "http://[::1:2",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }

    #[test]
    fn lists_are_sorted_and_unique() {
        let urls = Url::parse_list("http://b:1,http://a:1,http://b:1, http://a:0").unwrap();
        assert_eq!(strings(&urls), ["http://a:0", "http://a:1", "http://b:1"]);
    }
}
