//! Who is who: keys and certificates. It does not know what the connections carry.

pub mod signing;
pub mod tls;
