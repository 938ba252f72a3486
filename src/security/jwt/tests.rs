//! Tokens that count and all that must not.

use super::keys::Algorithm;
use super::*;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self as lc, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

const NOW: u64 = 1_795_435_200;
const ISSUER: &str = "https://issuer.example";

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "ada", "aud": "nf", "tenant_id": "t1", "roles": ["viewer", "operator"],
        "iat": NOW, "exp": NOW + 3600, "jti": "j1",
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut out = claims();
    out[name] = value;
    out
}

fn without(name: &str) -> Value {
    let mut out = claims();
    out.as_object_mut().unwrap().remove(name);
    out
}

fn keys(jwks: &Value) -> Keys {
    Keys::parse("jwks.json", jwks.to_string().as_bytes()).unwrap()
}

fn desk_of(mint: &Mint) -> Verifier {
    Verifier::new(keys(&mint.jwks()), Some(ISSUER.into()))
}

fn desk() -> (Mint, Verifier) {
    let mint = Mint::generate(ISSUER).unwrap();
    let verifier = desk_of(&mint);
    (mint, verifier)
}

fn header(mint: &Mint) -> Value {
    json!({ "typ": "JWT", "alg": "ES256", "kid": mint.kid() })
}

fn signed(mint: &Mint, header: &Value) -> String {
    mint.signed_text(&header.to_string(), &claims().to_string()).unwrap()
}

