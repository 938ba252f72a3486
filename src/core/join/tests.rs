//! Join tokens from their making to their end: once, by one key, under one name. They know no certificates.

use super::*;
use crate::audit::Action;
use crate::plan::Intent;
use crate::rows::{Table, read_audit};
use crate::testing;

const HOUR: u64 = 3_600_000;

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn make(state: &mut State, id: u8, node: Option<&str>) -> Result<Vec<Answer>, Refusal> {
    let intent = Intent::AddJoinToken { id: Digest16([id; 16]), secret: [id; 32], node: node.map(name), for_ms: HOUR };
    testing::try_run(state, testing::by("root", intent))
}

fn shown(id: u8, node: &str, key: u8) -> Shown {
    Shown { id: Digest16([id; 16]), secret: [id; 32], node: name(node), key: [key; 32], life_ms: 24 * HOUR }
}

fn join(state: &mut State, shown: Shown) -> Result<Vec<Answer>, Reason> {
    testing::try_run(state, Intent::SpendJoinToken(Box::new(shown))).map_err(|refusal| refusal.reason)
}

const ONCE: Result<Vec<Answer>, Reason> = Err(Reason::JoinTokenInvalid);

#[test]
fn a_token_lets_one_key_in_once() {
    let mut state = State::new();
    make(&mut state, 1, None).unwrap();
    assert_eq!(join(&mut state, Shown { secret: [9; 32], ..shown(1, "w1", 1) }), ONCE, "a wrong secret");
    assert_eq!(join(&mut state, shown(2, "w1", 1)), ONCE, "an unknown id");
    assert_eq!(join(&mut state, shown(1, "w1", 1)), Ok(vec![Answer::Count(1)]));
    let before = state.audit().seq();
    assert_eq!(join(&mut state, shown(1, "w1", 1)), Ok(vec![Answer::Count(0)]), "the answer was lost");
    assert_eq!(state.audit().seq(), before, "which is no second certificate for somebody");
    assert_eq!(join(&mut state, shown(1, "w1", 2)), ONCE, "another machine");
    assert_eq!(join(&mut state, shown(1, "w2", 1)), ONCE, "another name");
    state.take_changes();
    let again = State::from_rows(state.live_rows()).unwrap();
    assert_eq!(again.hash(), state.hash());
    assert!(judge(&again, &shown(1, "w1", 2)).is_err(), "nor after a restart");
}

#[test]
fn two_that_were_planned_on_one_state_are_one() {
    let mut state = State::new();
    make(&mut state, 1, None).unwrap();
    let (first, second) = (shown(1, "w1", 1), shown(1, "w2", 2));
    assert!(judge(&state, &first).is_ok() && judge(&state, &second).is_ok());
    assert_eq!(spend(&mut state, &first), Ok(Answer::Count(1)));
    assert_eq!(spend(&mut state, &second), Err(invalid()));
}

#[test]
fn it_ends_by_its_time_or_by_somebodys_word() {
    let mut state = State::new();
    make(&mut state, 1, None).unwrap();
    make(&mut state, 2, None).unwrap();
    let id = Digest16([2; 16]);
    assert_eq!(testing::run(&mut state, Intent::DropJoinToken { id }), [Answer::Count(1)]);
    assert_eq!(testing::run(&mut state, Intent::DropJoinToken { id }), [Answer::Count(0)]);
    assert_eq!(join(&mut state, shown(2, "w1", 1)), ONCE);
    let late = Intent::SpendJoinToken(Box::new(shown(1, "w1", 1)));
    let refused = testing::try_run_at(&mut state, late, HOUR).unwrap_err();
    assert_eq!((refused.reason, state.join_tokens().count()), (Reason::JoinTokenInvalid, 0), "and is forgotten");
    state.take_changes();
    assert!(state.live_rows().all(|(table, ..)| table != Table::JoinToken));
}

#[test]
fn nobody_becomes_somebody_else() {
    let mut state = State::new();
    testing::run(&mut state, testing::register("w1", testing::node_spec(1)));
    let member = crate::command::Member {
        id: crate::id::MemberId(1),
        name: name("n1"),
        api: "http://127.0.0.1:1".into(),
        peer: "127.0.0.1:2".into(),
        min_level: 1,
        max_level: 1,
        version: "1".into(),
    };
    testing::run(&mut state, Intent::Member(member));
    for bad in ["n1", PLAYER] {
        assert_eq!(make(&mut state, 9, Some(bad)).map_err(|r| r.reason), Err(Reason::NodeIdentityMismatch), "{bad}");
    }
    make(&mut state, 1, None).unwrap();
    for bad in ["n1", PLAYER, "w1"] {
        assert_eq!(join(&mut state, shown(1, bad, 1)), Err(Reason::NodeIdentityMismatch), "{bad}");
    }
    assert!(join(&mut state, shown(1, "w2", 1)).is_ok(), "a refused name uses nothing up");
    make(&mut state, 2, None).unwrap();
    assert_eq!(join(&mut state, shown(2, "w2", 2)), Err(Reason::NodeIdentityMismatch), "let in, not registered yet");
    make(&mut state, 3, Some("w1")).unwrap();
    assert_eq!(join(&mut state, shown(3, "w3", 3)), Err(Reason::NodeIdentityMismatch));
    assert!(join(&mut state, shown(3, "w1", 3)).is_ok(), "a token for a known worker, by an admin's word");
}

