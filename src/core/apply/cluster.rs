//! Commands about the group itself.

use crate::command::{Answer, Member, Mode};
use crate::event::EventKind;
use crate::id::{MemberId, NodeName};
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

pub(super) fn raise_level(state: &mut State, to: u32, members: &[MemberId]) -> Result<Answer, Refusal> {
    let level = state.meta().level;
    if to == level {
        return Ok(Answer::Done);
    }
    let refuse = |why: String| {
        Err(Refusal::new(Reason::FeatureLevel, format!("cannot go from feature level {level} to {to}: {why}")))
    };
    if to < level {
        return refuse("the level only rises".into());
    }
    match level_of_all(state, members) {
        Ok((highest, _)) if highest >= to => {}
        Ok((highest, who)) => return refuse(format!("member {who} runs up to {highest}; upgrade it first")),
        Err(unknown) => return refuse(unknown),
    }
    state.change_meta(|meta| meta.level = to);
    state.emit(EventKind::Level { to });
    Ok(Answer::Done)
}

/// The highest feature level that all of these members run, and one that runs no higher.
///
/// # Errors
/// Text: one of them has not said yet what it runs, or there is none.
pub fn level_of_all(state: &State, members: &[MemberId]) -> Result<(u32, NodeName), String> {
    let known = members.iter().map(|id| {
        let member = state.members().get(id);
        member.ok_or_else(|| format!("member {} has not said yet what it runs; wait until it has started", id.0))
    });
    let known = known.collect::<Result<Vec<_>, _>>()?;
    let least = known.into_iter().min_by_key(|member| member.max_level);
    least.map(|member| (member.max_level, member.name.clone())).ok_or_else(|| "no member is named".into())
}

pub(super) fn set_placement(state: &mut State, chosen: Chosen) -> Result<Answer, Refusal> {
    if state.meta().placement == chosen {
        return Ok(Answer::Done);
    }
    state.set_placement(chosen);
    state.emit(EventKind::Placement { policy: chosen.policy, version: state.meta().placement_version });
    Ok(Answer::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::LEVELS;
    use crate::plan::Intent;
    use crate::testing::{run, try_run};

    fn introduced(state: &mut State, id: u64, max_level: u32) {
        let name = NodeName::new(&format!("node-{id}")).unwrap();
        let (api, peer) = (format!("a{id}").into(), format!("p{id}").into());
        let member = Member { id: MemberId(id), name, api, peer, min_level: 1, max_level, version: "1".into() };
        run(state, Intent::Member(member));
    }

    #[test]
    fn the_level_rises_when_all_that_are_there_can_run_it() {
        let mut state = State::new();
        let raise = |state: &mut State, to: u32, members: &[u64]| {
            let members = members.iter().copied().map(MemberId).collect();
            try_run(state, Intent::RaiseLevel { to, members }).map_err(|refusal| refusal.detail.to_string())
        };
        let next = *LEVELS.end() + 1;
        introduced(&mut state, 11, next);
        introduced(&mut state, 12, 1);
        introduced(&mut state, 13, next);
        let behind = raise(&mut state, next, &[11, 12, 13]).unwrap_err();
        assert!(behind.contains("member node-12 runs up to 1"), "{behind}");
        assert!(raise(&mut state, next, &[11, 14]).unwrap_err().contains("member 14 has not said"));
        assert!(raise(&mut state, next, &[]).is_err(), "nobody could run it");
        // The one that can't has left the group.
        raise(&mut state, next, &[11, 13]).unwrap();
        assert_eq!(state.meta().level, next);
        assert!(raise(&mut state, 1, &[11, 13]).unwrap_err().contains("only rises"));
    }
}
