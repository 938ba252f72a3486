//! Which key exchange the connections of a process have, as `/health` says it. It makes no connection.

use crate::pqc::{Links, Policy};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Lines that are listed; the others are counted.
const MOST: usize = 100;

/// The connections of this process, by key exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinksBody {
    /// `hybrid`, `classical` or `off`.
    pub pqc_mode: String,
    /// Whether hybrid is wanted of stores, Vault and issuers, too.
    pub pqc_strict: bool,
    pub open: Vec<LinkBody>,
    /// Connections that are open and not listed, where there are too many.
    pub unlisted: u64,
    /// How many there were since the start, the open ones included.
    pub made: Vec<MadeBody>,
    /// What failed since the start because the two ends' settings do not fit.
    pub refused: Vec<RefusedBody>,
}

/// Connections that are open and have all of this in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkBody {
    /// `peer`, `public`, `store`, `vault`, `issuer` or `collector`.
    pub kind: String,
    /// `in`: the other end asked for it; `out`: this process did.
    pub direction: String,
    /// The name in the other end's certificate, or the host that was asked; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<String>,
    /// As in `X25519MLKEM768`; `none` for plain text.
    pub kx_group: String,
    pub connections: u64,
}

/// Connections since the start that have all of this in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MadeBody {
    pub kind: String,
    pub direction: String,
    pub kx_group: String,
    pub count: u64,
}

/// Links that failed for want of a common key exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedBody {
    pub kind: String,
    pub direction: String,
    pub count: u64,
    /// With whom the last one was, why it failed, and what to do.
    pub last: String,
}

impl LinksBody {
    pub fn of(policy: Policy, links: &[Links]) -> Self {
        let rows: Vec<_> = links.iter().flat_map(Links::open).collect();
        let unlisted = rows.iter().skip(MOST).map(|(_, count)| count).sum();
        let open = rows.into_iter().take(MOST).map(|(row, connections)| LinkBody {
            kind: row.kind.name().to_owned(),
            direction: row.way.name().to_owned(),
            with: Some(row.with).filter(|with| !with.is_empty()),
            kx_group: row.group,
            connections,
        });
        let made = links.iter().flat_map(Links::made).map(|(kind, way, kx_group, count)| MadeBody {
            kind: kind.name().to_owned(),
            direction: way.name().to_owned(),
            kx_group,
            count,
        });
        let refused = links.iter().flat_map(Links::refusals).map(|(kind, way, count, last)| RefusedBody {
            kind: kind.name().to_owned(),
            direction: way.name().to_owned(),
            count,
            last,
        });
        Self {
            pqc_mode: policy.mode.to_string(),
            pqc_strict: policy.strict,
            open: open.collect(),
            unlisted,
            made: made.collect(),
            refused: refused.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pqc::{Kind, Row, Way};

    #[test]
    fn many_links_are_a_short_list_and_a_number() {
        let links = Links::default();
        let row = |n: usize| Row { kind: Kind::Peer, way: Way::In, with: format!("w{n}"), group: "X25519".into() };
        let held: Vec<_> = (0..MOST + 7).map(|n| links.opened(row(n))).collect();
        let body = LinksBody::of(Policy::default(), std::slice::from_ref(&links));
        assert_eq!((body.open.len(), body.unlisted, body.pqc_mode.as_str()), (MOST, 7, "hybrid"));
        drop(held);
        assert!(LinksBody::of(Policy::default(), &[links]).open.is_empty());
    }
}
