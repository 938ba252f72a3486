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
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::clock::{GroupClock, boot_us};
use super::shared::Shared;
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
    clock: Arc<GroupClock>,
    channels: Mutex<HashMap<(u64, Lane), (Peer, Channel)>>,
}

impl Peers {
    pub fn new(cluster: String, id: u64, name: String, tls: PeerTls, clock: Arc<GroupClock>) -> Self {
        Self { cluster, id, name, tls, clock, channels: Mutex::default() }
    }

    /// What every call to `to` begins with.
    pub fn route(&self, to: u64) -> pb::Route {
        pb::Route { cluster: self.cluster.clone(), from: self.id, to, name: self.name.clone() }
    }

    /// A peer's clock said `wall_ms` in an answer to what it was asked at `asked_us` ([`boot_us`]).
    pub fn heard_clock(&self, id: u64, wall_ms: u64, asked_us: u64) {
        self.clock.heard(id, wall_ms, asked_us);
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
            let stream = tls.connect(&peer.addr, &peer.name).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    }))
}

/// How often every peer is pinged, and how long it may take.
const PING: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));
/// The first rounds come sooner, as a young group's members meet.
const FIRST_PINGS: [Duration; 4] = [Duration::from_millis(50); 4];

/// Pings all peers on the lane of votes, so that an election finds its connections made: a
/// handshake on a busy machine takes longer than a vote may. Runs until the member stops.
pub async fn keep_warm(shared: Arc<Shared>) {
    let mut stop = shared.stop.subscribe();
    let mut pauses = FIRST_PINGS.into_iter().chain(std::iter::repeat(PING.0));
    loop {
        let members = shared.status().members.into_iter().filter(|m| m.id != shared.me.id);
        let pings = members.map(|member| {
            let peer = Peer { name: member.name, addr: member.peer };
            let mut client = shared.peers.client(member.id.0, &peer, Lane::Control);
            let request = pb::PingRequest { route: Some(shared.peers.route(member.id.0)) };
            let (shared, id, asked) = (&shared, member.id, boot_us());
            async move {
                // For the connection the attempt is enough.
                if let Ok(Ok(reply)) = tokio::time::timeout(PING.1, client.ping(request)).await {
                    shared.clock.heard(id.0, reply.get_ref().now_ms, asked);
                    shared.compare(id, &reply.get_ref().marks);
                }
            }
        });
        let pause = pauses.next().unwrap_or(PING.0);
        tokio::select! {
            _ = futures::future::join_all(pings) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}
