//! Racks, zones and regions: which of them a node is in, and which kind of them a job wants
//! all its replicas to share, whichever it is. A node says where it is when it registers; one
//! that does not name its rack is in none. It knows no capacity and looks for no place.

use crate::id::{Label, NodeNo};
use crate::job::JobSpec;
use crate::state::State;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How wide a domain is. The order is that of their width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    Rack,
    Zone,
    Region,
}

impl Level {
    pub const ALL: [Level; 3] = [Level::Rack, Level::Zone, Level::Region];

    pub fn name(self) -> &'static str {
        match self {
            Level::Rack => "rack",
            Level::Zone => "zone",
            Level::Region => "region",
        }
    }

    /// The level of the name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// This level and those above it, the narrowest first.
    pub fn and_wider(self) -> impl Iterator<Item = Level> {
        Self::ALL.into_iter().filter(move |level| *level >= self)
    }
}

/// What a job wants of the domains that its replicas are in. Neither: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Topology {
    /// All in one domain of this level, or they wait.
    pub required: Option<Level>,
    /// In one of this level if there is one with room for all of them, else in as few as can be.
    pub preferred: Option<Level>,
}

impl Topology {
    pub fn is_any(self) -> bool {
        self == Self::default()
    }
}

/// Where a node says that it is: region, zone and rack.
pub type Names<'a> = [Option<&'a Label>; 3];

/// One rack, zone or region. A rack is told apart by all the names above it, too: racks of two zones may be
/// called alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Domain {
    level: Level,
    /// Region, zone and rack, as far as the level goes.
    names: [Option<Label>; 3],
}

impl Domain {
    /// The domain of that level that such a node is in; None where it does not name one.
    pub fn of(level: Level, [region, zone, rack]: Names<'_>) -> Option<Self> {
        let names = match level {
            Level::Rack => [region, zone, Some(rack?)],
            Level::Zone => [region, Some(zone?), None],
            Level::Region => [Some(region?), None, None],
        };
        Some(Self { level, names: names.map(Option::<&Label>::cloned) })
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// The least domain of that level, for ranges in their order.
    pub(crate) fn first_of(level: Level) -> Self {
        Self { level, names: [None, None, None] }
    }

    /// Whether such a node is in it.
    pub fn has(&self, names: Names<'_>) -> bool {
        Self::of(self.level, names).is_some_and(|of| of == *self)
    }

    /// Region, zone and rack of its nodes, as far as it says them.
    pub fn names(&self) -> Names<'_> {
        self.names.each_ref().map(Option::as_ref)
    }
}

impl fmt::Display for Domain {
    /// `rack z1/r1`: what it is, and its name below those above it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: Vec<&str> = self.names.iter().flatten().map(Label::as_str).collect();
        write!(f, "{} {}", self.level.name(), path.join("/"))
    }
}

/// Whether such places keep a job's replicas together as it requires. `others`: where those of its replicas are
/// that have a place already.
pub fn keeps(state: &State, spec: &JobSpec, others: &[NodeNo], places: impl IntoIterator<Item = NodeNo>) -> bool {
    let Some(level) = spec.constraints.topology.required else { return true };
    let domain = |no: NodeNo| Domain::of(level, state.node(no)?.spec.names());
    let mut places = places.into_iter().map(domain);
    let Some(first) = places.next() else { return true };
    let together = first.is_some() && places.all(|place| place == first);
    // A node may have been moved to another rack meanwhile: beside any of them is beside them.
    together && (others.is_empty() || others.iter().any(|no| domain(*no) == first))
}
