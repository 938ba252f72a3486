//! A member whose data directory was emptied is not the member that it was: which vote
//! it gave is forgotten, so it could give it twice, and what it acknowledged is gone.
//! Before a fresh directory is used under an id, the group is asked whether it knows
//! that member. A group that nobody can be asked of is one that is being formed.

use super::identity::{self, Me};
use super::links::TlsDial;
use crate::config::{Error as ConfigError, Settings};
use crate::exchange::dial::{Address, Dial};
use crate::storage;
use anyhow::Result;
use nf_core::id::MemberId;
use nf_proto::internal as pb;
use pb::peer_service_client::PeerServiceClient;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::Code;

/// How long connecting may take. Who is not up refuses at once; who is away is not waited for.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a founder that is up may take to answer, since it may just be starting, or busy; all are asked at once.
const ANSWER: Duration = Duration::from_secs(10);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// The refusal of a fresh directory under the name of a member that had data.
pub fn refusal(settings: &Settings, id: MemberId) -> anyhow::Error {
    let (name, dir) = (settings.name(), settings.data());
    let text = format!(
        "NF_DATA_DIR {} is empty, but member {name} (id {}) has been in this group: its vote is lost with its data. \
         Remove it (nf cluster remove {name}), then let it join under a new name and id (nf cluster join)",
        dir.display(),
        id.0
    );
    ConfigError::Clash(text).into()
}

/// Refuses to start a founder on a fresh directory when another founder knows it. Call
/// it before the ports are bound: founders that start together must not wait for one another.
pub async fn check_founder(settings: &Settings) -> Result<()> {
    let founders = settings.members.value.as_slice();
    let Some(id) = identity::founder_id(settings, founders).filter(|_| founders.len() > 1) else { return Ok(()) };
    if storage::identity::formatted(&settings.data().join("raft")) {
        return Ok(());
    }
    let me = Me::new(settings, id, settings.public(), settings.peer())?;
    let others = founders.iter().enumerate().filter(|(_, founder)| founder.name != me.name.as_str());
    let asked = others.map(|(place, founder)| {
        let address = Address { name: Some(founder.name.clone()), peer: founder.peer.clone() };
        knows(&me, MemberId(place as u64 + 1), address)
    });
    match futures::future::join_all(asked).await.contains(&true) {
        true => Err(refusal(settings, id)),
        false => Ok(()),
    }
}

/// Whether that founder's group has heard of us. One that is not up, or in no group yet, has not.
async fn knows(me: &Me, to: MemberId, address: Address) -> bool {
    let dial = TlsDial { tls: me.tls.clone(), names: Default::default() };
    let Ok(channel) = dial.channel(&address) else { return false };
    let route = pb::Route { cluster: me.cluster.clone(), from: me.id.0, to: to.0, name: me.name.to_string() };
    let up = tokio::time::timeout(CONNECT, TcpStream::connect(&address.peer)).await;
    if !matches!(up, Ok(Ok(_))) {
        return false;
    }
    let mut client = PeerServiceClient::new(channel);
    let asking = async {
        loop {
            match client.ping(pb::PingRequest { route: Some(route.clone()) }).await {
                Ok(reply) => return reply.get_ref().introduced,
                // It is in another group, or in none yet, or in one without us.
                Err(status) if status.code() == Code::PermissionDenied => return false,
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    };
    tokio::time::timeout(ANSWER, asking).await.unwrap_or_else(|_| {
        tracing::warn!(peer = address.peer, "a founder that is up did not say whether it knows this member");
        false
    })
}
