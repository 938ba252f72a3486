//! Who is who, and who signed what: keys, certificates, tokens, signatures, and the
//! audit trail as a file. It does not know what the connections carry.

pub mod audit;
pub mod checkpoint;
mod encoding;
pub mod join;
mod json;
pub mod jwt;
pub mod link;
pub mod notary;
mod note;
pub mod public;
pub mod reload;
pub mod signing;
pub mod tls;
pub mod vault;

pub use crate::secret::{Secret, kept};
