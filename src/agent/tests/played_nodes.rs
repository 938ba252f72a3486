//! Nodes that are only played: by their member, or from a list.

use super::*;

#[tokio::test]
async fn a_played_node_is_played_by_its_member() {
    let group = Memory::new();
    let hub = Hub::new(group.clone(), Default::default());
    let me = nf_core::id::MemberId(1);
    let clock = Arc::new(Clock::start(Duration::ZERO));
    let maker = clock.clone();
    let config = played::PlayedConfig {
        me,
        incarnation: Incarnation(50),
        hub,
        open: Arc::new(move |_| Ok(maker.executor())),
        beat_every: Duration::from_millis(20),
        kill_budget: KILL_BUDGET,
    };
    let (_stop, stopped) = watch::channel(false);
    let task = tokio::spawn(played::run(config, stopped));
    let mine = Registration { incarnation: Incarnation(1), ..registration("p1", NodeKind::Played(me)) };
    group.run(Intent::Register { name: mine.node, kind: mine.kind, incarnation: mine.incarnation, spec: mine.spec });
    eventually("its agent has registered", || group.state().node(NODE).unwrap().incarnation == Incarnation(50)).await;
    group.run(testing::schedule("r1", testing::job_spec("t1", Gpus::Whole(1))));
    eventually("the job runs", || job_state(&group, 1) == Some(JobState::Running)).await;
    task.abort();
}

#[test]
fn a_list_of_nodes_is_read_or_its_fault_named() {
    let text = "sn,cpu_milli,memory_mib,gpu,model\nOpenB-Node-0000,64000,262144,2,P100\nx,1,1,0,\n";
    let nodes: Vec<VirtualNode> = virtual_nodes::parse(text).unwrap();
    assert_eq!((nodes[0].name.as_str(), nodes[0].memory, nodes[0].gpus), ("openb-node-0000", 256 << 30, 2));
    assert_eq!((&nodes[1].device_type, nodes[1].numa_nodes), (&None, None));
    let text = "sn,numa_nodes,cpu_milli,memory_mib,gpu,model\nx,2,1,1,8,T4\ny,0,1,1,8,T4\n";
    let nodes = virtual_nodes::parse(text).unwrap();
    assert_eq!(nodes.iter().map(|node| node.numa_nodes).collect::<Vec<_>>(), [Some(2), None]);
    for (bad, says) in [
        ("", "empty"),
        ("sn,gpu\n", "cpu_milli"),
        ("sn,cpu_milli,memory_mib,gpu,model\nn1,1,1,-1,T4", "line 2: gpu"),
        ("sn,cpu_milli,memory_mib,gpu,model\nn1,1,1,99999,T4", "line 2: gpu"),
        ("sn,cpu_milli,memory_mib,gpu,model\n../x,1,1,1,T4", "line 2: sn"),
        ("sn,cpu_milli,memory_mib,gpu,model\nn1,1", "2 of 5 fields"),
        ("sn,cpu_milli,memory_mib,gpu,model,numa_nodes\nn1,1,1,1,T4,-1", "line 2: numa_nodes"),
        ("sn,cpu_milli,memory_mib,gpu,model,numa_nodes\nn1,1,1,1,T4,1025", "line 2: numa_nodes"),
        ("sn,cpu_milli,memory_mib,gpu,model\nn1,1,18446744073709551615,1,T4", "line 2: memory_mib"),
        ("sn,cpu_milli,memory_mib,gpu,model\nn1,1,1,1,\n", "line 2: model"),
        ("sn,cpu_milli,memory_mib,gpu,model\nn1,1,1,1,T4\nN1,1,1,1,T4\n", "twice"),
    ] {
        let error = virtual_nodes::parse(bad).unwrap_err();
        assert!(error.contains(says), "{bad}: {error}");
    }
    assert_eq!(
        Node::new(registration("n1", NodeKind::Worker), Fake::new(), KILL_BUDGET).standing(),
        Standing::Unregistered
    );
}
