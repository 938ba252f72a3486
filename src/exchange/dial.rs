//! How to reach a member. The exchange does not know keys or certificates; whoever
//! starts it says how connections are made.

use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Connecting may take this long.
pub const CONNECT: Duration = Duration::from_secs(2);
/// Silence after which a connection is probed, and how long the answer may take.
pub const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));

/// A member as a place to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The member's name, which its certificate must carry; None: any member of the group.
    pub name: Option<String>,
    /// `host:port` of its peer listener.
    pub peer: String,
}

/// Makes connections.
pub trait Dial: Send + Sync + 'static {
    /// A channel that connects when it is first used, and again after a loss.
    ///
    /// # Errors
    /// When the address can't be one.
    fn channel(&self, to: &Address) -> Result<Channel, String>;
}

/// Connections without TLS, for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Dial for Plain {
    fn channel(&self, to: &Address) -> Result<Channel, String> {
        let endpoint = Endpoint::from_shared(format!("http://{}", to.peer)).map_err(|e| format!("{}: {e}", to.peer))?;
        Ok(tuned(endpoint).connect_lazy())
    }
}

/// The settings that every connection has.
pub fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
}
