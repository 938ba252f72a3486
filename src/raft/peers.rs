//! Connections to the other members: one per peer and lane, made when first used.
//!
//! Lanes keep heartbeats and votes from queueing behind entries, entries behind snapshots, and
//! callers' intents apart from all of them. It does not know what is said on them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nf_proto::internal as pb;
use pb::peer_service_client::PeerServiceClient;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::types::Peer;
use crate::security::tls::PeerTls;

/// Connecting, with the handshake, may take this long.
const CONNECT: Duration = Duration::from_secs(2);
/// Silence after which a connection is probed, and how long the answer may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));
/// Largest message; an append carries at most 1 MiB of entries or one larger entry.
pub const MESSAGE_BYTES: usize = 16 << 20;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Heartbeats and votes.
    Control,
    /// Log entries.
    Log,
    /// Snapshots.
    Bulk,
    /// Callers' intents and reads.
    Calls,
}

pub type Client = PeerServiceClient<Channel>;

/// See the module. Cheap to share.
pub struct Peers {
    cluster: String,
    id: u64,
    name: String,
    tls: PeerTls,
    channels: Mutex<HashMap<(u64, Lane), (Peer, Channel)>>,
}

impl Peers {
    pub fn new(cluster: String, id: u64, name: String, tls: PeerTls) -> Self {
        Self { cluster, id, name, tls, channels: Mutex::default() }
    }

    /// What every call to `to` begins with.
    pub fn route(&self, to: u64) -> pb::Route {
        pb::Route { cluster: self.cluster.clone(), from: self.id, to, name: self.name.clone() }
    }

    /// A client for `id`, reached at `peer`. The connection itself is made by the first call.
    pub fn client(&self, id: u64, peer: &Peer, lane: Lane) -> Client {
        let mut channels = self.channels.lock().expect("no panic while held");
        let channel = match channels.get(&(id, lane)) {
            Some((known, channel)) if known == peer => channel.clone(),
            _ => {
                let channel = connect(peer.clone(), self.tls.clone());
                channels.insert((id, lane), (peer.clone(), channel.clone()));
                channel
            }
        };
        PeerServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }
}

fn connect(peer: Peer, tls: PeerTls) -> Channel {
    // The scheme stays http: TLS is ours, below tonic. The name is never resolved.
    let endpoint = Endpoint::from_static("http://peer.nf")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20);
    endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let (peer, tls) = (peer.clone(), tls.clone());
        async move {
            let name = tls.server_name(&peer.name).map_err(io::Error::other)?;
            let stream = TcpStream::connect(&peer.addr).await?;
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(Arc::clone(&tls.client));
            let stream = connector.connect(name, stream).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    }))
}
