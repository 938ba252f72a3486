//! Copies of data about people: they go once no replica uses them.

use super::*;

#[tokio::test]
async fn a_copy_of_personal_data_goes_once_its_replica_has_gone() {
    let world = World::new();
    let executor = world.open();
    let mut want = world.shell("echo about ada; sleep 600").await;
    Arc::make_mut(&mut want.spec).data_classes = vec![nf_core::id::Label::new("personal").unwrap()];
    let copy = nf_core::reconcile::Purge {
        copy: nf_core::id::Digest16([1; 16]),
        placed: 7,
        tenant: want.spec.tenant.clone(),
        manifest: want.spec.manifest.unwrap(),
    };
    let bytes = || {
        let mut found = Vec::new();
        let mut todo = vec![world.path("data")];
        while let Some(at) = todo.pop() {
            for entry in fs::read_dir(&at).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => todo.push(entry.path()),
                    false => found.extend(fs::read(entry.path()).ok().filter(|b| b.starts_with(b"echo about ada"))),
                }
            }
        }
        found.len()
    };
    executor.start(ID, &want);
    executor.until("it has been started", |_| (world.living() > 0).then_some(())).await;
    assert_eq!(bytes(), 2, "in the cache and in the replica's directory");
    executor.stop(ID, want.generation, Reason::ConsentRevoked);
    let gone = |e: &Executor| {
        let condition = *e.actual().replicas.get(&ID)?.get(&want.generation)?;
        matches!(condition, Condition::Gone { .. }).then_some(())
    };
    executor.until("it is gone", gone).await;
    // Its directory can't be removed, for a while.
    let (dir, aside) = (world.path("data/replicas/n1/r1.0.j1.g1"), world.path("aside"));
    fs::rename(&dir, &aside).unwrap();
    fs::write(&dir, "no directory").unwrap();
    executor.forget(ID, want.generation);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!executor.purge(&copy) && bytes() == 1, "the replica's files may be the cache's");
    fs::remove_file(&dir).unwrap();
    fs::rename(&aside, &dir).unwrap();
    executor.until("the copy is gone", |e| e.purge(&copy).then_some(())).await;
    assert_eq!(bytes(), 0);
    assert!(executor.purge(&copy), "done is done");
    let later = nf_core::reconcile::Purge { placed: 8, ..copy };
    assert!(!executor.purge(&later), "files may have come again since");
    executor.until("and gone again", |e| e.purge(&later).then_some(())).await;
}
