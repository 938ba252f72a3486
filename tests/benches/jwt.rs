//! What one token check costs: remembered (bar: 3 µs), and looked at for the first
//! time (bar: 60 µs). Each call of each API pays it. It does not measure HTTP.

use criterion::{Criterion, criterion_group, criterion_main};
use neural_fabric::security::jwt::{Grant, Keys, Mint, Role, Verifier};
use std::hint::black_box;

const NOW: u64 = 1_795_435_200;

fn tokens(c: &mut Criterion) {
    let mint = Mint::generate("bench").expect("a key can be made");
    let keys = || Keys::parse("bench", mint.jwks().to_string().as_bytes()).expect("its own keys are keys");
    let grant = Grant {
        subject: "ada@example.com".into(),
        tenant: "t1".into(),
        roles: vec![Role::Viewer, Role::Operator],
        id: "3f9a".into(),
        lifetime_s: 3600,
    };
    let token = mint.token(&grant, NOW).expect("it can sign");
    let verifier = Verifier::new(keys(), Some("bench".into()));
    verifier.verify(&token, NOW).expect("it is valid");
    c.bench_function("token, remembered", |b| b.iter(|| verifier.verify(black_box(&token), NOW)));
    // Other keys each time forget every token; making them is not measured.
    c.bench_function("token, ES256, not remembered", |b| {
        b.iter_batched(
            || Verifier::new(keys(), Some("bench".into())),
            |verifier| verifier.verify(black_box(&token), NOW),
            criterion::BatchSize::SmallInput,
        )
    });
}

criterion_group!(benches, tokens);
criterion_main!(benches);
