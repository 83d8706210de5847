//! What a load did and what the cluster said to it, and whether every member agrees afterwards.
//!
//! Every attempt writes values nobody else writes, to keys only its worker touches, and the keys of an
//! attempt with an unknown end are never touched again. So the store's own history tells for each attempt
//! whether it took effect: an acknowledged one must be there, whole, at the revision it was told; another
//! one must be wholly there or wholly absent; and between them they must explain every revision, each once.

use std::collections::BTreeMap;

use kvstore::pb::{etcdserverpb::RangeRequest, mvccpb::KeyValue};

use crate::{client::Client, workspace::Outcome};

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Put this value.
    Put(Vec<u8>, Vec<u8>),
    /// Delete this key, which was last put at this revision.
    Delete(Vec<u8>, i64),
}

impl Change {
    /// The key it changes.
    pub fn key(&self) -> &[u8] {
        match self {
            Change::Put(key, _) | Change::Delete(key, _) => key,
        }
    }
}

/// One request: its changes, all of one revision, and the revision it was acknowledged with.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// One for a put or delete, several for a transaction.
    pub changes: Vec<Change>,
    /// Revision in the answer; `None` when there was no answer or an error.
    pub acknowledged: Option<i64>,
}

/// A key that somebody puts with one value, as often as it takes, and that is never deleted.
#[derive(Clone, Debug)]
pub struct Repeated {
    /// The key.
    pub key: String,
    /// The value of every put.
    pub value: String,
    /// How often it was tried to put it; each try may have taken effect.
    pub tries: usize,
    /// The revisions that were acknowledged.
    pub acknowledged: Vec<i64>,
}

impl Repeated {
    /// Not tried yet.
    pub fn new(key: String, value: String) -> Repeated {
        Repeated {
            key,
            value,
            tries: 0,
            acknowledged: Vec::new(),
        }
    }
}

/// What was found on one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Acknowledged attempts, all found.
    pub acknowledged: usize,
    /// Unacknowledged attempts that took effect.
    pub took_effect: usize,
    /// Unacknowledged attempts that did not.
    pub absent: usize,
    /// Revisions of repeated keys, all with their value.
    pub repeated: usize,
    /// The member's revision.
    pub revision: i64,
}

/// Who made which revision.
#[derive(Default)]
struct Explained(BTreeMap<i64, String>);

impl Explained {
    /// Notes that `who` made revision `at`. Errors: somebody else did already.
    fn by(&mut self, at: i64, who: &[u8]) -> Outcome {
        let who = String::from_utf8_lossy(who).into_owned();
        match self.0.insert(at, who.clone()) {
            None => Ok(()),
            Some(other) => Err(format!("both {other} and {who} made revision {at}")),
        }
    }

    /// Every revision up to `last` was made by somebody. Revision 1 is the empty store; the first change is 2.
    fn dense(&self, last: i64) -> Outcome {
        match (2..=last).find(|at| !self.0.contains_key(at)) {
            Some(gap) => Err(format!("nobody made revision {gap} of {last}")),
            None => match self.0.range(last + 1..).next() {
                Some((beyond, who)) => Err(format!("{who} made revision {beyond}, beyond {last}")),
                None => Ok(()),
            },
        }
    }
}

/// Checks every attempt and every repeated key against one member, reading only that member's own state.
///
/// Errors: the first attempt or revision that does not fit.
pub async fn verify(
    client: &Client,
    attempts: &[Attempt],
    repeated: &[Repeated],
) -> Outcome<Verified> {
    let mut client = client.clone();
    let endpoint = client.endpoint.clone();
    let told = |error| format!("{endpoint}: {error}");
    let revision = current_revision(&mut client).await?;
    let mut found = Verified {
        revision,
        ..Verified::default()
    };
    let mut explained = Explained::default();
    for attempt in attempts {
        let who = attempt.changes.first().map(Change::key).unwrap_or_default();
        match attempt.acknowledged {
            Some(at) => {
                for change in &attempt.changes {
                    expect_at(&mut client, change, at).await?;
                }
                explained.by(at, who).map_err(told)?;
                found.acknowledged += 1;
            }
            None => match effect_of(&mut client, attempt, revision).await? {
                Some(at) => {
                    explained.by(at, who).map_err(told)?;
                    found.took_effect += 1;
                }
                None => found.absent += 1,
            },
        }
    }
    for one in repeated {
        let history = history_of(&mut client, one.key.as_bytes(), revision).await?;
        expect_history(one, &history).map_err(told)?;
        for (at, _) in &history {
            explained.by(*at, one.key.as_bytes()).map_err(told)?;
        }
        found.repeated += history.len();
    }
    explained.dense(revision).map_err(told)?;
    Ok(found)
}

/// Every revision of a repeated key has its value, no more were made than tried, and none that was
/// acknowledged is missing.
fn expect_history(one: &Repeated, history: &[(i64, Vec<u8>)]) -> Outcome {
    let key = &one.key;
    if let Some((at, _)) = history
        .iter()
        .find(|(_, value)| value != one.value.as_bytes())
    {
        return Err(format!("{key} has another value at revision {at}"));
    }
    if history.len() > one.tries {
        return Err(format!(
            "{key} was put {} times, but tried {} times",
            history.len(),
            one.tries
        ));
    }
    match one
        .acknowledged
        .iter()
        .find(|told| history.iter().all(|(at, _)| at != *told))
    {
        Some(lost) => Err(format!(
            "{key} was acknowledged at revision {lost}, which is not its own"
        )),
        None => Ok(()),
    }
}