#[test]
fn a_token_says_who_in_which_tenant_in_which_roles() {
    let (mint, verifier) = desk();
    let identity = verifier.verify(&mint.signed(&claims()).unwrap(), NOW).unwrap();
    assert_eq!((identity.subject.as_str(), identity.tenant.as_str()), ("ada", "t1"));
    assert!(identity.roles.has(Role::Viewer) && identity.roles.has(Role::Operator));
    assert!(!identity.roles.has(Role::Admin) && !identity.roles.has(Role::Promoter) && !identity.roles.has(Role::Node));
    assert_eq!(format!("{:?}", identity.roles), r#"{"viewer", "operator"}"#);
    let other = verifier.verify(&mint.signed(&with("roles", json!(["offline", "Admin"]))).unwrap(), NOW).unwrap();
    assert!(other.roles.is_empty(), "a role that is not ours, spelt exactly, grants nothing");
    let list = verifier.verify(&mint.signed(&with("aud", json!(["x", "nf"]))).unwrap(), NOW).unwrap();
    assert_eq!(list.token_id.as_deref(), Some("j1"));
    Verifier::self_test().unwrap();
}

#[test]
fn claims_of_the_wrong_kind_are_refused() {
    let (mint, verifier) = desk();
    let long = "x".repeat(300);
    let cases = [
        (without("exp"), Denied::Claims),
        (with("exp", json!((NOW + 60).to_string())), Denied::Claims),
        (with("exp", json!((NOW + 60) as f64 + 0.5)), Denied::Claims),
        (with("exp", json!(-1)), Denied::Claims),
        (with("exp", json!(NOW - 31)), Denied::Expired),
        (with("exp", json!(NOW - 30)), Denied::Expired),
        (with("exp", json!(NOW + 24 * 3600 + 1)), Denied::Lifetime),
        (with("exp", json!(u64::MAX)), Denied::Lifetime),
        (without("iat"), Denied::Claims),
        (with("iat", json!(NOW + 31)), Denied::NotYet),
        (with("nbf", json!(NOW + 31)), Denied::NotYet),
        (with("nbf", json!("soon")), Denied::Claims),
        (with("nbf", Value::Null), Denied::Claims),
        (without("aud"), Denied::Claims),
        (with("aud", json!("other")), Denied::Audience),
        (with("aud", json!([])), Denied::Audience),
        (with("aud", json!(7)), Denied::Claims),
        (without("iss"), Denied::Claims),
        (with("iss", json!("https://evil.example")), Denied::Issuer),
        (with("iss", json!([ISSUER])), Denied::Claims),
        (without("sub"), Denied::Claims),
        (with("sub", json!("")), Denied::Claims),
        (with("sub", json!("a\nb")), Denied::Claims),
        (with("sub", json!(long)), Denied::Claims),
        (without("roles"), Denied::Claims),
        (with("roles", json!("admin")), Denied::Claims),
        (with("roles", json!(vec!["viewer"; 65])), Denied::Claims),
        (with("jti", json!(7)), Denied::Claims),
        (without("tenant_id"), Denied::Tenant),
        (json!([]), Denied::Claims),
    ];
    for (claims, denied) in cases {
        let token = mint.signed(&claims).unwrap();
        assert_eq!(verifier.verify(&token, NOW), Err(denied), "{claims}");
    }
    assert!(
        verifier.verify(&mint.signed(&with("exp", json!(NOW - 29))).unwrap(), NOW).is_ok(),
        "clocks differ a little"
    );
    assert!(verifier.verify(&mint.signed(&with("nbf", json!(NOW + 20))).unwrap(), NOW).is_ok());
}

#[test]
fn a_tenant_is_a_name_and_there_once() {
    let (mint, verifier) = desk();
    let long = "a".repeat(64);
    for bad in ["", " ", "T1", "t1/../t2", "-t", "t-", "t--1", "t_", "t1\n", "tä", "*", long.as_str()] {
        let token = mint.signed(&with("tenant_id", json!(bad))).unwrap();
        let denied = verifier.verify(&token, NOW).unwrap_err();
        assert_eq!(denied, Denied::Tenant, "{bad:?}");
        assert_eq!(denied.refusal().reason, Reason::TenantClaimInvalid);
    }
    for bad in [json!(["t1"]), json!(1), Value::Null, json!({ "t1": 1 })] {
        let token = mint.signed(&with("tenant_id", bad)).unwrap();
        assert_eq!(verifier.verify(&token, NOW), Err(Denied::Tenant));
    }
    let twice = claims().to_string().replacen("{", r#"{"tenant_id":"t2","#, 1);
    let token = mint.signed_text(&header(&mint).to_string(), &twice).unwrap();
    assert_eq!(verifier.verify(&token, NOW), Err(Denied::Claims), "twice");
    for good in ["t", "t1", "team-a_b", "0"] {
        assert!(verifier.verify(&mint.signed(&with("tenant_id", json!(good))).unwrap(), NOW).is_ok(), "{good}");
    }
}

#[test]
fn headers_choose_a_configured_key_and_nothing_else() {
    let (mint, verifier) = desk();
    let change = |name: &str, value: Value| {
        let mut out = header(&mint);
        out[name] = value;
        verifier.verify(&signed(&mint, &out), NOW).map(drop)
    };
    assert_eq!(change("x", json!(1)), Ok(()));
    assert_eq!(change("crit", json!(["b64"])), Err(Denied::Critical));
    assert_eq!(change("crit", json!([])), Err(Denied::Critical));
    assert_eq!(change("crit", Value::Null), Err(Denied::Critical));
    assert_eq!(change("typ", json!("secevent+jwt")), Err(Denied::Type));
    assert_eq!(change("typ", json!(1)), Err(Denied::Type));
    assert_eq!(change("typ", json!("at+JWT")), Ok(()));
    assert_eq!(change("kid", json!("../../etc/passwd")), Err(Denied::UnknownKey));
    assert_eq!(change("kid", json!(1)), Err(Denied::Header));
    for alg in ["none", "NONE", "HS256", "ES384", "RS256", "es256", ""] {
        assert_eq!(change("alg", json!(alg)), Err(Denied::Algorithm), "{alg}");
    }
    // Where keys are is configured; a token's own idea of it is not followed.
    assert_eq!(change("jku", json!("https://evil.example/jwks")), Ok(()));
    let evil = Mint::generate(ISSUER).unwrap();
    let mut foreign = header(&evil);
    foreign["jwk"] = evil.jwks()["keys"][0].clone();
    assert_eq!(verifier.verify(&signed(&evil, &foreign), NOW), Err(Denied::UnknownKey));
    foreign["kid"] = json!(mint.kid());
    assert_eq!(verifier.verify(&signed(&evil, &foreign), NOW), Err(Denied::Signature));
    let twice = header(&mint).to_string().replacen("{", r#"{"alg":"none","#, 1);
    let token = mint.signed_text(&twice, &claims().to_string()).unwrap();
    assert_eq!(verifier.verify(&token, NOW), Err(Denied::Header));
}

/// HS256 with the public key as the secret: the oldest confusion of all.
#[test]
fn no_public_key_is_a_shared_secret() {
    let (mint, verifier) = desk();
    let jwk = &mint.jwks()["keys"][0];
    let point = ["x", "y"].map(|n| URL_SAFE_NO_PAD.decode(jwk[n].as_str().unwrap()).unwrap());
    let secret = [&[4], &point[0][..], &point[1]].concat();
    let mut head = header(&mint);
    head["alg"] = json!("HS256");
    let encode = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let message = format!("{}.{}", encode(&head), encode(&claims()));
    let tag =
        aws_lc_rs::hmac::sign(&aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret), message.as_bytes());
    let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag));
    assert_eq!(verifier.verify(&token, NOW), Err(Denied::Algorithm));
}

