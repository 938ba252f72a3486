//! Properties: whatever is commanded, in whatever order and at whatever time, the
//! state stays sound, replays the same and reloads the same; bytes round-trip or
//! are refused. An operation is a number that decides all of it, so proptest
//! shrinks a failure by leaving operations out.

// Helpers of tests are tests: a panic in them is a failed test with a line number.
#![allow(clippy::unwrap_used)]

#[path = "world/mod.rs"]
mod world;

use nf_core::apply::{BatchOutcome, apply_batch};
use nf_core::command::Batch;
use nf_core::id::{DeviceType, Label, ModelId, NodeName, RequestId, TenantId, VersionId};
use nf_core::plan::{Intent, Reply, plan};
use nf_core::proposer::Proposer;
use nf_core::resources::{Gpus, MAX_BYTES, parse_bytes};
use nf_core::sim::Rng;
use nf_core::state::State;
use nf_core::{codec, invariants};
use proptest::prelude::*;
use world::World;

fn ops() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(any::<u64>(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_the_state_sound(ops in ops()) {
        let mut world = World::new();
        for op in &ops {
            world.step(*op);
        }
        world.reloads_the_same();
        world.replays_the_same();
    }

    #[test]
    fn the_queue_comes_to_rest_and_each_waiter_knows_why(ops in ops()) {
        let mut world = World::new();
        ops.iter().for_each(|op| world.step(*op));
        let jobs = world.state.jobs().len();
        let mut passes = 0;
        while !plan(&world.state, &Intent::PlaceWaiting).unwrap().commands.is_empty() {
            world.intent(&Intent::PlaceWaiting);
            passes += 1;
            prop_assert!(passes <= jobs * 8, "the queue does not come to rest");
        }
        prop_assert_eq!(nf_core::sim::unplaced(&world.state), None);
    }

    #[test]
    fn the_proposer_is_exact_and_agrees_with_plan_and_apply(ops in ops(), seed in any::<u64>()) {
        proposer_agrees(&ops, seed);
    }

    #[test]
    fn frames_round_trip_and_damage_is_seen(ops in ops(), seed in any::<u64>()) {
        let mut world = World::new();
        ops.iter().for_each(|op| world.step(*op));
        let mut rng = Rng::new(seed);
        for batch in world.batches.iter().rev().take(4) {
            damaged(batch, &mut rng);
        }
        for op in ops.iter().take(4) {
            damaged(&world.some_intent(&mut Rng::new(*op)), &mut rng);
        }
        if let Some(job) = world.state.jobs().values().next() {
            let view = Some(Box::new(nf_core::view::job(&world.state, job)));
            damaged(&Reply { job: view, index: 3, ..Reply::empty() }, &mut rng);
        }
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 1u8..5) {
        let _ = (codec::decode::<Batch>(&bytes), codec::decode::<Intent>(&bytes), codec::decode::<Reply>(&bytes));
        let mut framed = vec![0, kind, 0, 1];
        framed.extend((bytes.len() as u32).to_be_bytes());
        framed.extend(&bytes);
        let _ = (codec::decode::<Batch>(&framed), codec::decode::<Intent>(&framed), codec::decode::<Reply>(&framed));
        let rows = [nf_core::rows::Table::Meta, nf_core::rows::Table::Job, nf_core::rows::Table::Request];
        for table in rows {
            let _ = State::from_rows([(table, bytes.clone(), framed.clone())]);
            let _ = State::from_rows([(table, vec![0], [vec![1], bytes.clone()].concat())]);
        }
    }

    #[test]
    fn sizes_parse_to_what_they_say_or_not_at_all(text in ".{0,24}", whole in 0u64..1_000_000, micro in 0u64..1_000_000) {
        if let Ok(bytes) = parse_bytes(&text) {
            prop_assert!(bytes <= MAX_BYTES);
        }
        prop_assert_eq!(parse_bytes(&format!("{whole}.{micro:06}MB")), Ok(whole * 1_000_000 + micro));
        prop_assert_eq!(parse_bytes(&format!(" {whole} GiB ")), Ok(whole << 30));
    }

    #[test]
    fn names_are_safe_in_paths(text in ".{0,80}") {
        let names = [
            TenantId::new(&text).map(|n| n.as_str().to_owned()),
            ModelId::new(&text).map(|n| n.as_str().to_owned()),
            VersionId::new(&text).map(|n| n.as_str().to_owned()),
            RequestId::new(&text).map(|n| n.as_str().to_owned()),
            NodeName::new(&text).map(|n| n.as_str().to_owned()),
            DeviceType::new(&text).map(|n| n.as_str().to_owned()),
        ];
        for name in names.into_iter().flatten() {
            prop_assert_eq!(&name, &text);
            prop_assert!(!name.contains("..") && !name.contains('/') && name.is_ascii() && !name.starts_with(['.', '-']));
        }
        if let Err(error) = Label::new(&text) {
            prop_assert!(error.to_string().len() < 700);
        }
    }

    #[test]
    fn devices_are_whole_or_part_of_one(milli in any::<u64>()) {
        if let Ok(gpus) = Gpus::from_milli(milli) {
            prop_assert_eq!(gpus.milli(), milli);
        }
    }
}

/// The value comes back from its bytes, and from no others.
fn damaged<T: codec::Framed + PartialEq + std::fmt::Debug>(value: &T, rng: &mut Rng) {
    let bytes = codec::encode(value);
    assert_eq!(&codec::decode::<T>(&bytes).unwrap(), value);
    assert!(codec::decode::<T>(&bytes[..rng.below(bytes.len() as u64) as usize]).is_err(), "cut short");
    assert!(codec::decode::<T>(&[bytes.as_slice(), &[0]].concat()).is_err(), "one byte too many");
    for _ in 0..16 {
        let mut flipped = bytes.clone();
        flipped[rng.below(bytes.len() as u64) as usize] ^= 1 << rng.below(8);
        if let Ok(other) = codec::decode::<T>(&flipped) {
            assert_ne!(&other, value, "a flipped bit went unseen");
        }
    }
}

/// Feeds a proposer, settles its entries now or later, gives some up that are
/// committed all the same, lets foreign entries in between; whatever happens, its
/// expectations hold and each caller is answered once.
fn proposer_agrees(ops: &[u64], seed: u64) {
    let mut world = World::new();
    let mut rng = Rng::new(seed);
    ops.iter().take(10).for_each(|op| world.step(*op));
    let mut state = world.state.clone();
    let mut proposer = Proposer::new(&state);
    let mut log: std::collections::VecDeque<(Batch, bool)> = Default::default();
    let (mut offered, mut answered, mut now) = (0, std::collections::BTreeSet::new(), world.now);
    for op in ops {
        offered += 1;
        assert!(proposer.offer(offered, world.some_intent(&mut Rng::new(*op))));
        now += rng.below(50);
        if rng.chance(600) {
            let (batch, replies) = proposer.next_entry(now);
            replies.into_iter().for_each(|(ticket, _)| assert!(answered.insert(ticket)));
            log.extend(batch.map(|batch| (batch, true)));
        }
        if rng.chance(60) {
            // The shell loses sight of its oldest write; it stays in the log.
            if let Some((_, own)) = log.iter_mut().find(|(_, own)| *own) {
                *own = false;
                proposer.on_unknown(&state);
            }
        }
        while rng.chance(500)
            && let Some((batch, own)) = log.pop_front()
        {
            settle(&mut state, &mut proposer, &batch, own, &mut answered);
        }
    }
    for round in 0.. {
        assert!(round < 10_000, "the proposer does not come to rest");
        let (batch, replies) = proposer.next_entry(now);
        replies.into_iter().for_each(|(ticket, _)| assert!(answered.insert(ticket)));
        log.extend(batch.map(|batch| (batch, true)));
        match log.pop_front() {
            Some((batch, own)) => settle(&mut state, &mut proposer, &batch, own, &mut answered),
            None => break,
        }
    }
    answered.extend(proposer.take_exhausted());
    assert_eq!(answered.len() as u64, offered, "a caller has no answer");
    assert_eq!(proposer.divergences(), 0);
    assert_eq!(invariants::check(&state), []);
}

fn settle(
    state: &mut State,
    proposer: &mut Proposer,
    batch: &Batch,
    own: bool,
    answered: &mut std::collections::BTreeSet<u64>,
) {
    let outcome = apply_batch(state, batch);
    if let BatchOutcome::Applied(answers) = &outcome {
        assert_eq!(answers.len(), batch.commands.len());
    }
    if own {
        let replies = proposer.on_applied(&outcome, state, 1);
        replies.into_iter().for_each(|(ticket, _)| assert!(answered.insert(ticket), "answered twice"));
    }
}
