//! What the services of a tree of tenants share.

use super::*;
use nf_core::budget::{Budgets, Window};
use nf_core::tenant::Quota;

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// So much of its own below `org`.
fn below(state: &mut State, name: &str, gpu_milli: u64) {
    let quota = Quota { gpu_milli: Some(gpu_milli), parent: Some(tenant("org")), ..Quota::default() };
    testing::run(state, Intent::SetQuota { tenant: tenant(name), quota });
}

/// Two tenants below one that has so much: t1, whose service lives on what it borrows, and t2 with its own.
fn borrowers(org_milli: u64, own_milli: u64, priority: i16) -> State {
    let mut state = world();
    let quota = Quota { gpu_milli: Some(org_milli), ..Quota::default() };
    testing::run(&mut state, Intent::SetQuota { tenant: tenant("org"), quota });
    below(&mut state, "t1", 0);
    below(&mut state, "t2", own_milli);
    let of = state.services().next().unwrap().spec.clone();
    let spec = JobSpec { tenant: tenant("t2"), priority, ..(*of).clone() };
    testing::run(&mut state, testing::schedule("s2", spec));
    testing::run(&mut state, Intent::PlaceWaiting);
    state
}

/// Both, or the first, have more to do than they can.
fn busy(i: u64, both: bool) -> Panorama {
    let other = Sight { tenant: tenant("t2"), ..sight(if both { i * 8 } else { 0 }, u32::from(both) * 10, 0) };
    let sights = vec![sight(i * 8, 10, 8), other];
    Panorama { seen: vec![(MemberId(1), Seen { epoch: 1, sights, advice: vec![] })], ..Panorama::default() }
}

#[test]
fn who_lives_on_what_it_borrows_grows_and_keeps_it() {
    let (mut state, mut scaler) = (borrowers(300, 100, 0), Scaler::new(1, PACE));
    for i in 1..60 {
        let intents = scaler.look(&state, busy(i, false), i * TICK).intents;
        run(&mut state, intents);
        agent(&mut state);
    }
    // The other one sleeps by now: all of it may be borrowed.
    assert_eq!(desired(&state), [4, 0]);
    let t1 = state.tenant_named(&tenant("t1")).unwrap().no;
    assert_eq!(state.ledger().tenant(t1).gpu_milli, 400);
}

#[test]
fn the_owner_goes_first_in_what_is_its_own_and_then_the_more_urgent() {
    for (priority, own, shared) in [(-9, 200, [2, 2]), (9, 200, [0, 4]), (-9, 0, [4, 0]), (0, 0, [2, 2])] {
        let (mut state, mut scaler) = (borrowers(400 - own, own, priority), Scaler::new(1, PACE));
        for i in 1..60 {
            let intents = scaler.look(&state, busy(i, true), i * TICK).intents;
            run(&mut state, intents);
            agent(&mut state);
            assert!(desired(&state).iter().sum::<u16>() <= 4, "at look {i}: {:?}", desired(&state));
        }
        assert_eq!(desired(&state), shared, "priority {priority}, {own} of its own");
    }
}

#[test]
fn services_of_one_budget_take_its_rest_once() {
    let (mut state, mut scaler) = (two_services(0), Scaler::new(1, PACE));
    for request in ["s1", "s2"] {
        let target = Target { replicas: 1, why: Why::Asked, inputs: None, seen: None, learned: None };
        testing::run(&mut state, Intent::Scale { request: RequestId::new(request).unwrap(), tenant: None, target });
    }
    agent(&mut state);
    // Each replica takes a tenth of a GPU for half an hour ahead: two run, and three more can be paid.
    let mut budgets = Budgets::default();
    budgets.gpu_hours[Window::Day as usize] = Some(260);
    let quota = Quota { gpu_milli: Some(100_000), budgets: budgets.some(), ..Quota::default() };
    testing::run(&mut state, Intent::SetQuota { tenant: tenant("t1"), quota });
    for i in 1..30 {
        let Looked { intents, looks, .. } = scaler.look(&state, both_busy(i), i * TICK);
        assert!(i < 10 || looks.iter().all(|look| look.decision.why == Why::BudgetLimit), "{looks:?}");
        run(&mut state, intents);
        assert!(desired(&state).iter().sum::<u16>() <= 5, "at look {i}: {:?}", desired(&state));
    }
    assert_eq!(desired(&state), [3, 2]);
}
