//! The noise against its published vectors, which were computed independently
//! with 80 digits.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::Path;

use offshoot_decode::sampling::{NoiseKey, gumbel, gumbel_of, version};
use serde_json::Value;

fn vectors() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/noise.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn hex(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap(), 16).unwrap()
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

#[test]
fn the_noise_equals_its_vectors() {
    let vectors = vectors();
    assert_eq!(vectors["version"].as_str().unwrap(), version());
    let cases = vectors["noise"].as_array().unwrap();
    assert!(cases.len() >= 40);
    for case in cases {
        let seed = hex(&case["seed"]);
        let (choice, position) = (number(&case["choice"]), number(&case["position"]));
        let token = number(&case["token"]);
        let hash = NoiseKey::new(seed, choice, position).hash(token);
        assert_eq!(hash, hex(&case["hash"]), "{case}");
        let want: f64 = case["gumbel"].as_str().unwrap().parse().unwrap();
        assert!(
            (gumbel(seed, choice, position, token) - want).abs() < 1e-12,
            "{case}"
        );
    }
}

#[test]
fn the_tails_equal_their_vectors() {
    for case in vectors()["hash_to_gumbel"].as_array().unwrap() {
        let want: f64 = case["gumbel"].as_str().unwrap().parse().unwrap();
        let got = gumbel_of(hex(&case["hash"]));
        assert!((got - want).abs() < 1e-12, "{case}: {got}");
    }
}
