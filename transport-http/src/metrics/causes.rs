//! Counters that differ in one label, whose values are known: reasons, causes, verdicts.
//!
//! Invariant: a value's counter is resolved when it is met first, since most never are, and then kept.

use std::sync::OnceLock;

use metrics::Counter;

use super::{SharedRecorder, counter};

/// The last label of a metric as an enum: where a value stands among all, and its name.
pub(crate) trait Cause: Copy {
    fn at(self) -> usize;
    fn name(self) -> &'static str;
}

/// One counter for each of `N` causes.
pub(crate) struct Causes<const N: usize> {
    recorder: SharedRecorder,
    metric: &'static str,
    /// The labels before the cause's, and that one's name.
    labels: Vec<(&'static str, String)>,
    label: &'static str,
    counters: [OnceLock<Counter>; N],
}

impl<const N: usize> Causes<N> {
    pub(crate) fn new(
        recorder: &SharedRecorder,
        metric: &'static str,
        labels: &[(&'static str, &str)],
        label: &'static str,
    ) -> Self {
        let owned = |&(name, value): &(&'static str, &str)| (name, value.to_owned());
        Causes {
            recorder: recorder.clone(),
            metric,
            labels: labels.iter().map(owned).collect(),
            label,
            counters: [const { OnceLock::new() }; N],
        }
    }

    pub(crate) fn count(&self, cause: impl Cause, by: usize) {
        if by > 0
            && let Some(counter) = self.counters.get(cause.at())
        {
            let counter = counter.get_or_init(|| {
                let labels = self
                    .labels
                    .iter()
                    .map(|(name, value)| (*name, value.as_str()));
                let labels: Vec<_> = labels.chain([(self.label, cause.name())]).collect();
                self::counter(&self.recorder, self.metric, &labels)
            });
            counter.increment(by as u64);
        }
    }
}

/// Implements [`Cause`] for an enum whose variants are listed in declaration order.
macro_rules! causes {
    ($cause:ident: $($variant:ident = $name:literal),+ $(,)?) => {
        impl $cause {
            /// How many there are.
            pub(crate) const COUNT: usize = [$($name),+].len();
        }

        impl $crate::metrics::causes::Cause for $cause {
            fn at(self) -> usize {
                self as usize
            }

            fn name(self) -> &'static str {
                match self {
                    $($cause::$variant => $name),+
                }
            }
        }
    };
}
pub(crate) use causes;
