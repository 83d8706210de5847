//! Metrics one can read and wait for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tokio::sync::watch;

use super::soon;

/// Values by name, as `name{Label=value,…}`. A histogram's value is how many samples it has.
#[derive(Clone)]
pub struct TestRecorder(Arc<Shared>);

struct Shared {
    values: Mutex<BTreeMap<String, f64>>,
    changed: watch::Sender<()>,
}

impl Default for TestRecorder {
    fn default() -> Self {
        TestRecorder(Arc::new(Shared {
            values: Mutex::default(),
            changed: watch::Sender::new(()),
        }))
    }
}

impl TestRecorder {
    pub fn value(&self, name: &str) -> f64 {
        self.0
            .values
            .lock()
            .unwrap()
            .get(name)
            .copied()
            .unwrap_or(0.0)
    }

    pub fn names(&self) -> Vec<String> {
        self.0.values.lock().unwrap().keys().cloned().collect()
    }

    /// Waits until the value is as wanted.
    pub async fn until(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let mut changes = self.0.changed.subscribe();
        let waiting = async {
            while !wanted(self.value(name)) {
                changes.changed().await.unwrap();
            }
        };
        soon(&format!("{name}, which is {}", self.value(name)), waiting).await;
    }

    fn handle(&self, key: &Key) -> Arc<Handle> {
        let labels: Vec<String> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let name = if labels.is_empty() {
            key.name().to_owned()
        } else {
            format!("{}{{{}}}", key.name(), labels.join(","))
        };
        self.0
            .values
            .lock()
            .unwrap()
            .entry(name.clone())
            .or_insert(0.0);
        Arc::new(Handle {
            name,
            shared: Arc::clone(&self.0),
        })
    }
}

struct Handle {
    name: String,
    shared: Arc<Shared>,
}

impl Handle {
    fn change(&self, change: impl FnOnce(&mut f64)) {
        change(
            self.shared
                .values
                .lock()
                .unwrap()
                .get_mut(&self.name)
                .unwrap(),
        );
        self.shared.changed.send_replace(());
    }
}

impl CounterFn for Handle {
    fn increment(&self, by: u64) {
        self.change(|value| *value += by as f64);
    }

    fn absolute(&self, to: u64) {
        self.change(|value| *value = to as f64);
    }
}

impl GaugeFn for Handle {
    fn increment(&self, by: f64) {
        self.change(|value| *value += by);
    }

    fn decrement(&self, by: f64) {
        self.change(|value| *value -= by);
    }

    fn set(&self, to: f64) {
        self.change(|value| *value = to);
    }
}

impl HistogramFn for Handle {
    fn record(&self, _: f64) {
        self.change(|samples| *samples += 1.0);
    }
}

impl Recorder for TestRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.handle(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.handle(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.handle(key))
    }
}
