//! All nine pairs of modes over real sockets: which key exchange both ends see, or what both ends say.

use super::*;
use crate::security::tls::Authority;
use tokio::net::TcpListener;

const MODES: [Mode; 3] = [Mode::Hybrid, Mode::Classical, Mode::Off];
/// Both ends of a link are done by then, also where nothing fits.
const LIMIT: Duration = Duration::from_secs(10);

/// A member and a worker of one group, or of none, as their modes are.
struct Pair {
    member: PeerTls,
    caller: PeerTls,
}

impl Pair {
    fn new(member: Mode, caller: Mode) -> Self {
        let authority = Authority::create("blue").unwrap();
        let of = |name: &str, mode: Mode| {
            PeerTls::in_mode(&authority.issue("blue", name).unwrap(), "blue", name, mode.into()).unwrap()
        };
        Self { member: of("n1", member), caller: of("n2", caller) }
    }

    /// What the caller and the member have of it.
    async fn meet(&self, expected: &str) -> (io::Result<Stream>, io::Result<(Door, Stream)>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let near = self.caller.connect(&addr, expected);
        let far = async { self.member.accept(listener.accept().await.unwrap().0).await };
        tokio::time::timeout(LIMIT, async { tokio::join!(near, far) }).await.expect("no end of it")
    }
}

/// The key exchange of a pair that fits.
fn fits(member: Mode, caller: Mode) -> Option<&'static str> {
    match (member, caller) {
        (Mode::Hybrid, Mode::Hybrid) => Some("X25519MLKEM768"),
        (Mode::Classical, Mode::Classical) => Some("X25519"),
        (Mode::Off, Mode::Off) => Some("none"),
        _ => None,
    }
}

#[tokio::test]
async fn all_nine_pairs_of_modes_have_one_answer_at_both_ends() {
    for (member, caller) in MODES.into_iter().flat_map(|member| MODES.map(|caller| (member, caller))) {
        let pair = Pair::new(member, caller);
        let (near, far) = pair.meet("n1").await;
        match fits(member, caller) {
            Some(group) => {
                let (mut near, (door, mut far)) = (near.unwrap(), far.unwrap());
                assert_eq!((near.group(), far.group(), door), (group, group, Door::Peer), "{member} {caller}");
                assert_eq!(pair.member.links().with_peer("n2").as_deref(), Some(group));
                assert_eq!(pair.caller.links().with_peer("n1").as_deref(), Some(group));
                let holder = far.cert().and_then(|cert| tls::holder(cert, "blue"));
                assert_eq!(holder, Some(("n2".to_owned(), tls::Role::Server)), "{member} {caller}");
                near.write_all(b"hello").await.unwrap();
                near.flush().await.unwrap();
                let mut said = [0; 5];
                far.read_exact(&mut said).await.unwrap();
                assert_eq!(&said, b"hello");
                drop((near, far));
                assert!(pair.member.links().open().is_empty() && pair.caller.links().open().is_empty());
            }
            None => {
                let (near, far) = (near.err().expect("refused"), far.err().expect("refused"));
                for (end, error, mode) in [("caller", near, caller), ("member", far, member)] {
                    let text = error.to_string();
                    assert!(Mismatch::of(&error).is_some(), "{member} {caller}, the {end}: {error:?}");
                    let told = text.contains(&format!("PQC_MODE={mode}"));
                    assert!(
                        told && text.contains("set the same PQC_MODE on all members and workers"),
                        "{member} {caller}, the {end}: {text}"
                    );
                }
                let told = pair.member.links().refusals();
                assert!(matches!(&told[..], [(Kind::Peer, Way::In, 1, _)]), "{told:?}");
                let told = pair.caller.links().refusals();
                assert!(
                    matches!(&told[..], [(Kind::Peer, Way::Out, 1, last)] if last.contains("n1 at 127.0.0.1")),
                    "{told:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_plain_link_still_is_with_whom_it_should_be() {
    let (near, _) = Pair::new(Mode::Off, Mode::Off).meet("n3").await;
    let error = near.err().unwrap();
    assert!(error.to_string().contains("not n3.server.blue.nf") && Mismatch::of(&error).is_none(), "{error}");
}

#[tokio::test]
async fn what_is_no_link_of_ours_ends_at_once() {
    let pair = Pair::new(Mode::Off, Mode::Off);
    let too_long = [&PLAIN[..], &[0xFF, 0xFF], &[0; 100]].concat();
    for said in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"nf-plain/2\n\x00\x01x", &too_long, b"n", b""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        stream.write_all(said).await.unwrap();
        stream.shutdown().await.unwrap();
        let far = pair.member.accept(listener.accept().await.unwrap().0);
        assert!(tokio::time::timeout(LIMIT, far).await.expect("it ends").is_err(), "{said:?}");
    }
}

#[test]
fn plain_text_stays_on_this_machine() {
    for (to, may) in [
        ("127.0.0.1:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("10.0.0.1:1", false),
        ("0.0.0.0:1", false),
        ("[::ffff:10.0.0.1]:1", false),
        ("[fe80::1]:1", false),
    ] {
        assert_eq!(stays(to.parse().unwrap()).is_ok(), may, "{to}");
    }
}