async fn current_revision(client: &mut Client) -> Outcome<i64> {
    let request = RangeRequest {
        key: b"\0".to_vec().into(),
        serializable: true,
        ..Default::default()
    };
    Ok(client
        .range(request)
        .await?
        .header
        .unwrap_or_default()
        .revision)
}

/// The key as it was at `revision` (0: now), from the member's own state.
async fn at(client: &mut Client, key: &[u8], revision: i64) -> Outcome<Option<KeyValue>> {
    let request = RangeRequest {
        key: key.to_vec().into(),
        revision,
        serializable: true,
        ..Default::default()
    };
    Ok(client.range(request).await?.kvs.into_iter().next())
}

async fn expect_at(client: &mut Client, change: &Change, revision: i64) -> Outcome {
    let found = at(client, change.key(), revision).await?;
    let holds = match (change, &found) {
        (Change::Put(_, value), Some(kv)) => kv.mod_revision == revision && kv.value == *value,
        // Gone at this revision, and there until then.
        (Change::Delete(key, put_at), None) => at(client, key, revision - 1)
            .await?
            .is_some_and(|kv| kv.mod_revision == *put_at),
        _ => false,
    };
    if holds {
        return Ok(());
    }
    let key = String::from_utf8_lossy(change.key());
    Err(format!(
        "{}: {key} was acknowledged at revision {revision}, but is {found:?}",
        client.endpoint
    ))
}

/// The revision at which an unacknowledged attempt took effect, if it did; an error when only a part did.
async fn effect_of(client: &mut Client, attempt: &Attempt, current: i64) -> Outcome<Option<i64>> {
    let mut effects = Vec::new();
    for change in &attempt.changes {
        let now = at(client, change.key(), 0).await?;
        effects.push(match (change, now) {
            (Change::Put(_, value), Some(kv)) if kv.value == *value => Some(kv.mod_revision),
            (Change::Put(..), _) => None,
            (Change::Delete(key, put_at), None) => {
                Some(vanished(client, key, *put_at, current).await?)
            }
            (Change::Delete(..), Some(_)) => None,
        });
    }
    match effects.first() {
        Some(first) if effects.iter().all(|effect| effect == first) => Ok(*first),
        Some(_) => Err(format!(
            "{}: took effect in part: {attempt:?} at {effects:?}",
            client.endpoint
        )),
        None => Ok(None),
    }
}

/// The revision between `alive` and `gone` that deleted `key`: found by halving.
async fn vanished(client: &mut Client, key: &[u8], mut alive: i64, mut gone: i64) -> Outcome<i64> {
    while gone - alive > 1 {
        let middle = alive + (gone - alive) / 2;
        match at(client, key, middle).await? {
            Some(_) => alive = middle,
            None => gone = middle,
        }
    }
    Ok(gone)
}

/// Revision and value of every put of a key that was never deleted, the newest first.
async fn history_of(client: &mut Client, key: &[u8], current: i64) -> Outcome<Vec<(i64, Vec<u8>)>> {
    let mut history = Vec::new();
    let mut before = current;
    while let Some(kv) = at(client, key, before).await? {
        history.push((kv.mod_revision, kv.value.to_vec()));
        if kv.version == 1 {
            return Ok(history);
        }
        before = kv.mod_revision - 1;
    }
    Err(format!(
        "{}: {} is missing at revision {before}",
        client.endpoint,
        String::from_utf8_lossy(key)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_has_one_maker() {
        let mut explained = Explained::default();
        explained.by(2, b"a").unwrap();
        explained.by(3, b"b").unwrap();
        let error = explained.by(3, b"c").unwrap_err();
        assert_eq!(error, "both b and c made revision 3");
    }

    #[test]
    fn no_revision_is_left_out_or_beyond_the_last() {
        let mut explained = Explained::default();
        explained.by(2, b"a").unwrap();
        explained.by(4, b"b").unwrap();
        assert_eq!(
            explained.dense(2).unwrap_err(),
            "b made revision 4, beyond 2"
        );
        assert_eq!(
            explained.dense(4).unwrap_err(),
            "nobody made revision 3 of 4"
        );
        explained.by(3, b"c").unwrap();
        explained.dense(4).unwrap();
    }

    #[test]
    fn a_repeated_key_has_its_value_at_every_revision() {
        let mut one = Repeated::new("k".into(), "v".into());
        (one.tries, one.acknowledged) = (2, vec![7]);
        let history = |puts: &[(i64, &str)]| -> Vec<(i64, Vec<u8>)> {
            puts.iter()
                .map(|(at, value)| (*at, value.as_bytes().to_vec()))
                .collect()
        };
        expect_history(&one, &history(&[(7, "v")])).unwrap();
        expect_history(&one, &history(&[(7, "v"), (4, "v")])).unwrap();
        for (wrong, why) in [
            (history(&[(7, "v"), (4, "w")]), "another value"),
            (history(&[(7, "v"), (4, "v"), (3, "v")]), "tried 2 times"),
            (history(&[(6, "v")]), "not its own"),
        ] {
            let error = expect_history(&one, &wrong).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
