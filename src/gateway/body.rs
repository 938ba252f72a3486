//! The body of a request, read whole, bounded in size and time, and paid for while it
//! comes. It does not know what stands in it.

use super::refusal::Refused;
use super::shares::{Part, Payer, Shares};
use axum::body::{Body, Bytes, HttpBody as _};
use bytes::BytesMut;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// The largest body of a request.
pub const MAX_BODY: usize = 16 << 20;
/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A body, and its part of the memory that all bodies may take.
pub type Read = (Bytes, Part);

pub async fn read(shares: &Arc<Shares>, payer: Payer, body: Body) -> Result<Read, Refused> {
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(Refused::TooLarge(MAX_BODY));
    }
    let gathered = gather(shares, payer, body);
    tokio::time::timeout(BODY_TIME, gathered).await.unwrap_or(Err(Refused::Slow(BODY_TIME)))
}

/// Takes room as the pieces come: what somebody only says that he will send keeps nobody out.
pub async fn gather(shares: &Arc<Shares>, payer: Payer, body: Body) -> Result<Read, Refused> {
    let (mut part, mut out) = (shares.body(payer)?, BytesMut::new());
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| Refused::Bad { field: "body", detail: error.to_string() })?;
        let length = out.len() + piece.len();
        if length > MAX_BODY {
            return Err(Refused::TooLarge(MAX_BODY));
        }
        part.grow_to(u32::try_from(length / 1024 + 1).unwrap_or(u32::MAX))?;
        out.extend_from_slice(&piece);
    }
    Ok((out.freeze(), part))
}
