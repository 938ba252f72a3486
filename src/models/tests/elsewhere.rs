//! Stores behind HTTP, played by a server that does what it is told: gives parts, breaks
//! off, lies about lengths, drips, sends us on, never ends.

#![allow(clippy::disallowed_methods, reason = "the server has a thread of its own, and is slow on purpose")]

use super::*;
use crate::outgoing::{Allow, Options};
use nf_core::reason::Reason;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How the server deals with one request for the model's weights.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// Gives what is asked for, also a part.
    Give,
    /// Gives everything, whatever part is asked for.
    Whole,
    /// Promises all and breaks off after so many bytes.
    Break(usize),
    Flip,
    Absent,
    /// Claims another length, and keeps it.
    Length(usize),
    /// A byte each now and then.
    Drip,
    /// The head never comes.
    Silent,
    Redirect,
    /// As many bytes as anybody takes.
    Endless,
    Error,
}

struct Played {
    port: u16,
    script: Arc<Mutex<VecDeque<Deed>>>,
    /// The `Range` of each request for the weights.
    ranges: Arc<Mutex<Vec<Option<String>>>>,
}

const WEIGHTS: usize = 3 << 20;

impl Played {
    /// Serves what `w` has published.
    fn new(w: &World, script: &[Deed]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = Arc::new(Mutex::new(script.iter().copied().collect::<VecDeque<_>>()));
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let (root, deeds, seen) = (w.root.join("store"), script.clone(), ranges.clone());
        // The thread ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, deeds, seen) = (root.clone(), deeds.clone(), seen.clone());
                std::thread::spawn(move || {
                    let _ = serve(stream, &root, &deeds, &seen);
                });
            }
        });
        Self { port, script, ranges }
    }

    fn store(&self) -> Store {
        let patience = Patience {
            silence: Duration::from_millis(500),
            base: Duration::from_secs(2),
            pace: 2 << 20,
            tries: 3,
            pause: Duration::from_millis(10),
        };
        let options = Options { allow: Some(Allow::parse("127.0.0.1").unwrap()), ..Options::default() };
        Store::patient(&format!("http://127.0.0.1:{}", self.port), &options, patience).unwrap()
    }

    fn asked(&self) -> usize {
        self.ranges.lock().unwrap().len()
    }
}

fn serve(
    stream: TcpStream,
    root: &std::path::Path,
    deeds: &Mutex<VecDeque<Deed>>,
    seen: &Mutex<Vec<Option<String>>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut to = stream;
    while let Some(Ok(first)) = lines.next() {
        let mut range = None;
        for line in lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let line = line.to_ascii_lowercase();
            range = line.strip_prefix("range: bytes=").map(str::to_owned).or(range);
        }
        let path = first.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
        let Ok(bytes) = fs::read(root.join(&path)) else {
            to.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let weights = path.ends_with("model.onnx");
        let deed = weights.then(|| deeds.lock().unwrap().pop_front()).flatten().unwrap_or(Deed::Give);
        if weights {
            seen.lock().unwrap().push(range.clone());
        }
        let from: usize = range.as_deref().and_then(|r| r.trim_end_matches('-').parse().ok()).unwrap_or(0);
        if !act(&mut to, deed, bytes, from)? {
            return Ok(());
        }
    }
    Ok(())
}

/// False: the connection is over.
fn act(to: &mut TcpStream, deed: Deed, mut bytes: Vec<u8>, from: usize) -> std::io::Result<bool> {
    let size = bytes.len();
    let whole = |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    match deed {
        Deed::Give | Deed::Break(_) | Deed::Flip if from > 0 => {
            let (length, last) = (size - from, size - 1);
            let range = format!("Content-Range: bytes {from}-{last}/{size}");
            write!(to, "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\n{range}\r\n\r\n")?;
        }
        Deed::Absent => {
            to.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(true);
        }
        Deed::Error => {
            to.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")?;
            return Ok(true);
        }
        Deed::Redirect => {
            to.write_all(
                b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\n\r\n",
            )?;
            return Ok(true);
        }
        Deed::Silent => {
            std::thread::sleep(Duration::from_secs(3));
            return Ok(false);
        }
        Deed::Length(length) => to.write_all(whole(length).as_bytes())?,
        Deed::Endless => to.write_all(whole(1 << 50).as_bytes())?,
        _ => to.write_all(whole(size).as_bytes())?,
    }
    match deed {
        Deed::Break(after) => {
            to.write_all(&bytes[from..(from + after).min(size)])?;
            return Ok(false);
        }
        Deed::Flip => bytes[size - 1] ^= 1,
        Deed::Length(length) => bytes.resize(length, 7),
        Deed::Drip => {
            for byte in bytes {
                to.write_all(&[byte])?;
                std::thread::sleep(Duration::from_millis(100));
            }
            return Ok(false);
        }
        Deed::Endless => loop {
            to.write_all(&bytes)?;
        },
        _ => {}
    }
    let from = if matches!(deed, Deed::Whole) { 0 } else { from };
    to.write_all(&bytes[from.min(bytes.len())..]).map(|()| true)
}

