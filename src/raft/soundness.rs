//! Whether this member may have a say: it must have what it promised, and the state that the
//! others have. What it finds, it acts on by ending; it repairs nothing.

use nf_core::id::MemberId;
use nf_proto::internal as pb;

use super::marks::{Mark, Verdict};
use super::shared::Shared;

impl Shared {
    /// A member of which the group has heard had data. If nothing of it is here, its vote and what it acknowledged
    /// are gone with it, and it must not have a say.
    pub fn refuse_if_wiped(&self, introduced: bool) -> Result<(), tonic::Status> {
        if introduced && self.log.is_blank(self.me.id.0) {
            (self.hooks.wiped)();
            return Err(tonic::Status::failed_precondition("this member has lost its data"));
        }
        Ok(())
    }

    /// What this member tells of its state.
    pub fn marks_told(&self) -> Vec<pb::Mark> {
        let told = self.marks.told().into_iter();
        told.map(|(index, hash)| pb::Mark { index, hash: hash.to_be_bytes().to_vec().into() }).collect()
    }

    /// Compares another member's state with ours, as far as it told of it. Whoever has another one than most stops:
    /// what it says is wrong, and as a leader it would spread.
    pub fn compare(&self, peer: MemberId, told: &[pb::Mark]) {
        let mark = |mark: &pb::Mark| Some((mark.index, u128::from_be_bytes(mark.hash[..].try_into().ok()?)));
        let theirs: Vec<Mark> = told.iter().filter_map(mark).collect();
        let voters: Vec<_> = self.status().members.iter().filter(|m| m.voter).map(|m| m.id).collect();
        match self.marks.compare(peer, &theirs, &voters) {
            Verdict::Same => {}
            Verdict::Differs { index } => (self.hooks.differs)(peer, index),
            Verdict::Outvoted { index } => self.fatal.raise(&format!(
                "at log index {index} this member's state is not the one that most others have: remove it, empty its \
                 directory, and let it join under a new id"
            )),
        }
    }
}
