//! What is wrong with this process' nodes and needs a person, by kind, as alarms show it. An alarm is on while anybody
//! has that trouble. It does not know what the kinds mean.

pub use crate::telemetry::alarms::{
    CONTAINER_UNKNOWN, EXCLUSIVE_WAITS, MODEL_COPY_CORRUPT, PROCESS_STUCK, RECORD_UNREADABLE,
};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Raises an alarm of that kind with a text, or, with None, ends it.
type Tell = Box<dyn Fn(&'static str, Option<&str>) + Send + Sync>;

/// See the module.
pub struct Troubles {
    tell: Tell,
    /// Who has each.
    on: Mutex<BTreeMap<&'static str, BTreeSet<String>>>,
}

impl Troubles {
    pub fn new(tell: impl Fn(&'static str, Option<&str>) + Send + Sync + 'static) -> Self {
        Self { tell: Box::new(tell), on: Mutex::default() }
    }

    fn on(&self) -> MutexGuard<'_, BTreeMap<&'static str, BTreeSet<String>>> {
        // Names are put in and taken out: nothing can be half changed.
        self.on.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Said once for each who has it, until it is over.
    pub fn raise(&self, kind: &'static str, who: &str, text: &str) {
        // The lock is held so that what is told last is what is so.
        let mut on = self.on();
        if on.entry(kind).or_default().insert(who.to_owned()) {
            (self.tell)(kind, Some(text));
        }
    }

    pub fn clear(&self, kind: &'static str, who: &str) {
        let mut on = self.on();
        let Some(having) = on.get_mut(kind) else { return };
        if having.remove(who) && having.is_empty() {
            (self.tell)(kind, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn an_alarm_is_on_while_anybody_has_that_trouble() {
        let told: Arc<Mutex<Vec<(&'static str, Option<String>)>>> = Arc::default();
        let to = told.clone();
        let troubles = Troubles::new(move |kind, text| to.lock().unwrap().push((kind, text.map(str::to_owned))));
        troubles.clear(PROCESS_STUCK, "a");
        troubles.raise(PROCESS_STUCK, "a", "a hangs");
        troubles.raise(PROCESS_STUCK, "a", "a hangs");
        troubles.raise(RECORD_UNREADABLE, "a", "a is bad");
        troubles.raise(PROCESS_STUCK, "b", "b hangs");
        troubles.clear(PROCESS_STUCK, "a");
        troubles.clear(PROCESS_STUCK, "b");
        let say = |kind, text: Option<&str>| (kind, text.map(str::to_owned));
        let wanted = [
            say(PROCESS_STUCK, Some("a hangs")),
            say(RECORD_UNREADABLE, Some("a is bad")),
            say(PROCESS_STUCK, Some("b hangs")),
            say(PROCESS_STUCK, None),
        ];
        assert_eq!(*told.lock().unwrap(), wanted);
    }
}