async fn played(script: &[Deed]) -> (World, Played, Store, Manifest) {
    let w = world();
    w.publish().await;
    let played = Played::new(&w, script);
    let store = played.store();
    let (model, version) = model();
    let manifest = store.resolve(&model, &version).await.unwrap().unwrap();
    (w, played, store, manifest)
}

/// What the fetch of one file came to.
async fn fetched(script: &[Deed]) -> (World, Played, Result<Vec<Fetched>, Error>) {
    let (w, played, store, manifest) = played(script).await;
    let result = w.cache.fetch(&store, &manifest, None).await;
    (w, played, result)
}

#[tokio::test]
async fn a_web_server_is_a_store() {
    let (w, played, store, manifest) = played(&[]).await;
    let fetched = w.cache.fetch(&store, &manifest, None).await.unwrap();
    assert_eq!(fetched.iter().map(|f| f.bytes).sum::<u64>(), WEIGHTS as u64 + 2);
    assert_eq!((fetched[0].scheme, fetched[0].kx_group.as_deref()), ("http", Some("none")));
    let record = w.root.join("cache/fetched").join(manifest.files[0].sha256.to_string());
    assert!(fs::read_to_string(record).unwrap().contains("\"kx_group\":\"none\""));
    assert!(w.cache.fetch(&store, &manifest, None).await.unwrap().is_empty(), "what is here is not asked for");
    w.cache.lay_out(&manifest, &w.root.join("r")).await.unwrap();
    let counted: u64 = counts::fetched_bytes().filter(|(scheme, _)| *scheme == "http").map(|(_, n)| n).sum();
    assert!(counted >= WEIGHTS as u64 + 2, "{counted}");

    let (model, version) = model();
    let pulled = pull(&store, &model, &version, &w.root.join("out")).await.unwrap();
    assert_eq!((pulled.sha256, pulled.fetched.len()), (manifest.digest(), 2));
    assert!(store.resolve(&model, &VersionId::new("v9").unwrap()).await.unwrap().is_none());
    let error = publish(&store, &w.root.join("in"), draft()).await;
    assert!(matches!(error, Ok(ref there) if *there == manifest), "what is there already needs no writing: {error:?}");
    let other = Draft { version: VersionId::new("v9").unwrap(), ..draft() };
    let error = publish(&store, &w.root.join("in"), other).await.unwrap_err();
    assert!(matches!(error, Error::Url { .. }), "{error}");
    assert_eq!(played.asked(), 2);
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let script = [Deed::Break(1 << 20), Deed::Error, Deed::Break(100), Deed::Give];
    let (w, played, result) = fetched(&script).await;
    let weights = &result.unwrap()[0];
    assert_eq!(weights.bytes, WEIGHTS as u64, "no byte came twice");
    assert!(weights.resumed >= 1, "{weights:?}");
    let ranges = played.ranges.lock().unwrap().clone();
    assert_eq!(ranges[0], None);
    assert!(ranges[1].as_deref() == Some("1048576-"), "{ranges:?}");
    assert!(ranges.last().unwrap().as_deref() == Some("1048676-"), "{ranges:?}");
    assert_eq!(w.cached(), 2);
}

