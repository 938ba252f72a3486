//! A replica that runs nothing: its model's files are brought here the way every replica's are, each byte verified, and
//! stay in the node's cache, evicted for nobody, until it is stopped.

use super::prepare;
use crate::agent::post::Post;
use crate::agent::record::End;
use nf_core::job::Stage;
use nf_core::reason::Reason;
use nf_core::reconcile::Want;

/// The whole life of a prefetch.
pub(in crate::agent) async fn run(post: Post, want: &Want) -> End {
    let here = tokio::select! {
        here = prepare(&post, &want.spec) => here,
        why = post.stop_asked() => return End { ok: true, why },
    };
    let manifest = match here {
        Ok(Some(manifest)) => manifest,
        // Nobody lets in a prefetch of a version that no store knows.
        Ok(None) => return End::failed(Reason::ModelNotFound),
        Err(end) => return end,
    };
    let _pin = post.shared.cache.pin(&manifest);
    post.stage(Stage::Ready);
    post.note("kept for whoever starts here next, until this job is stopped").await;
    End { ok: true, why: post.stop_asked().await }
}
