//! What a token claims, each claim with its one type, and what becomes of it: an
//! identity with one tenant and roles. It does not know keys.

use super::{AUDIENCE, Denied, LEEWAY, MAX_LIFETIME};
use nf_core::id::TenantId;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::fmt;

const MAX_TEXT: usize = 256;
const MAX_ROLES: usize = 64;

/// What a caller may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads its tenant.
    Viewer,
    /// Schedules in its tenant.
    Operator,
    /// Approves versions for production.
    Promoter,
    /// Runs nodes, quotas and the cluster.
    Admin,
    /// A machine.
    Node,
}

impl Role {
    pub const ALL: [Role; 5] = [Role::Viewer, Role::Operator, Role::Promoter, Role::Admin, Role::Node];

    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Promoter => "promoter",
            Role::Admin => "admin",
            Role::Node => "node",
        }
    }
}

/// A set of roles. No role contains another: an admin who also schedules is both.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    pub fn has(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().fold(0, |set, role| set | 1 << role as u8))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Role::ALL.iter().filter(|role| self.has(**role)).map(|role| role.name())).finish()
    }
}

/// A verified caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub subject: String,
    pub tenant: TenantId,
    pub roles: Roles,
    pub issuer: String,
    /// By which a token is revoked.
    pub token_id: Option<String>,
    /// Seconds since 1970; [`LEEWAY`] later the token is refused.
    pub expires: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// The claims that are read; others are the issuer's business. A claim that is
/// there twice is refused by the reader of this type.
#[derive(Deserialize)]
pub(super) struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: u64,
    iat: u64,
    #[serde(default, deserialize_with = "there")]
    nbf: Option<u64>,
    #[serde(default, deserialize_with = "there")]
    jti: Option<String>,
    /// Judged apart, since it has a token of its own.
    #[serde(default)]
    tenant_id: Value,
    roles: Vec<String>,
}

/// A claim that may be absent, but not null.
fn there<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

fn plain(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control)
}

/// A tenant's name in a token: letters and digits with single `_` or `-` between them.
fn tenant(value: &Value) -> Option<TenantId> {
    let text = value.as_str()?;
    let separator = |b: u8| b == b'_' || b == b'-';
    let doubled = text.as_bytes().windows(2).any(|pair| separator(pair[0]) && separator(pair[1]));
    if doubled || text.bytes().last().is_none_or(separator) {
        return None;
    }
    TenantId::new(text).ok()
}

impl Claims {
    pub(super) fn check(self, issuer: Option<&str>, now: u64) -> Result<Identity, Denied> {
        if issuer.is_some_and(|issuer| issuer != self.iss) || !plain(&self.iss) {
            return Err(Denied::Issuer);
        }
        let ours = match &self.aud {
            Audience::One(one) => one == AUDIENCE,
            Audience::Several(all) => all.len() <= MAX_ROLES && all.iter().any(|one| one == AUDIENCE),
        };
        if !ours {
            return Err(Denied::Audience);
        }
        let soon = now.saturating_add(LEEWAY);
        if self.exp.saturating_add(LEEWAY) <= now {
            return Err(Denied::Expired);
        }
        if self.iat > soon || self.nbf.is_some_and(|nbf| nbf > soon) {
            return Err(Denied::NotYet);
        }
        if self.exp.saturating_sub(self.iat) > MAX_LIFETIME {
            return Err(Denied::Lifetime);
        }
        if !plain(&self.sub) || self.jti.as_deref().is_some_and(|id| !plain(id)) || self.roles.len() > MAX_ROLES {
            return Err(Denied::Claims);
        }
        let tenant = tenant(&self.tenant_id).ok_or(Denied::Tenant)?;
        // Issuers have roles for other systems, too; a name that is not ours grants nothing.
        let roles = Role::ALL.into_iter().filter(|role| self.roles.iter().any(|name| name == role.name())).collect();
        Ok(Identity { subject: self.sub, tenant, roles, issuer: self.iss, token_id: self.jti, expires: self.exp })
    }
}
