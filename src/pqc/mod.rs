//! Key exchange on every link: which groups `PQC_MODE` allows, on a link inside the group and on one to
//! others, and what a failed handshake says about the two ends' modes. All TLS of this process, server or
//! client, takes its provider from here. It does not judge certificates, or know who listens.

mod links;
pub mod stream;

pub use links::{Families, Kind, Links, Open, Row, Way};

use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{AlertDescription, CommonState, Error as TlsError, InvalidMessage, NamedGroup, PeerIncompatible};
use std::fmt;
use std::io;
use std::sync::Arc;

/// The group of a connection that has no key exchange.
pub const NONE: &str = "none";

/// `PQC_MODE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// X25519MLKEM768 (draft-ietf-tls-ecdhe-mlkem), which holds as long as one of its two halves does.
    #[default]
    Hybrid,
    /// X25519 and P-256: whoever records today may read once there are quantum computers.
    Classical,
    /// No TLS inside the group, on this machine alone: nobody proves who they are.
    Off,
}

impl Mode {
    pub fn parse(text: &str) -> Result<Self, String> {
        let all = [Mode::Hybrid, Mode::Classical, Mode::Off];
        let found = all.into_iter().find(|mode| text.eq_ignore_ascii_case(mode.name()));
        found.ok_or_else(|| "hybrid, classical or off".into())
    }

    pub fn name(self) -> &'static str {
        match self {
            Mode::Hybrid => "hybrid",
            Mode::Classical => "classical",
            Mode::Off => "off",
        }
    }
}

/// Who is at the other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Members and workers: one operator sets both ends, so that nothing is left to be negotiated.
    Group,
    /// Callers, stores, Vault, issuers of tokens: what they speak is theirs to say.
    World,
}

/// What this process was told about key exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub mode: Mode,
    /// `PQC_STRICT`: hybrid is wanted of the world, too.
    pub strict: bool,
}

impl From<Mode> for Policy {
    fn from(mode: Mode) -> Self {
        Self { mode, strict: false }
    }
}

impl Policy {
    /// The groups of a link, the first one preferred. In mode off they are those of links that have TLS
    /// all the same, such as an https store.
    fn groups(self, side: Side) -> Vec<&'static dyn SupportedKxGroup> {
        let hybrid = kx_group::X25519MLKEM768;
        match (self.mode, side) {
            (Mode::Hybrid, Side::Group) => vec![hybrid],
            (Mode::Hybrid, Side::World) if self.strict => vec![hybrid],
            (Mode::Hybrid, Side::World) => vec![hybrid, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
            (Mode::Classical | Mode::Off, Side::Group) => vec![kx_group::X25519, kx_group::SECP256R1],
            (Mode::Classical | Mode::Off, Side::World) => {
                vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]
            }
        }
    }

    /// The provider for a link: no other one is used for any.
    pub fn provider(self, side: Side) -> Arc<CryptoProvider> {
        Arc::new(CryptoProvider { kx_groups: self.groups(side), ..aws_lc_rs::default_provider() })
    }

    /// As people set it, with what it allows.
    fn told(self, side: Side) -> String {
        let strict = if self.strict { " and PQC_STRICT" } else { "" };
        let groups: Vec<String> = self.groups(side).iter().map(|group| group_name(group.name())).collect();
        format!("PQC_MODE={}{strict} ({})", self.mode.name(), groups.join(", "))
    }

    /// What a failed handshake says when it is the two ends' key exchange that does not fit; `offered` are
    /// the groups of a client, where it came so far. Other errors stay as they are.
    pub fn judge(self, side: Side, offered: Option<&[NamedGroup]>, error: io::Error) -> io::Error {
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) else { return error };
        let found = match tls {
            TlsError::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => {
                let names: Vec<String> =
                    offered.unwrap_or_default().iter().take(8).map(|one| group_name(*one)).collect();
                match names.is_empty() {
                    true => "the other end offers none of these".to_owned(),
                    false => format!("the other end offers {}", names.join(", ")),
                }
            }
            // A server does not say which: for ours it is the key exchange.
            TlsError::AlertReceived(AlertDescription::HandshakeFailure) => {
                "the other end refused the handshake, most likely because it has none of these".to_owned()
            }
            TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => {
                "the other end speaks no TLS, as with PQC_MODE=off".to_owned()
            }
            _ => return error,
        };
        self.mismatch(side, &found)
    }

    /// The refusal of a link whose ends do not fit.
    pub fn mismatch(self, side: Side, found: &str) -> io::Error {
        let next = match side {
            Side::Group => "set the same PQC_MODE on all members and workers, and start them again",
            Side::World if self.strict => "let it offer X25519MLKEM768 (OpenSSL from 3.5 on does), or unset PQC_STRICT",
            Side::World => "let it offer one of ours",
        };
        io::Error::new(
            io::ErrorKind::ConnectionRefused,
            Mismatch(format!("this process has {}: {found}; {next}", self.told(side))),
        )
    }
}