#[test]
fn tokens_that_were_cut_or_changed_are_refused() {
    let (mint, verifier) = desk();
    let token = mint.signed(&claims()).unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    let admin = URL_SAFE_NO_PAD.encode(with("roles", json!(["admin"])).to_string());
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let bad = [
        String::new(),
        ".".into(),
        "..".into(),
        parts[0].into(),
        format!("{}.{}", parts[0], parts[1]),
        format!("{token}."),
        format!("{token}.x"),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{admin}.{}", parts[0], parts[2]),
        format!("{none}.{}.", parts[1]),
        format!("{}=.{}.{}", parts[0], parts[1], parts[2]),
        format!(" {token}"),
        format!("{token}\n"),
        "é.é.é".into(),
        "x".repeat(MAX_TOKEN + 1),
    ];
    for bad in &bad {
        let denied = verifier.verify(bad, NOW).unwrap_err();
        let refusal = denied.refusal();
        assert_eq!(refusal.reason, Reason::Unauthenticated, "{bad}");
        assert!(!refusal.detail.contains("signature"), "callers are told nothing more");
    }
    for at in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(verifier.verify(&changed, NOW).is_err(), "byte {at}");
    }
    assert!(verifier.verify(&token, NOW).is_ok());
}

/// A key of each algorithm, made here, with the token it signs.
fn of_each_algorithm() -> Vec<(Algorithm, Value, String)> {
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let message = |alg: Algorithm| {
        let head = json!({ "alg": alg.name(), "kid": alg.name() }).to_string();
        format!("{}.{}", b64(head.as_bytes()), b64(claims().to_string().as_bytes()))
    };
    let random = SystemRandom::new();
    let mut out = Vec::new();
    let curves = [
        (Algorithm::Es256, &lc::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32),
        (Algorithm::Es384, &lc::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384", 48),
    ];
    for (alg, scheme, curve, size) in curves {
        let pair = lc::EcdsaKeyPair::generate(scheme).unwrap();
        let point = pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(size);
        let jwk = json!({ "kty": "EC", "crv": curve, "kid": alg.name(), "x": b64(x), "y": b64(y) });
        let signature = pair.sign(&random, message(alg).as_bytes()).unwrap();
        out.push((alg, jwk, format!("{}.{}", message(alg), b64(signature.as_ref()))));
    }
    let pair = lc::Ed25519KeyPair::generate().unwrap();
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "EdDSA", "x": b64(pair.public_key().as_ref()) });
    let signature = pair.sign(message(Algorithm::EdDsa).as_bytes());
    out.push((Algorithm::EdDsa, jwk, format!("{}.{}", message(Algorithm::EdDsa), b64(signature.as_ref()))));
    let pair = lc::RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let parts = lc::RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
    let schemes: [(Algorithm, &'static dyn lc::RsaEncoding); 2] =
        [(Algorithm::Rs256, &lc::RSA_PKCS1_SHA256), (Algorithm::Ps256, &lc::RSA_PSS_SHA256)];
    for (alg, scheme) in schemes {
        let jwk = json!({ "kty": "RSA", "kid": alg.name(), "alg": alg.name(), "n": b64(&parts.n), "e": b64(&parts.e) });
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(scheme, &random, message(alg).as_bytes(), &mut signature).unwrap();
        out.push((alg, jwk, format!("{}.{}", message(alg), b64(&signature))));
    }
    out
}

#[test]
fn each_algorithm_counts_for_its_own_key_alone() {
    let all = of_each_algorithm();
    let jwks = json!({ "keys": all.iter().map(|(_, jwk, _)| jwk).collect::<Vec<_>>() });
    let verifier = Verifier::new(keys(&jwks), None);
    for (alg, _, token) in &all {
        assert!(verifier.verify(token, NOW).is_ok(), "{alg:?}");
        // The same key under another of its algorithms.
        let head = json!({ "alg": "RS256", "kid": "PS256" }).to_string();
        let rest = token.split_once('.').unwrap().1;
        let confused = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(head));
        assert_eq!(verifier.verify(&confused, NOW), Err(Denied::Algorithm), "{alg:?}");
        let headless = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(json!({ "alg": alg.name() }).to_string()));
        assert_eq!(verifier.verify(&headless, NOW), Err(Denied::UnknownKey), "no kid, and five keys");
    }
}

