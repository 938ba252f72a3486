//! Two tenants and one name.

use super::*;
use crate::command::Answer;
use crate::plan::Intent;
use crate::resources::Gpus;
use crate::rows::{self, RowChange, Table};
use crate::testing::{job_spec, node_spec, register, run, schedule, try_run, try_run_at};

const NAME: &str = "train-1";

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn request() -> RequestId {
    RequestId::new(NAME).unwrap()
}

fn stop(tenant: Option<TenantId>) -> Intent {
    Intent::Stop { request: request(), tenant, why: Reason::StoppedByUser }
}

/// Jobs 1 and 2, of tenants a and b; the first waits for a bigger node, so a stop ends it at once.
fn both() -> State {
    let mut state = State::new();
    run(&mut state, register("n1", node_spec(2)));
    run(&mut state, schedule(NAME, job_spec("a", Gpus::Whole(8))));
    let made = run(&mut state, schedule(NAME, job_spec("b", Gpus::Whole(1))));
    assert_eq!(made, [Answer::Job { no: JobNo(2), replayed: false }], "no word of the other's");
    state
}

fn no(state: &State, of: &str) -> Option<u64> {
    state.job_named(&tenant(of), &request()).map(|job| job.no.0)
}

#[test]
fn a_name_is_its_tenants_own() {
    let mut state = both();
    assert_eq!([no(&state, "a"), no(&state, "b"), no(&state, "c")], [Some(1), Some(2), None]);
    let again = run(&mut state, schedule(NAME, job_spec("a", Gpus::Whole(8))));
    assert_eq!(again, [Answer::Job { no: JobNo(1), replayed: true }], "a retry is answered with its own job");
    let other = try_run(&mut state, schedule(NAME, job_spec("b", Gpus::Whole(2)))).unwrap_err();
    assert_eq!(other.reason, Reason::IdempotencyConflict);
    assert_eq!(try_run(&mut state, stop(Some(tenant("c")))).unwrap_err().reason, Reason::NotFound);
    run(&mut state, stop(Some(tenant("b"))));
    assert!(!state.job(JobNo(1)).unwrap().stopped && state.job(JobNo(2)).unwrap().stopped, "b stops its own alone");
}

#[test]
fn who_names_no_tenant_is_told_to_where_there_are_several() {
    let mut state = both();
    let refusal = try_run(&mut state, stop(None)).unwrap_err();
    assert_eq!((refusal.reason, refusal.field.as_deref()), (Reason::Conflict, Some("tenant_id")));
    assert!(refusal.detail.contains("a, b") && refusal.detail.contains("--tenant a"), "{}", refusal.detail);
    assert_eq!(state.jobs_named(&request()).count(), 2);
    // The one that is over is remembered, and who means that one must not hit the other.
    run(&mut state, stop(Some(tenant("a"))));
    assert_eq!(no(&state, "a"), None);
    assert_eq!(try_run(&mut state, stop(None)).unwrap_err().reason, Reason::Conflict);
    // Once it is forgotten there is one.
    let later = state.meta().now_ms + 16 * 60 * 1000;
    try_run_at(&mut state, stop(None), later).unwrap();
    assert!(state.job(JobNo(2)).unwrap().stopped);
}

#[test]
fn a_deleted_tenant_leaves_its_names_to_nobody() {
    let mut state = both();
    run(&mut state, stop(Some(tenant("a"))));
    run(&mut state, Intent::DeleteTenant { tenant: tenant("a") });
    assert_eq!(state.owners(&request()).collect::<Vec<_>>(), [&tenant("b")]);
    run(&mut state, schedule(NAME, job_spec("a", Gpus::Whole(8))));
    assert_eq!([no(&state, "a"), no(&state, "b")], [Some(3), Some(2)], "made anew, it has nothing of the old one's");
}

/// The positions to which the index of the history leads.
fn index(changes: &[RowChange]) -> Vec<(Option<TenantId>, u64)> {
    let rows = changes.iter().filter(|row| row.table == Table::HistoryOf);
    let position = |row: &RowChange| u64::from_be_bytes(row.value.as_deref().unwrap().try_into().unwrap());
    rows.map(|row| (rows::history_owner(&row.key), position(row))).collect()
}

#[test]
fn what_is_over_is_found_under_its_own_tenant() {
    let mut state = both();
    state.take_changes();
    run(&mut state, stop(Some(tenant("a"))));
    let of_a = state.take_changes();
    assert_eq!(index(&of_a), [(Some(tenant("a")), 1)]);
    run(&mut state, schedule(NAME, job_spec("c", Gpus::Whole(8))));
    run(&mut state, stop(Some(tenant("c"))));
    let of_c = state.take_changes();
    assert_eq!(index(&of_c), [(Some(tenant("c")), 2)]);
    let key = |of: &str| rows::history_key(&tenant(of), &request());
    assert!(of_a.iter().any(|row| row.key == key("a")) && of_c.iter().all(|row| row.key != key("a")));
    assert!(key("a").starts_with(&rows::history_prefix(&request())));
}

#[test]
fn rows_keep_them_apart_and_older_ones_are_refused() {
    let mut state = both();
    state.take_changes();
    let read = State::from_rows(state.live_rows()).unwrap();
    assert_eq!([no(&read, "a"), no(&read, "b")], [Some(1), Some(2)]);
    let older = state.live_rows().map(|(table, key, mut value)| {
        value[0] = 1;
        (table, key, value)
    });
    let error = State::from_rows(older).unwrap_err();
    assert!(matches!(error, rows::Error::Older { version: 1, .. }), "{error}");
    assert!(error.to_string().contains("empty data directory"), "{error}");
}
