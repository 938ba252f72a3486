//! Reads this member's own audit trail as it grows: counts what the policies said, and
//! holds what is on disk against what the group has agreed on, and against the last end
//! of the trail that this member wrote down. What does not fit raises an alarm and is
//! never well again by itself; members that contradict one another are, once one of them
//! has left. It changes nothing.

use crate::raft::{MemberId, Replica};
use crate::security::audit::read_checkpoint;
use crate::telemetry::Metrics;
use nf_core::audit::{Chain, Checkpoint, Entry, Hash, Verdict};
use nf_core::policy::POLICIES;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Kind of the alarm.
const TRAIL: &str = "audit_trail";
/// Kind of the alarm where members contradict one another.
const STATE: &str = "state_differs";
/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// Entries of one look; when there are more the next one follows at once.
const ENTRIES: usize = 1000;

/// Follows the trail until `ended`. `kept`: the last end of it that was written down.
pub async fn follow(replica: Replica, astray: Astray, kept: Option<Checkpoint>, mut ended: watch::Receiver<bool>) {
    let metrics = astray.metrics.clone();
    let mut reader = Reader::new(metrics, replica.applied().state.audit());
    if let Some(kept) = kept {
        // What can't be read is said in the log, here and at each look below, and contradicts nobody.
        if let Ok(then) = replica.audit(kept.size, 1).await {
            reader.compare(&kept, then.first());
        }
    }
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = ended.wait_for(|end| *end) => return,
        }
        astray.keep(&replica.status().members.iter().map(|member| member.id).collect());
        loop {
            let chain = replica.applied().state.audit().clone();
            let Ok(entries) = replica.audit(reader.seq + 1, ENTRIES).await else { break };
            let full = entries.len() == ENTRIES;
            reader.take(&entries, &chain);
            if !full {
                break;
            }
        }
    }
}

/// Members whose state is not ours at the same log index: its hash covers the end of the trail, and every other row. One of
/// the two is wrong; the one that most others contradict ends by itself.
#[derive(Clone)]
pub struct Astray {
    metrics: Metrics,
    members: Arc<Mutex<BTreeSet<MemberId>>>,
}

impl Astray {
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, members: Arc::default() }
    }

    /// Once for each member, however often it says so.
    pub fn found(&self, member: MemberId, index: u64) {
        // Held until all is said, so that no alarm is raised that has just been cleared.
        let mut astray = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if !astray.insert(member) {
            return;
        }
        self.metrics.audit_head_mismatch.set(1);
        let text = format!(
            "at log index {index} the state of member {member} is not ours, so one of the two trails is wrong; compare \
             nf audit export of each member, then remove the wrong one, empty its directory, and let it join anew"
        );
        self.metrics.alarms.raise(STATE, &text);
    }

    /// Whoever has left contradicts nobody.
    fn keep(&self, members: &BTreeSet<MemberId>) {
        let mut astray = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let before = astray.len();
        astray.retain(|member| members.contains(member));
        if before > 0 && astray.is_empty() {
            self.metrics.alarms.clear(STATE);
            let trail_is_wrong = self.metrics.alarms.on().contains(&TRAIL);
            self.metrics.audit_head_mismatch.set(trail_is_wrong.into());
        }
    }
}

/// The last end of the trail in that file; None where there is none that can be read.
pub fn last_kept(path: &Path) -> Option<Checkpoint> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    read_checkpoint(line).ok().map(|(checkpoint, _)| checkpoint)
}

struct Reader {
    metrics: Metrics,
    /// The last entry that was read, and its hash.
    seq: u64,
    head: Hash,
}

impl Reader {
    /// What was there before this process has been counted by the one before it.
    fn new(metrics: Metrics, chain: &Chain) -> Self {
        Self { metrics, seq: chain.seq(), head: chain.head() }
    }

    /// Entries from disk; `chain` was known when they were read, or is older.
    fn take(&mut self, entries: &[Entry], chain: &Chain) {
        for entry in entries {
            if entry.seq != self.seq + 1 || entry.prev != self.head {
                let (seq, last) = (entry.seq, self.seq);
                self.mismatch(&format!("entry {seq} on disk does not follow entry {last}, as this member had read it"));
            }
            (self.seq, self.head) = (entry.seq, entry.hash());
            self.count(entry);
            if self.seq == chain.seq() && self.head != chain.head() {
                self.mismatch(&format!("entry {} on disk is not the one that the group agreed on", self.seq));
            }
        }
    }

    /// An end that was written down earlier, and the entry that stands there now.
    fn compare(&self, kept: &Checkpoint, now: Option<&Entry>) {
        let now = now.filter(|entry| entry.seq == kept.size).map(Entry::hash);
        // What this member does not have (yet) is no contradiction.
        if now.is_some_and(|hash| hash != kept.head) {
            self.mismatch(&format!("entry {} is not the one of the checkpoint that was written down", kept.size));
        }
    }

