//! A store behind HTTP: a web server, S3, Google's or Azure's. Everything here is bounded:
//! how long is waited for a byte, how slow a file may come, how much of an answer is
//! kept. It verifies nothing; what it hands on is held against the manifest elsewhere.
//! Its calls block, and are made off the runtime's threads.

use super::Error;
use super::transport::Transport;
use crate::outgoing::{Client, Fault, Group, Options};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use nf_core::reason::{Reason, printable};
use object_store::path::Path;
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
};
use object_store::{
    aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, http::HttpBuilder,
};
use std::future::Future;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Bytes of one part of an upload; smaller files go in one piece.
const PART: usize = 16 << 20;

/// How patient a fetch is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the head of an answer, for the next byte, and for a small file as a whole.
    pub silence: Duration,
    /// A file may take so long, and the time of its bytes at `pace` on top.
    pub base: Duration,
    /// Bytes per second.
    pub pace: u64,
    /// Tries in a row that bring nothing.
    pub tries: u32,
    /// Before the second try; doubles.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self { silence: secs(15), base: secs(60), pace: 64 << 10, tries: 4, pause: Duration::from_millis(500) }
    }
}

impl Patience {
    /// By when a file of that size must be here.
    pub(super) fn until(&self, size: u64) -> Instant {
        let most = Duration::from_secs(24 * 3600);
        Instant::now() + (self.base + Duration::from_secs(size / self.pace.max(1))).min(most)
    }
}

/// A bucket, or a directory of a web server.
#[derive(Debug)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// For messages; holds no password.
    shown: String,
    /// Web servers are read alone.
    writable: bool,
    pub(super) patience: Patience,
}

impl Remote {
    /// Opens the store that a URL of one of the schemes names. Nothing is asked yet.
    pub(super) fn open(scheme: &str, rest: &str, options: &Options, patience: Patience) -> Result<Self, String> {
        let (place, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let client = Client::new(options)?;
        Self::over(scheme, place, prefix.trim_matches('/'), Transport(client), patience)
    }

    fn over(scheme: &str, place: &str, prefix: &str, http: Transport, patience: Patience) -> Result<Self, String> {
        if place.is_empty() || place.contains('@') {
            return Err(
                "no host or bucket, or a name and password before it; credentials come from the environment".into()
            );
        }
        if !prefix.is_empty() {
            Path::parse(prefix).map_err(|e| e.to_string())?;
        }
        let retry = RetryConfig {
            backoff: BackoffConfig { init_backoff: patience.pause, max_backoff: patience.silence, base: 2.0 },
            max_retries: 2,
            retry_timeout: patience.silence,
        };
        let url = format!("{scheme}://{place}");
        let store: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
            "http" | "https" => {
                let built = HttpBuilder::new().with_url(&url).with_retry(retry).with_http_connector(http).build();
                built.map(|store| Arc::new(store) as _)
            }
            "s3" => {
                let built =
                    AmazonS3Builder::from_env().with_url(&url).with_retry(retry).with_http_connector(http).build();
                built.map(|store| Arc::new(store) as _)
            }
            "gs" => {
                let built = GoogleCloudStorageBuilder::from_env()
                    .with_url(&url)
                    .with_retry(retry)
                    .with_http_connector(http)
                    .build();
                built.map(|store| Arc::new(store) as _)
            }
            "az" => {
                let built = MicrosoftAzureBuilder::from_env()
                    .with_url(&url)
                    .with_retry(retry)
                    .with_http_connector(http)
                    .build();
                built.map(|store| Arc::new(store) as _)
            }
            _ => return Err("no such kind of store".into()),
        };
        let store = store.map_err(|e| printable(&e.to_string(), 300))?;
        let shown = if prefix.is_empty() { url } else { format!("{url}/{prefix}") };
        Ok(Self { store, prefix: prefix.into(), shown, writable: !scheme.starts_with("http"), patience })
    }

