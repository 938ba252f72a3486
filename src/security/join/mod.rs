//! How a machine that has nothing but a token gets a certificate: the token's text, the
//! request that it makes and the key that stays with it, the member it may trust with the
//! secret, and the key by which members certify workers. It does not know whether a token
//! counts (the log says so), nor what the connections carry.

mod issuer;
mod pin;
mod request;
mod token;

pub use issuer::{Issuer, Life};
pub use pin::client;
pub use request::{Applicant, Wish};
pub use token::{Token, id as token_id};

/// The protocol (ALPN) of a machine that has no certificate yet.
pub const JOIN: &[u8] = b"nf-join/1";
/// The one of a worker whose certificate is to be renewed.
pub const RENEW: &[u8] = b"nf-renew/1";

/// At which of a member's doors somebody is. They are told apart before any certificate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Members and workers: gRPC.
    Peer,
    /// Strangers: nothing but joining.
    Join,
    /// Workers: nothing but renewing.
    Renew,
}

impl Door {
    /// By the protocols that a client offers. Who offers several is at the first one's door.
    pub fn of<'a>(mut offered: impl Iterator<Item = &'a [u8]>) -> Self {
        match offered.next() {
            Some(JOIN) => Door::Join,
            Some(RENEW) => Door::Renew,
            _ => Door::Peer,
        }
    }
}

#[cfg(test)]
mod tests;
