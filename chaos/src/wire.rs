//! Unary gRPC calls with only the fields that a drill uses. Tags in a public
//! contract never change meaning, so a partial declaration stays right; it also
//! keeps this package from being rebuilt whenever the contract grows.

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

/// What a caller shows with each call.
pub type Shown = Option<tonic::metadata::MetadataValue<tonic::metadata::Ascii>>;

/// One unary call.
pub async fn unary<Q, A>(channel: &Channel, shown: &Shown, path: &'static str, request: Q) -> Result<A, tonic::Status>
where
    Q: prost::Message + Default + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let mut request = tonic::Request::new(request);
    if let Some(shown) = shown {
        request.metadata_mut().insert("authorization", shown.clone());
    }
    let answer = grpc.unary(request, PathAndQuery::from_static(path), codec).await?;
    Ok(answer.into_inner())
}

/// `connections` connections, spread over `urls`.
pub async fn channels(urls: &[String], connections: usize) -> anyhow::Result<Vec<Channel>> {
    let mut out = Vec::new();
    for i in 0..connections {
        out.push(Channel::from_shared(urls[i % urls.len()].clone())?.connect().await?);
    }
    Ok(out)
}
