//! The audit trail: what was done or refused, by whom, on what evidence. Each entry
//! names the hash of the one before, and its own hash is a leaf of a Merkle tree
//! (RFC 6962), of which the state keeps the right edge. An entry is part of applying
//! its command, so there is no action without its entry. It does not know exports,
//! signatures or clocks; whoever holds a quorum can rewrite the whole trail, and only
//! receipts and checkpoints kept elsewhere show it.

use crate::id::{NodeName, TenantId};
use crate::reason::Reason;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::{self, Write};
use std::sync::Arc;

/// The version of the entry's encoding.
pub const VERSION: u64 = 1;
/// The longest text of an entry, in bytes; longer ones are cut.
pub const MAX_TEXT: usize = 256;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// 64 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let mut out = [0; 32];
        if text.len() != 64 {
            return None;
        }
        for (to, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *to = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(out))
    }

    fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        parts.iter().for_each(|part| hasher.update(part));
        Self(hasher.finalize().into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Each entry writes several: a table costs a fraction of the formatter.
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (to, b) in text.chunks_exact_mut(2).zip(self.0) {
            to.copy_from_slice(&[DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
        }
        f.write_str(std::str::from_utf8(&text).expect("hexadecimal digits are text"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The hash of an entry's canonical bytes: an RFC 6962 leaf.
pub fn leaf(canonical: &[u8]) -> Hash {
    Hash::of(&[&[0], canonical])
}

macro_rules! actions {
    ($($name:ident),+ $(,)?) => {
        /// What was done or tried. Append variants.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum Action { $($name),+ }
        impl Action {
            pub fn token(self) -> &'static str {
                match self { $(Action::$name => stringify!($name)),+ }
            }
        }
    };
}

actions! {
    JobSchedule, JobStop, JobPreempt,
    ServiceScale, RolloutStart, RolloutPause, RolloutRevert,
    NodeRegister, NodeCordon, NodeUncordon, NodeDrain,
    TenantCreate, TenantDelete, QuotaSet, PolicySet,
    ModelPublish, ModelApprove, ModelRevoke, ModelRollback,
    ConsentGrant, ConsentRevoke,
    MemberJoin, MemberPromote, MemberRemove, LeaderTransfer, SnapshotRestore, LevelFinalize,
    TokenCreate, TokenRevoke, JoinTokenCreate, CertificateIssue,
    Read,
    ClusterInit,
    // A call that was refused before it became anything else.
    Call,
    // An operator says that a silent node is dead.
    NodeGiveUp,
    // An operator leaves a device alone, or takes it back.
    DeviceQuarantine, DeviceHeal,
    // A running replica is moved because a person asked for it.
    JobMove,
    // A node has removed copies of personal data.
    CopyPurge,
    RolloutResume, RolloutPromote,
    JoinTokenRevoke,
    // A version first became Ready in a job or rollout, or was not what its manifest says.
    ModelDeploy,
    // A version leaves the quarantine that a node's finding put it into.
    ModelRelease,
}

/// Who acted. Values that could be used again (tokens) are there as an HMAC only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    pub subject: Arc<str>,
    pub tenant: Option<TenantId>,
    /// HMAC of the token's id under the group's salt.
    pub token: Option<Hash>,
    /// The member or worker through which the call came.
    pub node: Option<NodeName>,
    /// Who vouches for the subject: names are one person's within one issuer alone.
    pub issuer: Option<Arc<str>>,
}

/// Somebody, as far as they can be told from others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Person {
    pub issuer: Option<Arc<str>>,
    pub subject: Arc<str>,
}

impl Actor {
    pub fn person(&self) -> Person {
        Person { issuer: self.issuer.clone(), subject: self.subject.clone() }
    }

    /// Under what a token's id is in the trail, so that entries of one token are told to be one's: an HMAC by the
    /// group's key, since ids may be guessed. `None`: an older group has none yet; then it is a digest.
    pub fn token_hmac(key: Option<&[u8; 32]>, cluster: &str, id: &str) -> Hash {
        match key {
            Some(key) => hmac(key, &[b"nf audit token\0", id.as_bytes()]),
            None => Hash::of(&[b"nf audit token\0", cluster.as_bytes(), b"\0", id.as_bytes()]),
        }
    }
}

/// HMAC-SHA256 (RFC 2104), of a key no longer than a block.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Hash {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let (inner, outer) = (pad(0x36), pad(0x5c));
    let within = Hash::of(&[&[&inner[..]], parts].concat());
    Hash::of(&[&outer, &within.0])
}

/// What one of P1–P7 said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    Pass,
    Block,
    #[default]
    Na,
    Simulated,
    Waived,
}

impl Verdict {
    pub fn token(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Block => "block",
            Verdict::Na => "na",
            Verdict::Simulated => "simulated",
            Verdict::Waived => "waived",
        }
    }
}

/// One policy's verdict with the code that explains it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub verdict: Verdict,
    pub code: Option<Reason>,
}

