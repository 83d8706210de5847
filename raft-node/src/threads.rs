//! The two threads of a node, each a few lines around its engine, beside its raft task ([`crate::turns`]);
//! nothing else is spawned.
//!
//! `wal` owns the disk, `apply` the state machine; what is quickly applied the raft task applies itself, while
//! the thread has nothing to do. Invariants: a panic or an error in one of the three ends
//! all of them with one reason; when the raft task ends, the threads finish what it handed over.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, task};
use transport_core::raftpb::ConfState;

use crate::{
    StateMachine, Transport,
    apply::{Applied, Applier, ApplyTask},
    driver::{Driver, Event},
    inbox::Mailbox,
    patience::Patience,
    persist::{WalTask, persist},
    shared::Shared,
    storage::LogStore,
    turns::{Neighbours, RaftTask},
};

/// Entries to be written from which on the wal thread lets other threads go first, which may bring more.
const UNWRITTEN_MIN: u64 = 8;

/// What runs for a node, to be joined when it stops.
pub(crate) struct Running {
    pub raft: task::JoinHandle<()>,
    pub threads: Vec<JoinHandle<()>>,
}

/// Starts the threads, and the raft task on `runtime`.
pub(crate) fn spawn<S: StateMachine, T: Transport<S::Image>>(
    runtime: &Handle,
    shared: &Arc<Shared<S::Response>>,
    driver: Driver,
    tick: Duration,
    store: Box<dyn LogStore>,
    machine: S,
    transport: Arc<T>,
) -> io::Result<Running> {
    let wal = Arc::new(Mailbox::new());
    let apply = Arc::new(Mailbox::new());
    // One change at a time is under way.
    let (conf_states, answers) = sync_channel(1);
    let ending = Arc::new(Ending(shared.clone()));
    let mut threads = Vec::new();

    let applier = Arc::new(Mutex::new(Applier::new(machine, transport.clone())));
    let at_once = {
        let (shared, apply, applier) = (shared.clone(), apply.clone(), applier.clone());
        move |tasks: &mut Vec<ApplyTask>| apply_at_once(&shared, &apply, &applier, tasks)
    };
    let neighbours = Neighbours {
        transport: transport.clone(),
        send: T::send,
        wal: wal.clone(),
        apply: apply.clone(),
        at_once: Box::new(at_once),
        conf_states,
    };
    // Made before the threads: should one of them not start, its end closes the mailboxes of the others.
    let raft = RaftTask::new(ending.clone(), driver, neighbours, tick);

    let (inbox, sender, tasks) = (shared.clone(), transport.clone(), wal.clone());
    threads.push(guarded(
        "raft-wal",
        &ending,
        move || wal.close(),
        move || wal_thread(&*inbox, &*sender, T::send, &tasks, store),
    )?);

    let (inbox, tasks) = (shared.clone(), apply.clone());
    threads.push(guarded(
        "raft-apply",
        &ending,
        move || apply.close(),
        move || apply_thread(&inbox, &tasks, &answers, &applier),
    )?);
    Ok(Running {
        raft: runtime.spawn(raft.run()),
        threads,
    })
}

/// Answers everybody who still waits once the last of the three is gone.
pub(crate) struct Ending<R>(pub Arc<Shared<R>>);

impl<R> Drop for Ending<R> {
    fn drop(&mut self) {
        self.0.fail_waiters();
    }
}

fn guarded<R: Send + 'static>(
    name: &'static str,
    ending: &Arc<Ending<R>>,
    close: impl FnOnce() + Send + 'static,
    body: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let ending = ending.clone();
    Builder::new().name(name.into()).spawn(move || {
        let shared = &ending.0;
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => shared.fatal(format!("{name} thread: {reason}")),
            Err(panic) => shared.fatal(format!("{name} thread panicked: {}", text(&*panic))),
        }
        shared.close();
        close();
    })
}

/// What a panic said.
pub(crate) fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    let fixed = panic.downcast_ref::<&str>().copied();
    owned.or(fixed).unwrap_or("without a message")
}