#[test]
fn there_are_only_so_many_and_none_for_long() {
    let mut state = State::new();
    let add = |state: &mut State, n: usize, for_ms: u64| {
        let id = Digest16::of(&[&n.to_be_bytes()]);
        testing::try_run(state, Intent::AddJoinToken { id, secret: [0; 32], node: None, for_ms })
    };
    for for_ms in [0, MAX_MS + 1] {
        assert_eq!(add(&mut state, 0, for_ms).unwrap_err().field.as_deref(), Some("ttl"));
    }
    (0..MAX_TOKENS).for_each(|n| _ = add(&mut state, n, MAX_MS).unwrap());
    assert_eq!(add(&mut state, MAX_TOKENS, 1).unwrap_err().reason, Reason::TooManyRequests);
    assert_eq!(add(&mut state, 0, MAX_MS), Ok(vec![Answer::Count(0)]), "sent twice");
    let id = Digest16::of(&[&0_usize.to_be_bytes()]);
    join(&mut state, Shown { id, secret: [0; 32], ..shown(1, "w1", 1) }).unwrap();
    assert!(add(&mut state, MAX_TOKENS, 1).is_ok(), "used ones take nobody's place");
}

#[test]
fn used_ones_are_bounded_too_and_the_oldest_goes() {
    let mut state = State::new();
    for n in 0..MAX_USED {
        let id = Digest16::of(&[&n.to_be_bytes()]);
        let used = Used { node: name("w"), key: [0; 32], at_ms: 0, until_ms: HOUR + n as u64 };
        let token = JoinToken { id, secret: [0; 32], node: None, by: None, at_ms: 0, until_ms: 1, used: Some(used) };
        state.put_join_token(token);
    }
    make(&mut state, 1, None).unwrap();
    assert!(join(&mut state, shown(1, "w1", 1)).is_ok());
    assert_eq!(state.join_tokens().count(), MAX_USED);
    let first = Digest16::of(&[&0_usize.to_be_bytes()]);
    assert!(state.join_tokens().all(|token| token.id != first));
    assert_eq!(state.join_tokens.len(), state.join_due.len());
}

#[test]
fn a_name_is_its_holders_as_long_as_the_certificate_lives() {
    let mut state = State::new();
    make(&mut state, 1, None).unwrap();
    join(&mut state, shown(1, "w1", 1)).unwrap();
    let mut again = |id: u8, at: u64| {
        let add = Intent::AddJoinToken { id: Digest16([id; 16]), secret: [id; 32], node: None, for_ms: HOUR };
        testing::try_run_at(&mut state, add, at).unwrap();
        let spend = Intent::SpendJoinToken(Box::new(shown(id, "w1", id)));
        testing::try_run_at(&mut state, spend, at).map_err(|refusal| refusal.reason)
    };
    assert_eq!(again(2, 2 * HOUR), Err(Reason::NodeIdentityMismatch), "the token is over, its certificate is not");
    assert_eq!(again(3, 25 * HOUR), Ok(vec![Answer::Count(1)]));
}

#[test]
fn the_trail_says_who_let_whom_in() {
    use crate::command::Batch;
    let mut state = State::new();
    let admin = Actor { subject: "root".into(), tenant: None, token: None, node: None, issuer: None };
    let token = Actor { subject: "join-token/x".into(), ..admin.clone() };
    let add = Intent::AddJoinToken { id: Digest16([1; 16]), secret: [1; 32], node: None, for_ms: HOUR };
    let spend = Intent::SpendJoinToken(Box::new(shown(1, "w1", 1)));
    for (intent, actor) in [(add, &admin), (spend, &token)] {
        let mut batch = Batch { base: state.meta().base, ..Batch::default() };
        let commands = crate::plan::plan(&state, &intent).unwrap().commands;
        commands.into_iter().for_each(|command| batch.push(command, Some(actor)));
        crate::apply::apply_batch(&mut state, &batch);
    }
    let rows = state.take_changes();
    let entries = rows.iter().filter(|row| row.table == Table::AuditEntry);
    let told: Vec<_> = entries.map(|row| read_audit(row.value.as_ref().unwrap()).unwrap().record).collect();
    let told: Vec<_> = told.iter().map(|r| (r.action, &*r.actor.subject, r.object.to_string())).collect();
    let id = "01".repeat(16);
    assert_eq!(told[0], (Action::JoinTokenCreate, "root", format!("join-token/{id}")));
    assert_eq!(told[1], (Action::CertificateIssue, "join-token/x", "node/w1".to_owned()));
}