    fn mismatch(&self, text: &str) {
        self.metrics.audit_head_mismatch.set(1);
        self.metrics.alarms.raise(TRAIL, &format!("{text}; export it from each member and compare: nf audit export"));
    }

    fn count(&self, entry: &Entry) {
        for (policy, check) in POLICIES.iter().zip(entry.record.checks) {
            if check.verdict != Verdict::Na {
                let labels = [policy.name, check.verdict.token()];
                self.metrics.policy_checks.with_label_values(&labels).inc_by(entry.record.count.max(1).into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::audit::last_line;
    use nf_core::audit::{Action, Check, Record};
    use nf_core::testing;

    fn record(verdict: Verdict) -> Record {
        let mut record = testing::record("ada", Action::Call, String::new(), 0);
        record.checks[1] = Check { verdict, code: None };
        record
    }

    fn told(metrics: &Metrics, name: &str) -> Option<String> {
        let text = metrics.render();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
    }

    #[test]
    fn what_policies_said_is_counted_and_a_sound_trail_raises_nothing() {
        let (metrics, mut chain) = (Metrics::new("test", "test"), Chain::default());
        chain.append(record(Verdict::Pass));
        let mut reader = Reader::new(metrics.clone(), &chain);
        let entries: Vec<Entry> =
            [Verdict::Pass, Verdict::Block, Verdict::Pass].map(|verdict| chain.append(record(verdict)).0).into();
        reader.take(&entries[..2], &chain);
        reader.take(&entries[2..], &chain);
        let of = |result: &str| told(&metrics, &format!("nf_policy_checks_total{{policy=\"P2\",result=\"{result}\"}}"));
        assert_eq!((of("pass").as_deref(), of("block").as_deref(), of("na")), (Some("2"), Some("1"), None));
        assert_eq!(told(&metrics, "nf_audit_head_mismatch").as_deref(), Some("0"));
        assert!(metrics.alarms.on().is_empty());
    }

    #[test]
    fn a_trail_that_was_written_anew_is_found() {
        let honest = |n: usize| {
            let mut chain = Chain::default();
            let entries: Vec<Entry> = (0..n).map(|_| chain.append(record(Verdict::Pass)).0).collect();
            (chain, entries)
        };
        let ((start, _), (chain, entries)) = (honest(2), honest(5));
        // One entry was changed, one is missing, or all of them are of another history that fits together.
        let mut changed = entries[2..].to_vec();
        changed[1].record.at_ms += 1;
        let mut last = entries[2..].to_vec();
        last[2].record.at_ms += 1;
        let lacks: Vec<Entry> = entries[3..].to_vec();
        for wrong in [changed, last, lacks] {
            let metrics = Metrics::new("test", "test");
            Reader::new(metrics.clone(), &start).take(&wrong, &chain);
            assert_eq!(told(&metrics, "nf_audit_head_mismatch").as_deref(), Some("1"));
            assert_eq!(metrics.alarms.on(), [TRAIL]);
        }
    }

    #[test]
    fn members_with_another_state_are_an_alarm_each_until_they_have_left() {
        let metrics = Metrics::new("test", "test");
        let astray = Astray::new(metrics.clone());
        let raised = || told(&metrics, "nf_alarms_raised_total{kind=\"state_differs\"}");
        let mismatch = || told(&metrics, "nf_audit_head_mismatch");
        astray.keep(&[1, 2, 3].map(MemberId).into());
        assert_eq!((raised(), mismatch().as_deref()), (None, Some("0")));
        for (member, index) in [(2, 7), (2, 8), (3, 8)] {
            astray.found(MemberId(member), index);
        }
        assert_eq!((raised().as_deref(), mismatch().as_deref()), (Some("2"), Some("1")), "not each time");
        astray.keep(&[1, 2].map(MemberId).into());
        assert_eq!((metrics.alarms.on(), mismatch().as_deref()), (vec![STATE], Some("1")), "one is still there");
        astray.keep(&[1, 4].map(MemberId).into());
        assert_eq!((metrics.alarms.on(), mismatch().as_deref()), (vec![], Some("0")), "the wrong ones have left");
    }

    #[test]
    fn what_was_written_down_is_held_against_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.jsonl");
        assert_eq!(last_kept(&path), None);
        let mut chain = Chain::default();
        let (entry, _) = chain.append(record(Verdict::Pass));
        std::fs::write(&path, format!("half a li\n{}", last_line(&chain.checkpoint("lab"), None))).unwrap();
        let kept = last_kept(&path).unwrap();
        let mut other = entry.clone();
        other.record.at_ms += 1;
        for (now, mismatch) in [(Some(&entry), "0"), (None, "0"), (Some(&other), "1")] {
            let metrics = Metrics::new("test", "test");
            Reader::new(metrics.clone(), &chain).compare(&kept, now);
            assert_eq!(told(&metrics, "nf_audit_head_mismatch").as_deref(), Some(mismatch));
        }
    }
}
