//! Whom a certificate names, what keys are for, and where files end up.

use super::*;

#[test]
fn a_certificate_names_its_member_alone() {
    let authority = Authority::create("blue").unwrap();
    let credentials = authority.issue("blue", "n1").unwrap();
    assert!(PeerTls::new(&credentials, "blue", "n1").is_ok());
    assert!(PeerTls::new(&credentials, "blue", "n2").is_err());
    assert!(PeerTls::new(&credentials, "green", "n1").is_err());
    let worker = authority.issue_as("blue", "n1", Role::Client).unwrap();
    assert!(PeerTls::new(&worker, "blue", "n1").is_ok());
    let cert = |of: &Credentials| CertificateDer::from_pem_slice(of.cert.as_bytes()).unwrap();
    assert!(!certifies(&cert(&worker), &dns_name("blue", "n1").unwrap()), "a worker is no member");
    assert_eq!(holder(&cert(&worker), "blue"), Some(("n1".to_owned(), Role::Client)));
    assert_eq!(holder(&cert(&credentials), "blue"), Some(("n1".to_owned(), Role::Server)));
    assert_eq!(holder(&cert(&credentials), "green"), None);
    assert!(authority.issue("blue", "N1").is_err());
    assert!(authority.issue("blue", "").is_err());
}

#[test]
fn a_key_is_its_owner_s_alone_also_where_another_file_was() {
    use std::os::unix::fs::PermissionsExt;
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("member.key");
    std::fs::write(&path, "for all").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    write_file(&path, "a key", 0o600).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn no_door_resumes_a_session() {
    let authority = Authority::create("blue").unwrap();
    let tls = PeerTls::new(&authority.issue("blue", "n1").unwrap(), "blue", "n1").unwrap();
    let loaded = tls.loaded.load();
    for config in [&loaded.server, &loaded.renew] {
        assert!(config.send_tls13_tickets == 0 && !config.session_storage.can_cache());
    }
    assert_eq!(loaded.join.send_tls13_tickets, 0);
}

#[test]
fn new_keys_are_for_what_the_process_is() {
    let authority = Authority::create("blue").unwrap();
    let issue = |name, role| authority.issue_as("blue", name, role).unwrap();
    let refused = |tls: &PeerTls, new: &Credentials| {
        let before = tls.sign(b"x").unwrap().0;
        let text = tls.replace(new, UnixTime::now()).unwrap_err().to_string();
        assert_eq!(tls.sign(b"x").unwrap().0, before, "the old ones stay: {text}");
        text
    };
    let member = PeerTls::new(&issue("n1", Role::Server), "blue", "n1").unwrap();
    let text = refused(&member, &issue("n1", Role::Client));
    assert!(text.contains("is for a node") && text.contains("--role server"), "{text}");
    assert!(refused(&member, &issue("n2", Role::Server)).contains("not one for n1"));
    let worker = PeerTls::new(&issue("n1", Role::Client), "blue", "n1").unwrap();
    assert!(refused(&worker, &issue("n1", Role::Server)).contains("--role node"));
    for (usages, missing) in [
        (vec![ExtendedKeyUsagePurpose::ClientAuth], "serverAuth"),
        (vec![ExtendedKeyUsagePurpose::ServerAuth], "clientAuth"),
    ] {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_ca_cert_pem(&authority.cert, KeyPair::from_pem(&authority.key).unwrap()).unwrap();
        let mut params = CertificateParams::new(vec![dns_name("blue", "n1").unwrap()]).unwrap();
        params.extended_key_usages = usages;
        let cert = params.signed_by(&key, &issuer).unwrap().pem();
        let new = Credentials { authority: authority.cert.clone(), cert, key: key.serialize_pem() };
        assert!(refused(&member, &new).contains(missing));
    }
    assert!(member.replace(&issue("n1", Role::Server), UnixTime::now()).is_ok());
    assert!(worker.replace(&issue("n1", Role::Client), UnixTime::now()).is_ok());
}
