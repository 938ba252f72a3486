//! Entries, chain, frontier and receipts: what holds, and what is found out.

use super::*;

fn record(n: u64) -> Record {
    let code = n.is_multiple_of(3).then_some(Reason::QuotaExceeded);
    let verdict = if code.is_some() { Verdict::Block } else { Verdict::Pass };
    let mut checks = [Check::default(); 7];
    checks[4] = Check { verdict, code };
    Record {
        at_ms: 1_795_435_200_000 + n,
        actor: Actor {
            subject: format!("ada {n} \"\\\n\u{1}é").into(),
            tenant: TenantId::new("t1").ok(),
            token: n.is_multiple_of(2).then_some(Hash([7; 32])),
            node: None,
            issuer: n.is_multiple_of(2).then(|| "https://issuer".into()),
        },
        action: Action::JobSchedule,
        object: format!("job/{n}").into(),
        checks,
        refs: Refs { manifest: Some(Hash([n as u8; 32])), ..Refs::default() },
        refused: code,
        count: 1,
    }
}

#[test]
fn a_token_is_there_under_the_groups_key_alone() {
    let told = |key: u8, id: &str| Actor::token_hmac(Some(&[key; 32]), "blue", id);
    // As Python's hmac has it.
    let expected = "6a0170eb419652125c0e77e16b4823dac2aec77d7b187666081762045c9f09fa";
    assert_eq!(told(7, "id-1").to_string(), expected);
    assert_ne!(told(8, "id-1"), told(7, "id-1"), "who guesses ids learns nothing without the key");
    assert_ne!(told(7, "id-2"), told(7, "id-1"));
    let old = |cluster: &str| Actor::token_hmac(None, cluster, "id-1");
    assert_ne!(old("blue"), old("red"), "two trails don't join");
}

fn trail(n: u64) -> (Vec<Entry>, Chain) {
    let mut chain = Chain::default();
    ((1..=n).map(|i| chain.append(record(i)).0).collect(), chain)
}

fn audit(entries: &[Entry], told: &[Hash]) -> Result<Auditor, Fault> {
    let mut auditor = Auditor::default();
    for (entry, told) in entries.iter().zip(told) {
        auditor.take(&entry.canonical(), entry.seq, entry.prev, *told)?;
    }
    Ok(auditor)
}

fn hashes(entries: &[Entry]) -> Vec<Hash> {
    entries.iter().map(Entry::hash).collect()
}

#[test]
fn a_trail_holds_and_its_end_is_one_hash() {
    let (entries, chain) = trail(20);
    let auditor = audit(&entries, &hashes(&entries)).unwrap();
    auditor.end(&chain.checkpoint("blue")).unwrap();
    assert_eq!((auditor.head(), auditor.root()), (chain.head(), chain.root()));
    let receipt = Receipt { seq: 20, hash: chain.head() };
    assert_eq!(receipt.to_string().parse(), Ok(receipt));
    for bad in ["", "1", "1:", ":00", "01:", "x:00"] {
        assert!(bad.parse::<Receipt>().is_err(), "{bad}");
    }
}

#[test]
fn one_changed_removed_added_or_moved_entry_is_found_and_named() {
    let (entries, chain) = trail(12);
    let told = hashes(&entries);
    for at in 0..12 {
        let seq = at as u64 + 1;
        let mut changed = entries.clone();
        changed[at].record.count = 2;
        assert_eq!(audit(&changed, &told).unwrap_err().seq(), seq, "changed, hash kept");
        // Changed with a hash that fits: the next one does not follow it, or the end differs.
        let fault = audit(&changed, &hashes(&changed)).and_then(|a| a.end(&chain.checkpoint("b")).map(|()| a));
        assert!((seq..=seq + 1).contains(&fault.unwrap_err().seq()));
        let (mut cut, mut cut_told) = (entries.clone(), told.clone());
        cut.remove(at);
        cut_told.remove(at);
        let fault = audit(&cut, &cut_told).and_then(|a| a.end(&chain.checkpoint("b")).map(|()| a)).unwrap_err();
        assert_eq!(fault.seq(), seq, "removed: {fault}");
        if at > 0 {
            let (mut moved, mut moved_told) = (entries.clone(), told.clone());
            moved.swap(at - 1, at);
            moved_told.swap(at - 1, at);
            assert_eq!(audit(&moved, &moved_told).unwrap_err().seq(), seq - 1, "swapped");
        }
    }
}

/// RFC 6962 section 2.1, by its own recursive definition.
fn root_by_definition(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::of(&[]),
        [one] => *one,
        many => {
            let split = 1 << (usize::BITS - 1 - (many.len() - 1).leading_zeros());
            let (left, right) = (root_by_definition(&many[..split]), root_by_definition(&many[split..]));
            Hash::of(&[&[1], &left.0, &right.0])
        }
    }
}

#[test]
fn the_frontier_has_the_root_of_the_whole_tree() {
    let mut frontier = Frontier::default();
    let mut leaves = Vec::new();
    for n in 0..130u8 {
        assert_eq!(frontier.root(), root_by_definition(&leaves), "{n} leaves");
        assert_eq!(frontier.peaks.len() as u32, frontier.size.count_ones());
        leaves.push(leaf(&[n]));
        frontier.push(leaf(&[n]));
    }
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(Frontier::default().root(), Hash::parse(empty).unwrap());
}

/// The bytes are part of the format: another encoding would break every receipt.
#[test]
fn the_encoding_is_this_one() {
    let (entries, _) = trail(2);
    let text = String::from_utf8(entries[0].canonical()).unwrap();
    let check = |i: u8| format!("\"P{i}\":{{\"verdict\":\"{}\"}}", if i == 5 { "pass" } else { "na" });
    let checks: Vec<String> = (1..=7).map(check).collect();
    let expected = format!(
        concat!(
            r#"{{"action":"JobSchedule","actor":{{"sub":"ada 1 \"\\\n\u0001é","tenant_id":"t1"}},"checks":{{{}}},"#,
            r#""count":1,"object":"job/1","prev":"{}","refs":{{"manifest":"{}"}},"result":"done","seq":1,"#,
            r#""time_ms":1795435200001,"v":1}}"#
        ),
        checks.join(","),
        "0".repeat(64),
        "01".repeat(32),
    );
    assert_eq!(text, expected);
    assert_eq!(entries[1].prev, entries[0].hash());
}

#[test]
fn texts_are_bounded_between_characters() {
    assert_eq!(bounded(&"é".repeat(200)).len(), MAX_TEXT);
    assert_eq!(bounded(&format!("x{}", "é".repeat(200))).len(), MAX_TEXT - 1);
    let mut long = record(1);
    long.object = "x".repeat(10_000).into();
    assert!(Chain::default().append(long).0.canonical().len() < 2000);
}