#[test]
fn a_jwks_is_public_keys_each_with_a_name() {
    let (mint, _) = desk();
    let good = mint.jwks()["keys"][0].clone();
    let edit = |name: &str, value: Value| {
        let mut jwk = good.clone();
        jwk[name] = value;
        Keys::parse("jwks.json", json!({ "keys": [jwk] }).to_string().as_bytes()).map_err(|e| e.detail)
    };
    assert!(edit("kid", json!("other")).is_ok() && edit("key_ops", json!(["verify"])).is_ok());
    for private in ["d", "k", "p"] {
        assert!(edit(private, json!("AAAA")).unwrap_err().contains("private"), "{private}");
    }
    let bad = [
        ("x", json!("AAAA")),
        ("x", json!(1)),
        ("y", good["x"].clone()),
        ("kid", json!("")),
        ("kid", json!(7)),
        ("alg", json!("ES384")),
        ("use", json!("enc")),
        ("key_ops", json!(["sign"])),
        ("kty", json!("oct")),
        ("crv", json!("secp256k1")),
    ];
    for (name, value) in bad {
        assert!(edit(name, value.clone()).is_err(), "{name} {value}");
    }
    let parse =
        |text: &str| Keys::parse("jwks.json", text.as_bytes()).map(drop).map_err(|e| (e.reason, e.field.unwrap()));
    let refused = Err((Reason::ConfigInvalid, "jwks.json".to_owned()));
    let twice = json!({ "keys": [good, good] }).to_string();
    let many = json!({ "keys": vec![good.clone(); 65] }).to_string();
    let huge = " ".repeat(keys::MAX_JWKS + 1);
    for text in ["", "{}", "[]", r#"{"keys":[]}"#, r#"{"keys":[1]}"#, r#"{"keys":{}}"#, &twice, &many, &huge] {
        assert_eq!(parse(text), refused, "{}", &text[..text.len().min(60)]);
    }
    // Issuers list keys for other uses, too.
    let mixed = json!({ "keys": [{ "kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB" }, { "kty": "new" }, good] });
    assert_eq!(parse(&mixed.to_string()), Ok(()));
    let small = json!({ "keys": [{ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xff; 128]), "e": "AQAB" }] });
    assert_eq!(parse(&small.to_string()), refused, "1024 bits");
}

#[test]
fn a_verified_token_is_remembered_until_it_expires_or_the_keys_change() {
    let (mint, verifier) = desk();
    let token = mint.signed(&claims()).unwrap();
    let first = verifier.verify(&token, NOW).unwrap();
    assert!(Arc::ptr_eq(&first, &verifier.verify(&token, NOW + 3629).unwrap()), "the same, without looking again");
    assert_eq!(verifier.verify(&token, NOW + 3630), Err(Denied::Expired));
    assert!(!Arc::ptr_eq(&first, &verifier.verify(&token, NOW).unwrap()), "it was forgotten");
    verifier.replace(keys(&Mint::generate(ISSUER).unwrap().jwks()));
    assert_eq!(verifier.verify(&token, NOW), Err(Denied::UnknownKey), "and with its key it goes");
}

#[test]
fn what_is_refused_is_not_remembered_and_what_is_remembered_is_bounded() {
    let (mint, verifier) = desk();
    let bad = mint.signed(&without("exp")).unwrap();
    assert!(verifier.verify(&bad, NOW).is_err() && verifier.keys.load().cache.len() == 0);
    let cache = &verifier.keys.load().cache;
    let identity = Arc::new((*verifier.verify(&mint.signed(&claims()).unwrap(), NOW).unwrap()).clone());
    for n in 0u64..3 * cache::CAPACITY as u64 {
        let hash: [u8; 32] = digest(&SHA256, &n.to_be_bytes()).as_ref().try_into().unwrap();
        cache.put(hash, identity.clone(), NOW);
    }
    assert!(cache.len() <= cache::CAPACITY, "{}", cache.len());
}

