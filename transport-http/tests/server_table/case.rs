//! One request to the peer port, and what must come of it.

use transport_core::raftpb::Message;
use transport_http::ProcessError;

use crate::{
    Member,
    common::raw::{Head, Raw, request},
};

/// A check of one of etcd's handlers, counted from 1 in the order in which the handler makes them. After the last one
/// comes what it does when all is well, which counts as one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Versions and cluster, which every handler checks after the method.
    Compatibility(u8),
    /// GET `/raft/stream/…`.
    Stream(u8),
    /// POST `/raft`.
    Pipeline(u8),
    /// POST `/raft/snapshot`.
    Snapshot(u8),
    /// `/raft/probing`.
    Probing(u8),
    /// Every other path.
    Elsewhere(u8),
}

impl Rule {
    /// This rule and those before it.
    pub fn up_to(self) -> impl Iterator<Item = Rule> {
        let (rule, last): (fn(u8) -> Rule, u8) = match self {
            Rule::Compatibility(last) => (Rule::Compatibility, last),
            Rule::Stream(last) => (Rule::Stream, last),
            Rule::Pipeline(last) => (Rule::Pipeline, last),
            Rule::Snapshot(last) => (Rule::Snapshot, last),
            Rule::Probing(last) => (Rule::Probing, last),
            Rule::Elsewhere(last) => (Rule::Elsewhere, last),
        };
        (1..=last).map(rule)
    }
}

/// What is asked, and what must come.
pub struct Case {
    pub rule: Rule,
    pub name: &'static str,
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes that are announced and not sent before the sender ends the connection on its side.
    missing: usize,
    /// What raft makes of a message.
    pub raft: Result<(), ProcessError>,
    status: u16,
    answer: Answer,
    /// Headers that must be there with these values; an empty value means it must not be there.
    expected: Vec<(&'static str, &'static str)>,
    /// The names of all headers, letter by letter.
    names: Option<Vec<&'static str>>,
    /// What must reach raft.
    pub delivered: Option<Message>,
    /// Who can be answered from now on, at the URL it gave.
    pub introduced: Option<u64>,
}

/// What the body of an answer must be.
enum Answer {
    Text(String),
    /// Begins and ends so, with something in between that nobody can foresee.
    Around(&'static str, &'static str),
    /// Has no end, and this is its first chunk.
    Endless(&'static [u8]),
}

pub const PLAIN: (&str, &str) = ("content-type", "text/plain; charset=utf-8");
const NOSNIFF: (&str, &str) = ("x-content-type-options", "nosniff");

/// A request of a compatible peer that is answered with an error's text; the methods below make another one of it.
pub fn case(
    rule: Rule,
    name: &'static str,
    (method, path): (&'static str, impl ToString),
    status: u16,
    text: impl ToString,
) -> Case {
    Case {
        rule,
        name,
        method,
        path: path.to_string(),
        headers: Vec::new(),
        body: Vec::new(),
        missing: 0,
        raft: Ok(()),
        status,
        answer: Answer::Text(text.to_string()),
        expected: vec![PLAIN, NOSNIFF],
        names: None,
        delivered: None,
        introduced: None,
    }
}

impl Case {
    /// An empty value takes one of a compatible peer's headers away.
    pub fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn missing(mut self, bytes: usize) -> Self {
        self.missing = bytes;
        self
    }

    pub fn raft(mut self, answer: ProcessError) -> Self {
        self.raft = Err(answer);
        self
    }

    pub fn around(mut self, begin: &'static str, end: &'static str) -> Self {
        self.answer = Answer::Around(begin, end);
        self
    }

    pub fn endless(mut self, first: &'static [u8]) -> Self {
        self.answer = Answer::Endless(first);
        self
    }

    /// More headers than those of an error.
    pub fn expect(mut self, expected: &[(&'static str, &'static str)]) -> Self {
        self.expected.extend(expected);
        self
    }

    /// Other headers than those of an error.
    pub fn only(mut self, expected: &[(&'static str, &'static str)]) -> Self {
        self.expected = expected.to_vec();
        self
    }

    pub fn names(mut self, names: &[&'static str]) -> Self {
        self.names = Some(names.to_vec());
        self
    }

    pub fn delivers(mut self, message: Message) -> Self {
        self.delivered = Some(message);
        self
    }

    pub fn introduces(mut self, id: u64) -> Self {
        self.introduced = Some(id);
        self
    }

    /// For messages of failed assertions.
    pub fn what(&self) -> String {
        let Case { rule, name, .. } = self;
        format!("{rule:?}, {name} ({} {})", self.method, self.path)
    }

    /// Asks, and holds the answer to what must come.
    pub async fn check(&self, member: &Member) {
        let what = self.what();
        let mut raw = self.ask(member).await;
        let head = raw.head().await;
        let head = head.unwrap_or_else(|| panic!("{what}: no answer"));
        assert_eq!(head.status(), self.status, "{what}: {head:?}");
        self.check_headers(&head);
        match &self.answer {
            Answer::Text(text) => {
                let body = raw.body(&head).await;
                assert_eq!(String::from_utf8_lossy(&body), *text, "{what}");
            }
            Answer::Around(begin, end) => {
                let body = String::from_utf8(raw.body(&head).await).unwrap();
                let fits = body.starts_with(begin) && body.ends_with(end);
                assert!(
                    fits && body.len() > begin.len() + end.len(),
                    "{what}: {body}"
                );
            }
            Answer::Endless(first) => {
                let chunk = raw.chunk().await.unwrap();
                assert_eq!(chunk.as_deref(), Some(*first), "{what}");
            }
        }
    }

    async fn ask(&self, member: &Member) -> Raw {
        let headers = self.headers.iter();
        let mut headers: Vec<_> = headers
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let length = (self.body.len() + self.missing).to_string();
        if self.method != "GET" {
            headers.push(("Content-Length", &length));
        }
        let mut raw = Raw::connect(member.address).await;
        let head = request(self.method, &self.path, &headers);
        raw.write([head.as_bytes(), &self.body].concat()).await;
        if self.missing > 0 {
            raw.end().await;
        }
        raw
    }

    fn check_headers(&self, head: &Head) {
        let what = self.what();
        for (name, value) in &self.expected {
            let found = head.header(name).unwrap_or_default();
            assert_eq!(found, *value, "{what}: {name}");
        }
        if let Some(expected) = &self.names {
            let lines = head.text.lines().skip(1);
            let mut names: Vec<_> = lines
                .filter_map(|line| Some(line.split_once(':')?.0))
                .collect();
            names.sort_unstable();
            assert_eq!(names, *expected, "{what}");
        }
        assert!(head.header("date").is_some(), "{what}");
        assert_ne!(head.status(), 403, "{what}: a Go member would stop");
    }
}
