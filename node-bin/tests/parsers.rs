//! What comes from outside never panics a parser, and what a parser prints it reads back.

use std::{ffi::OsString, time::Duration};

use node_bin::{
    config::{self, Outcome, Url, cluster::InitialCluster, duration},
    grpc::frames::FrameScanner,
    member::{MemberInfo, Versions, info::go_json},
    metrics::scrape::Scrape,
};
use proptest::prelude::*;

/// Texts close enough to URLs to get past the first checks.
fn url_like() -> impl Strategy<Value = String> {
    "(http|https|unix|HTTP|ftp)?:?/{0,3}(\\[[0-9a-f:]{0,6}\\]?|[a-z0-9.\\-]{0,8})(:[0-9a-z]{0,6})?(/[a-z]{0,3})?"
}

/// Words like those of a command line.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "-{0,3}[a-z0-9\\-=.,]{0,20}",
        "--(name|heartbeat-interval|listen-peer-urls|pre-vote|cors|feature-gates|log-outputs)=?.{0,12}",
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn urls_are_read_back_as_they_were_printed(text in prop_oneof![url_like(), any::<String>()]) {
        if let Ok(url) = text.parse::<Url>() {
            prop_assert_eq!(url.to_string().parse::<Url>(), Ok(url));
        }
    }

    #[test]
    fn durations_are_read_back_as_they_were_printed(nanos in 0..=i64::MAX as u64, text in any::<String>()) {
        let given = Duration::from_nanos(nanos);
        prop_assert_eq!(duration::parse(&duration::format(given)), Some(given));
        if let Some(read) = duration::parse(&text) {
            prop_assert_eq!(duration::parse(&duration::format(read)), Some(read));
        }
    }

    #[test]
    fn initial_clusters_are_read_back_as_they_were_printed(text in "([a-z]{0,2}=?http://h:[0-9]{1,2},?){0,5}") {
        if let Ok(cluster) = InitialCluster::parse(&text) {
            prop_assert_eq!(InitialCluster::parse(&cluster.to_string()), Ok(cluster));
        }
    }

    #[test]
    fn no_command_line_and_no_environment_panics(
        words in prop::collection::vec(word(), 0..6),
        variables in prop::collection::vec(("(ETCD_[A-Z_]{0,12}|.{0,5})", any::<String>()), 0..4),
    ) {
        let args = words.iter().map(OsString::from).collect();
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        match config::load(args, variables) {
            Ok(Outcome::Run(loaded)) => prop_assert!(loaded.config.election_ticks() >= 5),
            Ok(Outcome::Print(text)) => prop_assert!(!text.is_empty()),
            Err(failure) => prop_assert!(!failure.error.to_string().is_empty()),
        }
    }

    #[test]
    fn no_configuration_file_panics(text in prop_oneof![any::<String>(), "([a-z\\-]{1,12}: ?[&*]?[a-z0-9\\[\\]{}\"'|>-]{0,8}\n? {0,3}){0,12}"]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcd.yaml");
        std::fs::write(&path, text).unwrap();
        let _ = config::load(vec!["--config-file".into(), path.into()], Vec::new());
    }

    #[test]
    fn answers_of_other_members_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Versions::parse(&body);
        let _ = serde_json::from_slice::<Vec<MemberInfo>>(&body);
        let _ = Scrape::parse(&String::from_utf8_lossy(&body));
    }

    #[test]
    fn members_are_read_back_as_they_were_told(name in any::<String>(), urls in prop::collection::vec(any::<String>(), 0..3), id in any::<u64>()) {
        let member = MemberInfo { id: id.into(), name, peer_urls: urls, ..MemberInfo::default() };
        let json = go_json(&member).unwrap();
        let unsafe_in_html = json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']);
        prop_assert!(!unsafe_in_html);
        prop_assert_eq!(serde_json::from_str::<MemberInfo>(&json).unwrap(), member);
    }

    #[test]
    fn messages_are_counted_however_a_body_is_cut(
        lengths in prop::collection::vec(0..400_u32, 0..6),
        cuts in prop::collection::vec(1..60_usize, 1..8),
    ) {
        let mut body = Vec::new();
        for length in &lengths {
            body.push(0);
            body.extend(length.to_be_bytes());
            body.resize(body.len() + *length as usize, 9);
        }
        let (mut scanner, mut found, mut rest) = (FrameScanner::default(), Vec::new(), &body[..]);
        for cut in cuts.iter().cycle() {
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            scanner.feed(piece, |length| found.push(length));
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(found, lengths);
    }
}
