//! What a schedule call costs in a large tree of tenants, whose sums decide about each.

use super::*;

/// One tree of as many tenants as there may be, of teams and groups with limits, all of whom hold something.
fn tree_of_a_thousand() -> State {
    let mut state = State::new();
    for i in 0..400 {
        testing::run(&mut state, testing::register(&format!("n{i}"), testing::node_spec(8)));
    }
    let mut set = |name: &str, above: Option<&str>| {
        let id = |name: &str| TenantId::new(name).unwrap();
        let quota = Quota {
            gpu_milli: Some(4_000),
            parent: above.map(id),
            borrow_milli: Some(2_000),
            lend_milli: Some(1_000),
            ..Quota::default()
        };
        testing::run(&mut state, Intent::SetQuota { tenant: id(name), quota });
    };
    set("org", None);
    for team in 0..31 {
        set(&format!("team{team}"), Some("org"));
        (0..32).for_each(|group| set(&format!("t{team}-{group}"), Some(&format!("team{team}"))));
    }
    for team in 0..31 {
        for group in 0..32 {
            let spec = testing::job_spec(&format!("t{team}-{group}"), Gpus::Whole(1));
            entry(&mut state, &testing::schedule(&format!("r{team}-{group}"), spec), 1);
        }
        state.take_changes();
    }
    state
}

#[test]
fn a_schedule_call_in_a_tree_of_a_thousand_tenants_is_bounded() {
    let mut state = tree_of_a_thousand();
    assert_eq!(state.tenants().len(), 1024);
    let (mut planning, mut applying) = (Duration::ZERO, Duration::ZERO);
    const CALLS: u32 = 200;
    for i in 0..CALLS {
        let spec = testing::job_spec(&format!("t{}-{}", i % 31, i % 32), Gpus::Milli(100));
        let intent = testing::schedule(&format!("call{i}"), spec);
        let started = now();
        let commands = plan(&state, &intent).unwrap().commands;
        planning += now() - started;
        let batch = Batch { base: state.meta().base, at_ms: 1, commands, ..Batch::default() };
        let started = now();
        apply_batch(&mut state, &batch);
        applying += now() - started;
        state.take_changes();
        let job = state.job_of(&RequestId::new(&format!("call{i}")).unwrap()).unwrap();
        assert!(!job.wants_place());
    }
    println!("per call in a tree of 1,024 tenants: plan {:?}, apply {:?}", planning / CALLS, applying / CALLS);
    assert!((planning + applying) / CALLS < Duration::from_millis(5));
}
