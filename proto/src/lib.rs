//! Generated types of the public (`v1`) and the member-to-member (`internal`) interfaces.
#![allow(clippy::all, missing_docs)]

/// Public, additive only.
pub mod v1 {
    tonic::include_proto!("neuralfabric.v1");
}

/// Member to member; versions N and N+1 speak it with each other.
pub mod internal {
    tonic::include_proto!("neuralfabric.internal.v1");
}

/// For gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/neuralfabric.bin"));
