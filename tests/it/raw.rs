//! Calls of gRPC without types of ours: what the descriptors say of a method is enough to ask it about somebody's things,
//! so that no method has to be named to be asked. It knows neither the gate nor what an answer should be.

use bytes::{Buf, BufMut};
use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet, MethodDescriptorProto};
use std::time::Duration;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;

/// A digest, of whatever.
pub const SHA256: &str = "abababababababababababababababababababababababababababababababab";
/// Of a stream the next message is waited for so long.
const MOMENT: Duration = Duration::from_millis(500);

/// Whose things a call is about, by the tenant that it names and the job. None: it names none.
#[derive(Clone, Copy)]
pub struct About<'a> {
    pub tenant: Option<&'a str>,
    pub job: &'a str,
}

/// Methods whose request id is of a job that is to be, or says which rows of a list are wanted.
const NAME_NO_JOB: &[&str] = &["/neuralfabric.v1.SchedulerService/Schedule", "/neuralfabric.v1.EndpointService/Watch"];

/// Messages as bytes, whatever is in them.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

/// What the descriptors say of our methods.
pub struct Methods(FileDescriptorSet);

impl Methods {
    pub fn new() -> Self {
        Self(FileDescriptorSet::decode(nf_proto::DESCRIPTORS).unwrap())
    }

    fn of(&self, path: &str) -> Option<&MethodDescriptorProto> {
        let services = self.0.file.iter().flat_map(|file| file.service.iter().map(move |s| (file.package(), s)));
        let mut methods = services.flat_map(|(package, service)| {
            service.method.iter().map(move |m| (format!("/{package}.{}/{}", service.name(), m.name()), m))
        });
        methods.find(|(of, _)| of == path).map(|(_, method)| method)
    }

    fn message(&self, name: &str) -> &DescriptorProto {
        let mut all = self.0.file.iter().flat_map(|file| file.message_type.iter().map(move |m| (file.package(), m)));
        all.find(|(package, m)| format!(".{package}.{}", m.name()) == name).unwrap().1
    }

    /// Which names the method's message has room for: a tenant's, and that of a job that is there.
    pub fn names(&self, path: &str) -> (bool, bool) {
        let Some(method) = self.of(path) else { return (false, false) };
        let has = |message: &DescriptorProto, name: &str| message.field.iter().any(|field| field.name() == name);
        let message = self.message(method.input_type());
        match message.field.iter().find(|field| field.r#type() == Type::Message && field.name() == "request") {
            Some(inner) => (has(self.message(inner.type_name()), "tenant_id"), false),
            None => (has(message, "tenant_id"), has(message, "request_id") && !NAME_NO_JOB.contains(&path)),
        }
    }

    /// The method's message with the fields by which it says what it is about.
    pub fn filled(&self, path: &str, about: About<'_>) -> Vec<u8> {
        self.of(path).map(|method| self.fields(method.input_type(), about)).unwrap_or_default()
    }

    fn fields(&self, message: &str, about: About<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        for field in &self.message(message).field {
            let value = match (field.r#type(), field.name()) {
                (Type::Message, "request") => self.fields(field.type_name(), about),
                (Type::String, "tenant_id") => about.tenant.unwrap_or_default().into(),
                (Type::String, "request_id") => about.job.into(),
                (Type::String, "model_id") => "m1".into(),
                (Type::String, "model_version") => "v1".into(),
                (Type::String | Type::Bytes, "sha256" | "statement") => SHA256.into(),
                (Type::String, "turn") => "pause".into(),
                // A watch from the beginning.
                (Type::Uint64, "from") => {
                    prost::encoding::uint64::encode(field.number() as u32, &1, &mut out);
                    continue;
                }
                _ => continue,
            };
            prost::encoding::bytes::encode(field.number() as u32, &value, &mut out);
        }
        out
    }
}

/// What is told at once, one message after another.
pub async fn rpc(channel: &Channel, token: &str, path: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let request = crate::auth::with(token, message);
    let mut stream = client.server_streaming(request, path.parse().unwrap(), Raw).await?.into_inner();
    let mut told = Vec::new();
    while let Ok(next) = tokio::time::timeout(MOMENT, stream.message()).await {
        match next? {
            Some(message) => told.extend(message),
            None => break,
        }
    }
    Ok(told)
}
