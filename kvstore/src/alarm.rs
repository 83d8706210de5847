//! Alarms: which member raised what. Replicated; they change what apply accepts (etcd: server/etcdserver/api/v3alarm).

use std::{
    collections::BTreeSet,
    ops::{Bound, ControlFlow},
};

use prost::Message;

use crate::{
    backend::{BackendError, Batch, Bucket, View},
    pb::etcdserverpb::{AlarmMember, AlarmType},
};

/// The alarms that stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    /// (type, member); a type may be one this version does not know.
    active: BTreeSet<(i32, u64)>,
}

impl Alarms {
    /// Reads bucket `alarm`.
    pub(crate) fn load(view: &dyn View) -> Result<Self, BackendError> {
        let mut alarms = Alarms::default();
        view.scan(
            Bucket::Alarm,
            (Bound::Unbounded, Bound::Unbounded),
            &mut |key, _| {
                // A row that is no alarm means nothing to anybody; etcd refuses to start on it.
                match AlarmMember::decode(key) {
                    Ok(alarm) => drop(alarms.active.insert((alarm.alarm, alarm.member_id))),
                    Err(error) => tracing::warn!(?key, %error, "ignoring a damaged alarm row"),
                }
                ControlFlow::Continue(())
            },
        )?;
        Ok(alarms)
    }

    /// The alarms of one type, or all of them for `AlarmType::None`, by type and member.
    pub fn list(&self, alarm: i32) -> Vec<AlarmMember> {
        self.active
            .iter()
            .filter(|(active, _)| alarm == AlarmType::None as i32 || *active == alarm)
            .map(|(alarm, member_id)| AlarmMember {
                member_id: *member_id,
                alarm: *alarm,
            })
            .collect()
    }

    /// Whether any member has raised this.
    pub fn is_active(&self, alarm: AlarmType) -> bool {
        let alarm = alarm as i32;
        self.active
            .range((alarm, 0)..=(alarm, u64::MAX))
            .next()
            .is_some()
    }

    /// Raises an alarm; raising one that stands is no change.
    pub(crate) fn activate(
        &mut self,
        member_id: u64,
        alarm: i32,
        batch: &mut Batch,
    ) -> AlarmMember {
        let member = AlarmMember { member_id, alarm };
        if self.active.insert((alarm, member_id)) {
            batch.put(Bucket::Alarm, member.encode_to_vec(), Vec::new());
        }
        member
    }

    /// Lowers an alarm, and returns it if it stood.
    pub(crate) fn deactivate(
        &mut self,
        member_id: u64,
        alarm: i32,
        batch: &mut Batch,
    ) -> Option<AlarmMember> {
        let member = AlarmMember { member_id, alarm };
        self.active.remove(&(alarm, member_id)).then(|| {
            batch.delete(Bucket::Alarm, member.encode_to_vec());
            member
        })
    }
}