#[tokio::test]
async fn a_download_goes_on_after_a_restart_and_a_rotten_part_of_it_is_seen() {
    for rotten in [false, true] {
        let breaks = [Deed::Break(1 << 20), Deed::Silent, Deed::Silent, Deed::Silent, Deed::Silent];
        let (w, played, store, manifest) = played(&breaks).await;
        let error = w.cache.fetch(&store, &manifest, None).await.unwrap_err();
        assert_eq!(error.reason(), Reason::StoreUnavailable, "{error}");
        let partial = w.root.join("cache/tmp").join(manifest.files[0].sha256.to_string());
        assert_eq!(fs::metadata(&partial).unwrap().len(), 1 << 20, "what came is kept");
        if rotten {
            w.tamper(&partial, |bytes| bytes[5] ^= 1);
        }
        played.script.lock().unwrap().clear();
        let again = Cache::open(&w.root.join("cache"), 1 << 30).unwrap();
        let second = again.fetch(&store, &manifest, None).await;
        let ranges = played.ranges.lock().unwrap().clone();
        let (came, last) = (second.unwrap()[0].bytes, ranges.last().unwrap().as_deref());
        match rotten {
            false => assert_eq!((came, last), (WEIGHTS as u64 - (1 << 20), Some("1048576-"))),
            true => {
                assert_eq!(ranges[ranges.len() - 2].as_deref(), Some("1048576-"));
                assert_eq!((came, last), (WEIGHTS as u64, None), "it is not built upon: all comes once more");
            }
        }
        assert!(!partial.exists());
        again.lay_out(&manifest, &w.root.join("r")).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_without_parts_is_read_from_the_beginning() {
    let (w, _, result) = fetched(&[Deed::Break(1 << 20), Deed::Whole, Deed::Whole, Deed::Whole]).await;
    let weights = &result.unwrap()[0];
    assert_eq!((weights.bytes, weights.resumed), (WEIGHTS as u64, 0));
    assert_eq!(w.cached(), 2);
}

#[tokio::test]
async fn each_bad_answer_has_its_reason_and_leaves_no_named_file() {
    let many = |deed| [deed; 12];
    for (deed, reason, says) in [
        (Deed::Absent, Reason::ArtifactMismatch, "the store lacks it"),
        (Deed::Flip, Reason::ArtifactMismatch, "SHA-256"),
        (Deed::Length(100), Reason::ArtifactMismatch, "100 bytes"),
        (Deed::Length(WEIGHTS + 1), Reason::ArtifactMismatch, "longer than"),
        (Deed::Endless, Reason::ArtifactMismatch, "longer than"),
        (Deed::Break(0), Reason::StoreUnavailable, "the store"),
        (Deed::Drip, Reason::StoreUnavailable, "too slowly"),
        (Deed::Silent, Reason::StoreUnavailable, "no answer within"),
        (Deed::Error, Reason::StoreUnavailable, "busy"),
        (Deed::Redirect, Reason::StoreUrlForbidden, "169.254.169.254"),
    ] {
        let began = std::time::Instant::now();
        let (w, _, result) = fetched(&many(deed)).await;
        let error = result.unwrap_err();
        assert_eq!(error.reason(), reason, "{deed:?}: {error}");
        assert!(error.to_string().contains(says), "{deed:?}: {error}");
        match deed {
            Deed::Flip => assert!(matches!(error, Error::Mismatch { .. }), "{error}"),
            Deed::Absent => assert!(matches!(error, Error::Unfit { .. }), "no byte was read: {error}"),
            _ => {}
        }
        assert_eq!(fs::read_dir(w.root.join("cache/sha256")).unwrap().count(), 0, "{deed:?}");
        assert!(began.elapsed() < Duration::from_secs(20), "{deed:?}");
    }
}

#[tokio::test]
async fn a_manifest_that_never_ends_is_not_read_to_its_end() {
    let w = world();
    w.publish().await;
    let path = w.stored("manifest.json");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let (model, version) = model();
    let error = Played::new(&w, &[]).store().resolve(&model, &version).await.unwrap_err();
    assert_eq!(error.reason(), Reason::ArtifactTooLarge, "{error}");
}

#[tokio::test]
async fn a_store_that_is_not_listed_is_not_called() {
    let w = world();
    w.publish().await;
    let played = Played::new(&w, &[]);
    let options = Options { allow: Some(Allow::default()), ..Options::default() };
    let (model, version) = model();
    for host in ["127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"] {
        let store = Store::open(&format!("http://{host}:{}", played.port), &options).unwrap();
        let error = store.resolve(&model, &version).await.unwrap_err();
        assert_eq!(error.reason(), Reason::StoreUrlForbidden, "{host}: {error}");
        assert!(error.to_string().contains("NF_STORE_HOSTS"), "{error}");
    }
}