/// The evidence, by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refs {
    pub manifest: Option<Hash>,
    pub signature: Option<Hash>,
    pub key_id: Option<Arc<str>>,
    pub approval: Option<Hash>,
}

/// What is told of an action, before it has its place in the trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since 1970, as the leader stamped the command.
    pub at_ms: u64,
    pub actor: Actor,
    pub action: Action,
    /// Kind and id, such as `job/t1/01j8`.
    pub object: Arc<str>,
    /// P1 to P7, in this order.
    pub checks: [Check; 7],
    pub refs: Refs,
    /// None: done. A refusal of the same thing by the same actor is counted, not repeated.
    pub refused: Option<Reason>,
    /// How often within the minute, from 1.
    pub count: u32,
}

/// A record in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts from 1 without gaps.
    pub seq: u64,
    /// The hash of the entry before; zeros for the first.
    pub prev: Hash,
    pub record: Record,
}

/// Writes RFC 8785 JSON of texts, whole numbers and objects, whose names the caller gives in order.
struct Canonical(String);

impl Canonical {
    fn text(&mut self, text: &str) {
        self.0.push('"');
        // Nearly every text is clean, and each member writes a dozen of them per command.
        if text.bytes().all(|b| b >= b' ' && b != b'"' && b != b'\\') {
            self.0.push_str(text);
        } else {
            text.chars().for_each(|c| self.escaped(c));
        }
        self.0.push('"');
    }

    fn escaped(&mut self, c: char) {
        match c {
            '"' => self.0.push_str("\\\""),
            '\\' => self.0.push_str("\\\\"),
            '\u{8}' => self.0.push_str("\\b"),
            '\u{c}' => self.0.push_str("\\f"),
            '\n' => self.0.push_str("\\n"),
            '\r' => self.0.push_str("\\r"),
            '\t' => self.0.push_str("\\t"),
            c if c < ' ' => self.0.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => self.0.push(c),
        }
    }

    /// Names are our own, and clean.
    fn name(&mut self, name: &str) {
        if !self.0.ends_with('{') {
            self.0.push(',');
        }
        self.0.extend(["\"", name, "\":"]);
    }

    fn field(&mut self, name: &str, text: &str) {
        self.name(name);
        self.text(text);
    }

    /// Absent values are left out: there is one way to say nothing.
    fn maybe(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.field(name, text);
        }
    }

    fn digest(&mut self, name: &str, digest: Option<Hash>) {
        if let Some(digest) = digest {
            self.name(name);
            let _ = write!(self.0, "\"{digest}\"");
        }
    }

    fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        self.0.push_str(&number.to_string());
    }

    fn object(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.name(name);
        self.0.push('{');
        fill(self);
        self.0.push('}');
    }
}

/// At most [`MAX_TEXT`] bytes, cut between characters.
fn bounded(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

impl Entry {
    /// The bytes that are hashed: RFC 8785 JSON. Names are in order here, which a test holds.
    pub fn canonical(&self) -> Vec<u8> {
        let record = &self.record;
        let mut out = Canonical(String::with_capacity(1024));
        out.0.push('{');
        out.field("action", record.action.token());
        out.object("actor", |out| {
            out.maybe("iss", record.actor.issuer.as_deref().map(bounded));
            out.maybe("node", record.actor.node.as_ref().map(NodeName::as_str));
            out.field("sub", bounded(&record.actor.subject));
            out.maybe("tenant_id", record.actor.tenant.as_ref().map(TenantId::as_str));
            out.digest("token_hmac", record.actor.token);
        });
        out.object("checks", |out| {
            for (name, check) in ["P1", "P2", "P3", "P4", "P5", "P6", "P7"].iter().zip(&record.checks) {
                out.object(name, |out| {
                    out.maybe("code", check.code.map(Reason::token));
                    out.field("verdict", check.verdict.token());
                });
            }
        });
        out.number("count", u64::from(record.count));
        out.field("object", bounded(&record.object));
        out.digest("prev", Some(self.prev));
        out.object("refs", |out| {
            out.digest("approval", record.refs.approval);
            out.maybe("key_id", record.refs.key_id.as_deref().map(bounded));
            out.digest("manifest", record.refs.manifest);
            out.digest("signature", record.refs.signature);
        });
        out.field("result", record.refused.map_or("done", Reason::token));
        out.number("seq", self.seq);
        out.number("time_ms", record.at_ms);
        out.number("v", VERSION);
        out.0.push('}');
        out.0.into_bytes()
    }

    pub fn hash(&self) -> Hash {
        leaf(&self.canonical())
    }
}

/// What a caller keeps: an entry was at this place with this hash. Written `seq:hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub seq: u64,
    pub hash: Hash,
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl std::str::FromStr for Receipt {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (seq, hash) = text.split_once(':')?;
            let number = seq.parse().ok().filter(|n: &u64| n.to_string() == seq)?;
            Some(Self { seq: number, hash: Hash::parse(hash)? })
        };
        read().ok_or("a receipt is SEQ:HASH, as X-NF-Audit had it")
    }
}

