//! Asks a replica over HTTP whether it is well. A 2xx within the time limit is
//! yes; anything else is no. It does not know what follows from the answer.

use nf_core::node::address;
use std::time::Duration;

/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// One question, asked again and again.
#[derive(Clone)]
pub(super) struct Probe {
    client: reqwest::Client,
    /// None: the replica has no port, so there is nobody to ask, and living is enough.
    url: Option<String>,
}

impl Probe {
    pub(super) fn new(client: reqwest::Client, host: &str, port: Option<u16>, path: &str) -> Self {
        Self { client, url: port.map(|port| format!("http://{}{path}", address(host, port))) }
    }

    /// A client for probes: no proxy from the environment may stand between, and
    /// a redirect is not a yes.
    pub(super) fn client() -> std::io::Result<reqwest::Client> {
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            // A connection that stays open would hold up a server that drains, and a new
            // one asks more of it: that it still accepts.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(std::io::Error::other)
    }

    pub(super) async fn is_well(&self) -> bool {
        let Some(url) = &self.url else { return true };
        self.client.get(url).send().await.is_ok_and(|answer| answer.status().is_success())
    }
}
