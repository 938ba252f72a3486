//! Slices of divided GPUs: a replica that is given one starts only where it can be held to it. An agent lists the
//! slices that the driver has as devices of their own, and makes none; so a slice that was placed on a real GPU is not
//! there. On a GPU that is only played, so is the slice.

use crate::agent::post::Post;
use crate::agent::record::End;
use nf_core::played::is_played;
use nf_core::reason::Reason;
use nf_core::reconcile::Want;
use nf_core::sharing::Kept;

/// Whether the slice that the replica got is there.
///
/// # Errors
/// How the replica ends where it is not: it would see the whole GPU, or none.
pub(in crate::agent) async fn made(post: &Post, want: &Want) -> Result<(), End> {
    for (share, uuid) in want.shares.iter().zip(&want.uuids) {
        let Kept::Mig(slice) = share.kept else { continue };
        let profile = want.spec.resources.mig_profile.as_ref().map_or("slice", |profile| profile.as_str());
        if is_played(uuid) {
            post.note(&format!("its slice {profile} of {uuid}, from part {}, is only played", slice.start)).await;
            continue;
        }
        let text = format!(
            "can't start: GPU {uuid} has no slice {profile} at part {}, and this agent makes none; make it (nvidia-smi mig) \
             and start nf again: then it is listed as a device",
            slice.start
        );
        post.note(&text).await;
        return Err(End::failed(Reason::FractionNotEnforced));
    }
    Ok(())
}