fn wal_thread<R, T>(
    shared: &Shared<R>,
    transport: &T,
    send: fn(&T, Vec<transport_core::raftpb::Message>),
    mailbox: &Mailbox<WalTask>,
    mut store: Box<dyn LogStore>,
) -> Result<(), String> {
    let mut tasks = Vec::new();
    let mut patience = Patience::new(UNWRITTEN_MIN);
    while mailbox.take(&mut tasks) {
        if patience.let_others_go(tasks.iter().map(WalTask::entries).sum()) {
            mailbox.take_more(&mut tasks);
        }
        let durable = persist(&mut *store, &mut tasks).map_err(|error| error.to_string())?;
        if !durable.messages.is_empty() {
            send(transport, durable.messages);
        }
        // An inbox that is closed needs no news.
        for index in durable.saved {
            let _ = shared.inbox.event(Event::SnapshotSaved { index });
        }
        if let Some(number) = durable.number {
            shared.inbox.persisted(number);
        }
    }
    store.sync().map_err(|error| error.to_string())
}

fn apply_thread<S: StateMachine, T: Transport<S::Image>>(
    shared: &Shared<S::Response>,
    mailbox: &Mailbox<ApplyTask>,
    answers: &Receiver<ConfState>,
    applier: &Mutex<Applier<S, T>>,
) -> Result<(), String> {
    let mut tasks = Vec::new();
    while mailbox.take(&mut tasks) {
        // Nobody else takes it while this thread has something to do.
        let mut applier = applier.lock();
        applier.add(tasks.drain(..));
        while let Some(report) = applier.run().map_err(|error| error.to_string())? {
            let waits = report.conf_change.is_some();
            tell(shared, report);
            if waits {
                // The raft task is gone, and with it the node.
                let Ok(state) = answers.recv() else {
                    return Ok(());
                };
                applier.conf_state(state);
            }
        }
    }
    Ok(())
}

/// Applies on the raft task's thread what is not worth waking the apply thread for, if that has nothing to do.
/// Returns what the driver is to be told.
fn apply_at_once<S: StateMachine, T: Transport<S::Image>>(
    shared: &Shared<S::Response>,
    mailbox: &Mailbox<ApplyTask>,
    applier: &Mutex<Applier<S, T>>,
    tasks: &mut Vec<ApplyTask>,
) -> Option<Event> {
    // Only the raft task puts something in there: idle, it stays idle.
    if tasks.is_empty() || !mailbox.is_idle() {
        return None;
    }
    let mut applier = applier.lock();
    if !applier.applies_at_once(tasks) {
        return None;
    }
    applier.add(tasks.drain(..));
    match applier.run() {
        // Normal entries leave one report, about all of them.
        Ok(report) => tell_results(shared, &mut report?),
        Err(error) => {
            shared.fatal(format!("applying: {error}"));
            None
        }
    }
}

/// Tells readers and proposers; returns what the raft task is to be told after that, not earlier: by then it
/// gives up what was forwarded to a lost leader.
fn tell_results<R>(shared: &Shared<R>, report: &mut Applied<R>) -> Option<Event> {
    if let Some((index, _)) = report.index {
        shared.applied(index);
        shared.metrics.proposals_applied.set(index as f64);
    }
    for (id, response) in report.responses.drain(..) {
        shared.waiters.answer(id, Ok(response));
    }
    let (index, bytes) = report.index?;
    Some(Event::Applied { index, bytes })
}

fn tell<R>(shared: &Shared<R>, mut report: Applied<R>) {
    if let Some(applied) = tell_results(shared, &mut report) {
        // Nothing is lost when the raft task learns of it with its next turn.
        shared.inbox.event_quietly(applied);
    }
    let inbox = &shared.inbox;
    let mut events = Vec::new();
    events.extend(report.conf_change.map(Event::ConfChange));
    events.extend(
        report
            .taken
            .map(|taken| Event::SnapshotTaken(taken.map(Box::new))),
    );
    let unsent = report.unsent.into_iter();
    events.extend(unsent.map(|to| Event::SnapshotReport { to, ok: false }));
    for event in events {
        // An inbox that is closed needs no news.
        let _ = inbox.event(event);
    }
}
