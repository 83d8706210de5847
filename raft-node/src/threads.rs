//! The three threads of a node, each a few lines around its engine; nothing else is spawned.
//!
//! `raft` owns the driver, `wal` the disk, `apply` the state machine. Invariants: a panic or an error in one
//! of them ends all three with one reason; the raft thread never waits for another one; when it ends, the
//! others finish what it handed over.

use std::{
    any::Any,
    collections::HashMap,
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use transport_core::raftpb::ConfState;

use crate::{
    StateMachine, Transport,
    apply::{Applied, Applier, ApplyTask},
    driver::{Driver, Effects, Event},
    inbox::{Batch, Mailbox, ReadWaiter},
    persist::{WalTask, persist},
    shared::Shared,
    storage::LogStore,
};

/// Starts the threads.
pub(crate) fn spawn<S: StateMachine, T: Transport<S::Image>>(
    shared: &Arc<Shared<S::Response>>,
    driver: Driver,
    tick: Duration,
    store: Box<dyn LogStore>,
    machine: S,
    transport: Arc<T>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let wal = Arc::new(Mailbox::new());
    let apply = Arc::new(Mailbox::new());
    // One change at a time is under way.
    let (conf_states, answers) = sync_channel(1);
    let ending = Arc::new(Ending(shared.clone()));
    let mut handles = Vec::new();

    let raft_thread = RaftThread {
        shared: shared.clone(),
        driver,
        transport: transport.clone(),
        send: T::send,
        wal: wal.clone(),
        apply: apply.clone(),
        conf_states,
        tickets: HashMap::new(),
        next_ticket: 0,
        epoch: Instant::now(),
        tick,
    };
    raft_thread.publish();
    let close = {
        let (wal, apply) = (wal.clone(), apply.clone());
        move || {
            wal.close();
            apply.close();
        }
    };
    handles.push(guarded("raft", &ending, close, move || {
        raft_thread.run();
        Ok(())
    })?);

    let (inbox, sender, tasks) = (shared.clone(), transport.clone(), wal.clone());
    handles.push(guarded(
        "raft-wal",
        &ending,
        move || wal.close(),
        move || wal_thread(&*inbox, &*sender, T::send, &tasks, store),
    )?);

    let (inbox, tasks) = (shared.clone(), apply.clone());
    let applier = Applier::new(machine, transport);
    handles.push(guarded(
        "raft-apply",
        &ending,
        move || apply.close(),
        move || apply_thread(&inbox, &tasks, &answers, applier),
    )?);
    Ok(handles)
}

/// Answers everybody who still waits once the last thread is gone.
struct Ending<R>(Arc<Shared<R>>);

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

fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    let fixed = panic.downcast_ref::<&str>().copied();
    owned.or(fixed).unwrap_or("without a message")
}

struct RaftThread<R, T> {
    shared: Arc<Shared<R>>,
    driver: Driver,
    transport: Arc<T>,
    send: fn(&T, Vec<transport_core::raftpb::Message>),
    wal: Arc<Mailbox<WalTask>>,
    apply: Arc<Mailbox<ApplyTask>>,
    conf_states: SyncSender<ConfState>,
    tickets: HashMap<u64, Vec<ReadWaiter>>,
    next_ticket: u64,
    epoch: Instant,
    tick: Duration,
}

impl<R, T> RaftThread<R, T> {
    fn run(mut self) {
        let mut batch = Batch::default();
        let mut next_tick = Instant::now() + self.tick;
        loop {
            let awaits_disk = self.driver.awaits_disk();
            let due = self
                .driver
                .due()
                .map_or(next_tick, |due| next_tick.min(self.epoch + due));
            if !self.shared.inbox.drain(&mut batch, due, awaits_disk) {
                let mut last = self.driver.stop(self.epoch.elapsed());
                self.wal.push_all(&mut last.wal);
                return;
            }
            self.turn(&mut batch);
            let now = Instant::now();
            if now >= next_tick {
                // Late ticks are not made up for: they would only let an election time out at once.
                next_tick = (next_tick + self.tick).max(now);
                self.on_tick();
            }
        }
    }