    fn path(&self, key: &str) -> Result<Path, Error> {
        let key = if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) };
        Path::parse(&key).map_err(|e| self.away(printable(&e.to_string(), 200)))
    }

    pub(super) fn at(&self, key: &str) -> String {
        format!("{}/{key}", self.shown)
    }

    fn away(&self, text: String) -> Error {
        Error::Refused { reason: Reason::StoreUnavailable, text: format!("the store {}: {text}", self.shown) }
    }

    fn told(&self, error: &(dyn std::error::Error + 'static)) -> Error {
        match Fault::below(error) {
            Some(fault) if fault.forbidden() => Error::Refused {
                reason: Reason::StoreUrlForbidden,
                text: format!("the store {}: {fault} (NF_STORE_HOSTS)", self.shown),
            },
            Some(fault) => self.away(fault.to_string()),
            None => self.away(printable(&error.to_string(), 300)),
        }
    }

    /// Waits for an answer, for so long. Not to be called on the runtime's own threads.
    fn wait<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Result<T, Error> {
        let handle = Handle::try_current().map_err(|e| self.away(e.to_string()))?;
        let late = |_| self.away(format!("no answer within {limit:?}"));
        handle.block_on(async { tokio::time::timeout(limit, work).await }).map_err(late)
    }

    /// The first `most` bytes of a file and one more; None when it is not there.
    pub(super) fn small(&self, key: &str, most: usize) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path(key)?;
        let ask = async {
            let mut stream = self.store.get(&path).await?.into_stream();
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.next().await {
                let chunk = chunk?;
                let room = (most + 1).saturating_sub(bytes.len());
                bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if bytes.len() > most {
                    break;
                }
            }
            Ok::<_, object_store::Error>(bytes)
        };
        match self.wait(self.patience.silence, ask)? {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.told(&e)),
        }
    }

    /// A file from one of its bytes on, or from its beginning where the server gives no parts; None when it is
    /// not there. It must be read to its end by `until`.
    pub(super) fn read(&self, key: &str, from: u64, until: Instant) -> Result<Option<Reader>, Error> {
        let path = self.path(key)?;
        let range = (from > 0).then_some(GetRange::Offset(from));
        let asked =
            self.wait(self.patience.silence, self.store.get_opts(&path, GetOptions { range, ..GetOptions::default() }));
        let answer = match asked? {
            Ok(answer) => answer,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) if from > 0 && matches!(Fault::below(&e), Some(Fault::NoRange)) => return self.read(key, 0, until),
            Err(e) => return Err(self.told(&e)),
        };
        let group = answer.extensions.get::<Group>().map(|group| group.0.clone());
        let (from, size) = (answer.range.start, answer.meta.size);
        let handle = Handle::try_current().map_err(|e| self.away(e.to_string()))?;
        let (shown, silence) = (self.at(key), self.patience.silence);
        Ok(Some(Reader {
            stream: answer.into_stream(),
            chunk: Bytes::new(),
            from,
            size,
            group,
            until,
            silence,
            shown,
            handle,
        }))
    }

    /// Whether the store answers at all: asks for what is not there.
    pub(super) fn answers(&self) -> Result<(), Error> {
        self.small("nf-is-this-a-store", 0).map(drop)
    }

    fn may_write(&self) -> Result<(), Error> {
        let rule = "web servers are read alone; publish to s3://, gs://, az:// or file://".to_owned();
        if self.writable { Ok(()) } else { Err(Error::Url { shown: self.shown.clone(), rule }) }
    }

    /// Writes a small file; false when `create` is asked for and one is there.
    pub(super) fn put(&self, key: &str, bytes: Vec<u8>, create: bool) -> Result<bool, Error> {
        self.may_write()?;
        let path = self.path(key)?;
        let mode = if create { PutMode::Create } else { PutMode::Overwrite };
        let sent = self.store.put_opts(&path, bytes.into(), PutOptions { mode, ..PutOptions::default() });
        match self.wait(self.patience.base, sent)? {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) if create => {
                Ok(false)
            }
            Err(e) => Err(self.told(&e)),
        }
    }

    /// Writes a file of any size, in parts, in place of one that is there.
    pub(super) fn upload(&self, key: &str, from: &mut impl Read) -> Result<(), Error> {
        self.may_write()?;
        let mut part = next_part(from, key)?;
        if part.len() < PART {
            return self.put(key, part, false).map(drop);
        }
        let path = self.path(key)?;
        let mut parts = self.wait(self.patience.base, self.store.put_multipart(&path))?.map_err(|e| self.told(&e))?;
        let mut all = || {
            while !part.is_empty() {
                let sent = parts.put_part(std::mem::take(&mut part).into());
                self.wait(self.patience.base * 4, sent)?.map_err(|e| self.told(&e))?;
                part = next_part(from, key)?;
            }
            self.wait(self.patience.base, parts.complete())?.map_err(|e| self.told(&e)).map(drop)
        };
        all().inspect_err(|_| {
            // Parts that nobody completes are paid for; if this fails, too, the bucket's own rules clear them.
            let _ = self.wait(self.patience.silence, parts.abort());
        })
    }
}

fn next_part(from: &mut impl Read, what: &str) -> Result<Vec<u8>, Error> {
    let mut part = Vec::with_capacity(1 << 20);
    from.take(PART as u64).read_to_end(&mut part).map_err(|e| Error::read(what, e))?;
    Ok(part)
}

/// The bytes of one answer.
pub(super) struct Reader {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    chunk: Bytes,
    /// Where in the file it begins.
    pub from: u64,
    /// Of the whole file, as the server says.
    pub size: u64,
    pub group: Option<String>,
    until: Instant,
    silence: Duration,
    shown: String,
    handle: Handle,
}

impl Read for Reader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let left = self.until.saturating_duration_since(Instant::now());
            let limit = self.silence.min(left);
            let stream = &mut self.stream;
            let next = self.handle.block_on(async { tokio::time::timeout(limit, stream.next()).await });
            let text = match next {
                Ok(None) => return Ok(0),
                Ok(Some(Ok(chunk))) => {
                    self.chunk = chunk;
                    continue;
                }
                Ok(Some(Err(e))) => printable(&e.to_string(), 300),
                Err(_) if left < self.silence => "comes too slowly, and its time is over".to_owned(),
                Err(_) => format!("no byte within {limit:?}"),
            };
            let text = format!("the store {}: {text}", self.shown);
            return Err(io::Error::other(Error::Refused { reason: Reason::StoreUnavailable, text }));
        }
        let n = self.chunk.len().min(to.len());
        to[..n].copy_from_slice(&self.chunk.split_to(n));
        Ok(n)
    }
}
