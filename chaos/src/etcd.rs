//! The peer we compare with: three etcd members on loopback, default durability,
//! and a client that puts values. Only the two fields of the API that are used
//! are declared. It knows nothing of Neural Fabric.

use crate::eventually::eventually;
use crate::load::Client;
use crate::process::{self, Process, Recipe};
use crate::{ports, wire};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tonic::transport::Channel;

/// Three members.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Process>,
    pub urls: Vec<String>,
}

impl Etcd {
    pub async fn start(dir: &Path) -> Result<Self> {
        let (clients, peers) = (ports::free(3)?, ports::free(3)?);
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let initial: Vec<String> = peers.iter().enumerate().map(|(i, p)| format!("e{i}={}", url(p))).collect();
        let mut members = Vec::new();
        for (i, (client, peer)) in clients.iter().zip(&peers).enumerate() {
            let data = dir.join(format!("e{i}"));
            let flags = [
                ("--name", format!("e{i}")),
                ("--data-dir", data.display().to_string()),
                ("--listen-client-urls", url(client)),
                ("--advertise-client-urls", url(client)),
                ("--listen-peer-urls", url(peer)),
                ("--initial-advertise-peer-urls", url(peer)),
                ("--initial-cluster", initial.join(",")),
                ("--initial-cluster-state", "new".to_owned()),
            ];
            members.push(Process::start(Recipe {
                name: format!("e{i}"),
                program: "etcd".into(),
                args: flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect(),
                env: BTreeMap::new(),
                log: dir.join(format!("e{i}.log")),
            })?);
        }
        let etcd = Self { members, urls: clients.iter().map(url).collect() };
        eventually("etcd has a leader", Duration::from_secs(15), || async {
            let mut clients = etcd.clients(1, 1).await?;
            clients[0].call().await.map_err(anyhow::Error::msg)
        })
        .await
        .with_context(|| etcd.members[0].tail())?;
        Ok(etcd)
    }

    /// `clients` clients on `connections` connections, spread over the members.
    pub async fn clients(&self, clients: usize, connections: usize) -> Result<Vec<Putter>> {
        let channels = wire::channels(&self.urls, connections).await?;
        let putter = |n: usize| Putter { channel: channels[n % channels.len()].clone(), n, count: 0 };
        Ok((0..clients).map(putter).collect())
    }

    /// Ends all members.
    pub async fn stop(self) -> Result<()> {
        for member in self.members {
            member.stop(Duration::from_secs(5)).await?;
        }
        Ok(())
    }

    /// Processor time of all members.
    pub fn cpu(&self) -> Result<Duration> {
        self.members.iter().map(|m| process::cpu(m.pid)).sum()
    }
}

/// Puts a value of 256 bytes under a key that no other client uses.
#[derive(Debug)]
pub struct Putter {
    channel: Channel,
    n: usize,
    count: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

impl Client for Putter {
    async fn call(&mut self) -> Result<(), String> {
        self.count += 1;
        let key = format!("bench/{}/{}", self.n, self.count).into_bytes();
        let request = PutRequest { key, value: vec![b'x'; 256] };
        let answer: Result<PutResponse, _> = wire::unary(&self.channel, &None, "/etcdserverpb.KV/Put", request).await;
        answer.map(|_| ()).map_err(|status| status.to_string())
    }
}