    /// One turn: everything that arrived, then one round of effects.
    fn turn(&mut self, batch: &mut Batch) {
        let now = self.epoch.elapsed();
        for event in batch.events.drain(..) {
            self.driver.event(now, event);
        }
        for message in batch.messages.drain(..) {
            self.driver.message(now, message);
        }
        if !batch.proposals.is_empty() {
            self.driver.propose(now, mem::take(&mut batch.proposals));
        }
        if !batch.reads.is_empty() {
            self.next_ticket += 1;
            let waiters = mem::take(&mut batch.reads);
            self.tickets.insert(self.next_ticket, waiters);
            self.driver.read(now, self.next_ticket);
        }
        let effects = self.driver.settle(now);
        self.carry_out(effects);
    }

    fn on_tick(&mut self) {
        let now = self.epoch.elapsed();
        self.driver.tick(now);
        let effects = self.driver.settle(now);
        *self.shared.progress.lock() = self.driver.progress();
        self.carry_out(effects);
    }

    fn carry_out(&mut self, mut effects: Effects) {
        let shared = &self.shared;
        self.publish();
        if !effects.send.is_empty() {
            (self.send)(&self.transport, effects.send);
        }
        self.wal.push_all(&mut effects.wal);
        for state in effects.conf_states {
            // The apply thread waits for exactly this; it is gone only when the node ends.
            let _ = self.conf_states.try_send(state);
        }
        self.apply.push_all(&mut effects.apply);
        for (id, error) in effects.failed_proposals {
            shared.waiters.answer(id, Err(error));
        }
        for (ticket, index) in effects.confirmed_reads {
            if let Some(waiters) = self.tickets.remove(&ticket) {
                shared.when_applied(index, waiters);
            }
        }
        for (ticket, error) in effects.failed_reads {
            for waiter in self.tickets.remove(&ticket).unwrap_or_default() {
                waiter.answer(Err(error.clone()));
            }
        }
        if let Some(leadership) = effects.leadership {
            *shared.progress.lock() = self.driver.progress();
            shared.leadership.send_replace(leadership);
        }
        if let Some(reason) = effects.fatal {
            shared.fatal(reason);
        }
    }

    fn publish(&self) {
        let from = self.driver.numbers();
        let to = &self.shared.numbers;
        to.term.store(from.term, Ordering::Relaxed);
        to.leader.store(from.leader, Ordering::Relaxed);
        to.role.store(from.role as u8, Ordering::Relaxed);
        to.last_index.store(from.last_index, Ordering::Relaxed);
        to.snapshot_index
            .store(from.snapshot_index, Ordering::Relaxed);
        to.log_lost.store(from.log_lost, Ordering::Relaxed);
        to.backlogged.store(from.backlogged, Ordering::Relaxed);
        to.committed.store(from.committed, Ordering::Relaxed);
        let committed = &self.shared.metrics.proposals_committed;
        committed.set(from.committed as f64);
    }
}

fn wal_thread<R, T>(
    shared: &Shared<R>,
    transport: &T,
    send: fn(&T, Vec<transport_core::raftpb::Message>),
    mailbox: &Mailbox<WalTask>,
    mut store: Box<dyn LogStore>,
) -> Result<(), String> {
    let mut tasks = Vec::new();
    while mailbox.take(&mut tasks) {
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
    mut applier: Applier<S, T>,
) -> Result<(), String> {
    let mut tasks = Vec::new();
    while mailbox.take(&mut tasks) {
        applier.add(tasks.drain(..));
        while let Some(report) = applier.run().map_err(|error| error.to_string())? {
            let waits = report.conf_change.is_some();
            tell(shared, report);
            if waits {
                // The raft thread is gone, and with it the node.
                let Ok(state) = answers.recv() else {
                    return Ok(());
                };
                applier.conf_state(state);
            }
        }
    }
    Ok(())
}

fn tell<R>(shared: &Shared<R>, report: Applied<R>) {
    if let Some((index, _)) = report.index {
        shared.applied(index);
        shared.metrics.proposals_applied.set(index as f64);
    }
    for (id, response) in report.responses {
        shared.waiters.answer(id, Ok(response));
    }
    if let Some((index, bytes)) = report.index {
        // Nothing is lost when the raft thread learns of it with its next turn. It must not be earlier than
        // the answers: by then raft gives up what was forwarded to a lost leader.
        shared.inbox.event_quietly(Event::Applied { index, bytes });
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
