//! What a load did and what the cluster said to it, and whether every member agrees afterwards.
//!
//! Every attempt writes values nobody else writes, to keys only its worker touches, and the keys of an
//! attempt with an unknown end are never touched again. So the store's own history tells for each attempt
//! whether it took effect: an acknowledged one must be there, whole, at the revision it was told; another
//! one must be wholly there or wholly absent; and between them they must explain every revision.

use std::collections::BTreeSet;

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

/// What was found on one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Acknowledged attempts, all found.
    pub acknowledged: usize,
    /// Unacknowledged attempts that took effect.
    pub took_effect: usize,
    /// Unacknowledged attempts that did not.
    pub absent: usize,
    /// The member's revision.
    pub revision: i64,
}

/// Checks every attempt against one member, reading only that member's own state.
///
/// `foreign` are keys somebody else put, each any number of times, never deleted.
/// Errors: the first attempt or revision that does not fit.
pub async fn verify(
    client: &Client,
    attempts: &[Attempt],
    foreign: &[Vec<u8>],
) -> Outcome<Verified> {
    let mut client = client.clone();
    let revision = current_revision(&mut client).await?;
    let mut found = Verified {
        revision,
        ..Verified::default()
    };
    let mut explained = BTreeSet::new();
    for attempt in attempts {
        match attempt.acknowledged {
            Some(at) => {
                for change in &attempt.changes {
                    expect_at(&mut client, change, at).await?;
                }
                explained.insert(at);
                found.acknowledged += 1;
            }
            None => match effect_of(&mut client, attempt, revision).await? {
                Some(at) => {
                    explained.insert(at);
                    found.took_effect += 1;
                }
                None => found.absent += 1,
            },
        }
    }
    for key in foreign {
        explained.extend(revisions_of(&mut client, key, revision).await?);
    }
    // Revision 1 is the empty store; the first change is revision 2.
    match (2..=revision).find(|at| !explained.contains(at)) {
        Some(gap) => Err(format!(
            "{}: nobody made revision {gap} of {revision}",
            client.endpoint
        )),
        None => Ok(found),
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
        (Change::Delete(..), None) => true,
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

/// Every revision at which a key that was only ever put was put.
async fn revisions_of(client: &mut Client, key: &[u8], current: i64) -> Outcome<Vec<i64>> {
    let mut revisions = Vec::new();
    let mut before = current;
    while let Some(kv) = at(client, key, before).await? {
        revisions.push(kv.mod_revision);
        if kv.version == 1 {
            return Ok(revisions);
        }
        before = kv.mod_revision - 1;
    }
    Err(format!(
        "{}: {} is missing",
        client.endpoint,
        String::from_utf8_lossy(key)
    ))
}
