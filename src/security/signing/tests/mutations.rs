//! A thousand mutations of each sample are refused and none panics. A mutation that
//! means the same (a blank between two JSON values, the other base64 alphabet) is
//! not one, and is told apart by what the shape's reader makes of it.

use super::super::encoding::{base64, to_base64};
use super::super::{Demand, Evidence, Expect, Refusal, Verdict};
use super::forge::{self, Sample};
use super::judged_with;
use serde_json::Value;

const REFUSED: usize = 1000;
/// More tries than this would mean that mutations are accepted.
const TRIES: usize = 4000;

/// xorshift64*, so that a failure can be played again from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }
}

/// Changes a byte, takes some out, puts one in, or cuts the end off.
fn byte_mutation(dice: &mut Dice, bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let at = dice.roll(out.len());
    match dice.roll(5) {
        0 => out[at] ^= 1 << dice.roll(8),
        1 => out[at] = dice.roll(256) as u8,
        2 => drop(out.drain(at..(at + 1 + dice.roll(8)).min(bytes.len()))),
        3 => out.insert(at, dice.roll(256) as u8),
        _ => out.truncate(at),
    }
    out
}

fn texts<'a>(value: &'a mut Value, out: &mut Vec<&'a mut String>) {
    match value {
        Value::String(text) => out.push(text),
        Value::Array(items) => items.iter_mut().for_each(|item| texts(item, out)),
        Value::Object(entries) => entries.values_mut().for_each(|entry| texts(entry, out)),
        _ => {}
    }
}

/// Flips a bit of what one of the base64 texts stands for, which no reader of base64 can notice.
fn deep_mutation(dice: &mut Dice, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    let mut found = Vec::new();
    texts(&mut value, &mut found);
    found.retain(|text| text.len() >= 16 && base64(text).is_some());
    let chosen = dice.roll(found.len());
    let text = found.into_iter().nth(chosen)?;
    let mut decoded = base64(text)?;
    let at = dice.roll(decoded.len());
    decoded[at] ^= 1 << dice.roll(8);
    *text = to_base64(&decoded);
    Some(value.to_string().into_bytes())
}

/// Equal in all that is verified: not the media type's number, not how base64 was padded, and of a chain only
/// the leaf, since a root that comes along is not looked at.
fn means_the_same(a: &[u8], b: &[u8]) -> bool {
    let told = |bytes: &[u8]| {
        let mut evidence = Evidence::parse(bytes).ok()?;
        // Nor which of a key's versions signed, where the key itself is given.
        if let Evidence::Vault { encoded, version, .. } = &mut evidence {
            encoded.clear();
            *version = 0;
        }
        let text = format!("{evidence:?}");
        let text = ["Bundle01", "Bundle02", "Bundle03"].iter().fold(text, |t, name| t.replace(name, "Bundle"));
        match text.split_once("Chain([[") {
            None => Some(text),
            Some((head, chain)) => {
                let (leaf, rest) = chain.split_once(']')?;
                Some(format!("{head}{leaf}{}", rest.split_once("]])")?.1))
            }
        }
    };
    told(a).is_some() && told(a) == told(b)
}

/// A thousand mutations of a piece of evidence are refused by who judges it.
pub fn all_refused(name: &str, evidence: &[u8], seed: u64, judged: impl Fn(&[u8]) -> Result<Verdict, Refusal>) {
    let mut dice = Dice(seed);
    let (mut refused, mut same) = (0, 0);
    for _ in 0..TRIES {
        let deep = (dice.roll(2) == 0).then(|| deep_mutation(&mut dice, evidence)).flatten();
        let mutated = deep.unwrap_or_else(|| byte_mutation(&mut dice, evidence));
        if mutated == evidence {
            continue;
        }
        match judged(&mutated) {
            Err(refusal) => {
                assert!(!refusal.detail.is_empty());
                refused += 1;
            }
            Ok(_) => {
                let shown = String::from_utf8_lossy(&mutated);
                assert!(means_the_same(&mutated, evidence), "{name} seed {seed}: accepted {shown}");
                same += 1;
            }
        }
        if refused == REFUSED {
            println!("{name}: {refused} refused, {same} that meant the same");
            return;
        }
    }
    panic!("{name} seed {seed}: only {refused} of {TRIES} refused, {same} meant the same");
}

#[test]
fn a_thousand_mutations_of_each_signature_are_refused() {
    for (i, sample) in forge::samples().iter().enumerate() {
        let judged = |mutated: &[u8]| judged_with(sample, mutated, Demand::Hybrid, &Expect::default());
        all_refused(sample.name, &sample.evidence, 0x9e37_79b9_7f4a_7c15 + i as u64, judged);
    }
}

#[test]
fn a_thousand_mutations_of_the_signed_bytes_are_refused() {
    for (i, mut sample) in forge::samples().into_iter().filter(|s| s.dir.is_none()).enumerate() {
        let mut dice = Dice(0x5851_f42d_4c95_7f2d + i as u64);
        let original = sample.bytes.clone();
        let mut refused = 0;
        while refused < REFUSED {
            sample.bytes = byte_mutation(&mut dice, &original);
            if sample.bytes != original {
                let verdict = judged_with(&sample, &sample.evidence, Demand::Hybrid, &Expect::default());
                assert!(verdict.is_err(), "{}: accepted {:?}", sample.name, sample.bytes);
                refused += 1;
            }
        }
    }
}

/// Payloads that are signed by the right key, and say anything at all: refused or understood, never a panic.
#[test]
fn signed_nonsense_does_not_panic() {
    let key = forge::Key::p256();
    let dir = forge::model();
    let models = serde_json::to_vec(&forge::model_statement(&forge::listed(&dir))).unwrap();
    let deploy = forge::deploy_statement(forge::listed(&dir)).payload().unwrap();
    let mut dice = Dice(0x1405_7b7e_f767_814f);
    let mut refused = 0;
    for payload in [models, deploy] {
        for _ in 0..REFUSED {
            let mutated = byte_mutation(&mut dice, &payload);
            let evidence = forge::dsse("application/vnd.in-toto+json", &mutated, &[("", &key)]).to_string();
            let mut sample = Sample::blob("nonsense", &[&key.public()], evidence);
            sample.dir = Some(forge::model());
            refused +=
                usize::from(judged_with(&sample, &sample.evidence, Demand::Classical, &Expect::default()).is_err());
        }
    }
    assert!(refused > REFUSED, "most nonsense is refused: {refused}");
}
