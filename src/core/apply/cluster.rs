//! Commands about the group itself.

use crate::command::{Answer, Member, Mode};
use crate::event::EventKind;
use crate::placement::Chosen;
use crate::reason::{Reason, Refusal};
use crate::state::State;
use std::sync::Arc;

pub(super) fn init(
    state: &mut State,
    cluster: &Arc<str>,
    mode: Mode,
    default_gpu_milli: u64,
) -> Result<Answer, Refusal> {
    if !state.meta().cluster.is_empty() {
        return Err(Refusal::new(Reason::Conflict, format!("the group {} exists already", state.meta().cluster)));
    }
    state.change_meta(|meta| {
        meta.cluster = cluster.clone();
        meta.mode = mode;
        meta.default_gpu_milli = default_gpu_milli;
    });
    Ok(Answer::Done)
}

pub(super) fn member(state: &mut State, member: &Member) -> Result<Answer, Refusal> {
    let level = state.meta().level;
    if !(member.min_level..=member.max_level).contains(&level) {
        let detail = format!(
            "member {} runs feature levels {} to {}, the group is at {level}; install a build that runs it",
            member.name, member.min_level, member.max_level
        );
        return Err(Refusal::new(Reason::FeatureLevel, detail));
    }
    if state.members.get(&member.id).is_some_and(|known| **known == *member) {
        return Ok(Answer::Done);
    }
    state.put_member(member.clone());
    state.emit(EventKind::Member { name: member.name.clone(), version: member.version.clone() });
    Ok(Answer::Done)
}

pub(super) fn raise_level(state: &mut State, to: u32) -> Result<Answer, Refusal> {
    let level = state.meta().level;
    if to == level {
        return Ok(Answer::Done);
    }
    let behind = state.members().values().find(|m| m.max_level < to);
    if to < level || behind.is_some() {
        let who = behind
            .map_or("the level only rises".to_owned(), |m| format!("member {} runs up to {}", m.name, m.max_level));
        return Err(Refusal::new(Reason::FeatureLevel, format!("cannot go from feature level {level} to {to}: {who}")));
    }
    state.change_meta(|meta| meta.level = to);
    state.emit(EventKind::Level { to });
    Ok(Answer::Done)
}

pub(super) fn set_placement(state: &mut State, chosen: Chosen) -> Result<Answer, Refusal> {
    if state.meta().placement == chosen {
        return Ok(Answer::Done);
    }
    state.set_placement(chosen);
    state.emit(EventKind::Placement { policy: chosen.policy, version: state.meta().placement_version });
    Ok(Answer::Done)
}