#[test]
fn production_takes_no_token_that_could_not_be_revoked() {
    let (mint, verifier) = desk();
    let bare = mint.signed(&without("jti")).unwrap();
    assert!(verifier.verify(&bare, NOW).is_ok(), "elsewhere it counts");
    let verifier = desk_of(&mint).wanting_ids();
    let denied = verifier.verify(&bare, NOW).unwrap_err();
    assert_eq!((denied.refusal().reason, denied.refusal().field.as_deref()), (Reason::TokenIdRequired, Some("jti")));
    assert!(verifier.verify(&mint.signed(&claims()).unwrap(), NOW).is_ok());
    let stranger = Mint::generate(ISSUER).unwrap().signed(&without("jti")).unwrap();
    let denied = verifier.verify(&stranger, NOW).unwrap_err();
    assert_eq!(denied.refusal().reason, Reason::Unauthenticated, "a guess learns nothing");
}

#[test]
fn the_file_of_keys_is_followed_and_a_bad_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let (old, new) = (Mint::generate(ISSUER).unwrap(), Mint::generate(ISSUER).unwrap());
    assert!(Watch::open(&path, None, false).is_err(), "at start there must be one");
    std::fs::write(&path, old.jwks().to_string()).unwrap();
    let mut watch = Watch::open(&path, Some(ISSUER.into()), false).unwrap();
    let verifier = watch.verifier();
    let tokens = [&old, &new].map(|mint| mint.signed(&claims()).unwrap());
    let count = |tokens: &[String; 2]| tokens.each_ref().map(|t| verifier.verify(t, NOW).is_ok());
    assert_eq!(count(&tokens), [true, false]);
    assert_eq!(watch.look(), Ok(false));
    std::fs::write(&path, "{").unwrap();
    assert!(watch.look().is_err(), "told once");
    assert_eq!(watch.look(), Ok(false));
    std::fs::remove_file(&path).unwrap();
    assert!(watch.look().is_err());
    assert_eq!((watch.look(), count(&tokens)), (Ok(false), [true, false]), "the old keys stay");
    std::fs::write(&path, new.jwks().to_string()).unwrap();
    assert_eq!((watch.look(), count(&tokens)), (Ok(true), [false, true]));
}

#[test]
fn a_key_is_kept_and_never_shown() {
    let mint = Mint::generate(ISSUER).unwrap();
    let again = Mint::from_pkcs8(ISSUER, &mint.to_pkcs8().unwrap()).unwrap();
    assert_eq!(mint.jwks(), again.jwks());
    assert!(format!("{mint:?}").ends_with("<REDACTED>)"));
    assert!(Mint::from_pkcs8(ISSUER, b"nonsense").is_err());
    let grant = Grant {
        subject: "root".into(),
        tenant: "ops".into(),
        roles: vec![Role::Admin],
        id: "1".into(),
        lifetime_s: u64::MAX,
    };
    let verifier = Verifier::new(keys(&mint.jwks()), None);
    let identity = verifier.verify(&again.token(&grant, NOW).unwrap(), NOW).unwrap();
    assert_eq!((identity.expires, identity.roles.has(Role::Admin)), (NOW + MAX_LIFETIME, true));
}

/// The thread's own CPU time, so that a busy machine does not count. The figures of an
/// optimised build are `cargo bench`'s; here only that remembering is worth it.
#[test]
fn a_remembered_token_costs_a_fraction_of_a_new_one() {
    use nix::time::{ClockId, clock_gettime};
    let cpu = || std::time::Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let (mint, verifier) = desk();
    let token = mint.signed(&claims()).unwrap();
    let fresh: Vec<Verifier> = (0..300).map(|_| Verifier::new(keys(&mint.jwks()), Some(ISSUER.into()))).collect();
    let start = cpu();
    assert!(fresh.iter().all(|verifier| verifier.verify(&token, NOW).is_ok()));
    let first = (cpu() - start) / 300;
    let start = cpu();
    assert!((0..3000).all(|_| verifier.verify(&token, NOW).is_ok()));
    let again = (cpu() - start) / 3000;
    println!("first {first:?}, remembered {again:?}");
    assert!(again * 4 < first, "first {first:?}, remembered {again:?}");
}