/// The right edge of the Merkle tree: one hash for each bit of the size that is
/// set, the widest subtree first. At most 64 hashes, whatever the trail's length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        // As a carry runs through a binary counter, each full pair becomes one subtree.
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("a set bit of the size has its peak");
            node = Hash::of(&[&[1], &left.0, &node.0]);
        }
        self.peaks.push(node);
        self.size += 1;
    }

    /// The tree's root (RFC 6962 section 2.1).
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else { return Hash::of(&[]) };
        peaks.fold(*last, |right, left| Hash::of(&[&[1], &left.0, &right.0]))
    }
}

/// Where the trail ends: part of the state, equal on every member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    head: Hash,
    frontier: Frontier,
}

impl Chain {
    pub fn seq(&self) -> u64 {
        self.frontier.size
    }

    /// Whether it can be gone on with: as many peaks as its size has bits.
    pub(crate) fn is_sound(&self) -> bool {
        self.frontier.peaks.len() == self.frontier.size.count_ones() as usize
    }

    pub fn head(&self) -> Hash {
        self.head
    }

    /// For tests of who finds it.
    pub(crate) fn flip(&mut self) {
        self.head.0[0] ^= 1;
    }

    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// Gives a record its place.
    pub fn append(&mut self, record: Record) -> (Entry, Receipt) {
        let entry = Entry { seq: self.seq() + 1, prev: self.head, record };
        let hash = entry.hash();
        self.head = hash;
        self.frontier.push(hash);
        let receipt = Receipt { seq: entry.seq, hash };
        (entry, receipt)
    }

    /// Where the trail ends now, for people and other machines to keep.
    pub fn checkpoint(&self, origin: &str) -> Checkpoint {
        Checkpoint { origin: bounded(origin).into(), size: self.seq(), head: self.head, root: self.root() }
    }
}

/// The end of a trail, as it is signed and mirrored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Which group's trail.
    pub origin: Arc<str>,
    pub size: u64,
    pub head: Hash,
    pub root: Hash,
}

/// What is wrong with a trail, at which place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("seq {expected} is missing: {found} is in its place (a line was removed, added or moved)")]
    Order { expected: u64, found: u64 },
    #[error("seq {seq} was changed: its hash is {is}, told is {told}")]
    Changed { seq: u64, is: Hash, told: Hash },
    #[error("seq {seq} does not follow the entry before it: that one has another hash (one of the two was replaced)")]
    Prev { seq: u64 },
    #[error("seq {seq} is not what the receipt says; the trail was rewritten since")]
    Receipt { seq: u64 },
    #[error("seq {seq}, of which there is a receipt, is not in the export")]
    NoEntry { seq: u64 },
    #[error("the export ends at seq {found}, and its checkpoint at {size}: it was cut after seq {found}")]
    Cut { found: u64, size: u64 },
    #[error("the checkpoint at seq {size} has another {what} than these entries")]
    Checkpoint { size: u64, what: &'static str },
}

impl Fault {
    /// The first bad place.
    pub fn seq(&self) -> u64 {
        match self {
            Fault::Order { expected, .. } => *expected,
            Fault::Changed { seq, .. } | Fault::Prev { seq } | Fault::Receipt { seq } | Fault::NoEntry { seq } => *seq,
            Fault::Cut { found, .. } => found + 1,
            Fault::Checkpoint { size, .. } => *size,
        }
    }
}

/// Holds a trail against itself, entry by entry, from the first one.
#[derive(Clone, Debug, Default)]
pub struct Auditor {
    chain: Chain,
}

impl Auditor {
    pub fn seq(&self) -> u64 {
        self.chain.seq()
    }

    pub fn head(&self) -> Hash {
        self.chain.head()
    }

    pub fn root(&self) -> Hash {
        self.chain.root()
    }

    /// The next entry: its canonical bytes, the place, the predecessor and the hash that it tells.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take(&mut self, canonical: &[u8], seq: u64, prev: Hash, told: Hash) -> Result<Receipt, Fault> {
        let expected = self.seq() + 1;
        if seq != expected {
            return Err(Fault::Order { expected, found: seq });
        }
        let is = leaf(canonical);
        if is != told {
            return Err(Fault::Changed { seq, is, told });
        }
        if prev != self.head() {
            return Err(Fault::Prev { seq });
        }
        self.chain.head = is;
        self.chain.frontier.push(is);
        Ok(Receipt { seq, hash: is })
    }

    /// The trail ends here, and a checkpoint of this place must agree.
    ///
    /// # Errors
    /// When it was cut, or the checkpoint is of another trail.
    pub fn end(&self, checkpoint: &Checkpoint) -> Result<(), Fault> {
        let size = checkpoint.size;
        if size != self.seq() {
            return Err(Fault::Cut { found: self.seq(), size });
        }
        match (checkpoint.head == self.head(), checkpoint.root == self.root()) {
            (true, true) => Ok(()),
            (false, _) => Err(Fault::Checkpoint { size, what: "head" }),
            (true, false) => Err(Fault::Checkpoint { size, what: "Merkle root" }),
        }
    }
}

#[cfg(test)]
mod tests;