/// The two ends of a link were not told the same: trying again is of no use.
#[derive(Debug, thiserror::Error)]
#[error("no key exchange: {0}")]
pub struct Mismatch(String);

impl Mismatch {
    /// The mismatch in an error of a connection.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// As in "X25519MLKEM768"; numbers that nobody knows stay numbers.
fn group_name(group: NamedGroup) -> String {
    match group {
        NamedGroup::Unknown(number) => format!("0x{number:04X}"),
        known => format!("{known:?}"),
    }
}

/// The key exchange of a connection that was made.
pub fn group(connection: &CommonState) -> String {
    connection.negotiated_key_exchange_group().map_or_else(|| NONE.to_owned(), |group| group_name(group.name()))
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_modes() {
        let names = |policy: Policy, side| -> Vec<String> {
            policy.groups(side).iter().map(|group| group_name(group.name())).collect()
        };
        let strict = Policy { mode: Mode::Hybrid, strict: true };
        assert_eq!(names(Mode::Hybrid.into(), Side::Group), ["X25519MLKEM768"]);
        assert_eq!(names(strict, Side::World), ["X25519MLKEM768"]);
        assert_eq!(names(Mode::Hybrid.into(), Side::World), ["X25519MLKEM768", "X25519", "secp256r1", "secp384r1"]);
        for mode in [Mode::Classical, Mode::Off] {
            assert_eq!(names(mode.into(), Side::Group), ["X25519", "secp256r1"]);
            assert_eq!(names(mode.into(), Side::World), ["X25519", "secp256r1", "secp384r1"]);
            assert_eq!(Mode::parse(&mode.to_string().to_uppercase()), Ok(mode));
        }
        assert!(Mode::parse("").is_err() && Mode::parse("strong").is_err());
    }

    #[test]
    fn a_mismatch_names_the_mode_what_was_offered_and_the_next_step() {
        let error = |tls: TlsError| io::Error::new(io::ErrorKind::InvalidData, tls);
        let none = || error(TlsError::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon));
        let offered = [NamedGroup::X25519, NamedGroup::Unknown(0x2A2A)];
        let told = Policy::from(Mode::Hybrid).judge(Side::Group, Some(&offered), none());
        assert!(Mismatch::of(&told).is_some());
        let text = told.to_string();
        for word in ["PQC_MODE=hybrid (X25519MLKEM768)", "offers X25519, 0x2A2A", "set the same PQC_MODE"] {
            assert!(text.contains(word), "{text}");
        }
        let strict = Policy { mode: Mode::Hybrid, strict: true };
        let text = strict.judge(Side::World, None, none()).to_string();
        assert!(text.contains("PQC_STRICT (X25519MLKEM768)") && text.contains("or unset PQC_STRICT"), "{text}");
        let other = Policy::default().judge(Side::Group, None, error(TlsError::DecryptError));
        assert!(Mismatch::of(&other).is_none(), "{other}");
    }
}
