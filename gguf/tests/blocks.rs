//! Blocks against what the ggml project's own package makes of them, bit for bit.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use gguf::{BlockFormat, Element, Gguf, Tensor};
use offshoot_gguf as gguf;

fn fixture(name: &str) -> Gguf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/gguf");
    Gguf::open(&folder.join(name)).unwrap()
}

fn named<'a>(file: &'a Gguf, name: &str) -> &'a Tensor {
    let found = file.tensors().iter().find(|tensor| tensor.name == name);
    found.unwrap_or_else(|| panic!("no tensor {name}"))
}

fn floats(file: &Gguf, name: &str) -> Vec<f32> {
    let tensor = named(file, name);
    assert_eq!(tensor.element, Element::F32);
    let (words, _) = file.data(tensor).as_chunks();
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_format_means_what_ggml_says() {
    let file = fixture("blocks.gguf");
    for format in BlockFormat::ALL {
        let tensor = named(&file, format.name());
        assert_eq!(tensor.element, Element::Blocks(format));
        assert_eq!(tensor.shape, [5, 512]);
        let expected = floats(&file, &format!("{}.weights", format.name()));
        let mut found = vec![0.0; expected.len()];
        format.dequantise(file.data(tensor), &mut found);
        assert_eq!(bits(&found), bits(&expected), "{}", format.name());
        assert!(found.iter().any(|&x| x > 0.01) && found.iter().any(|&x| x < -0.01));
    }
}

#[test]
fn weights_are_quantised_as_ggml_does() {
    let file = fixture("blocks.gguf");
    for format in [BlockFormat::Q8_0, BlockFormat::Q4_0] {
        let values = floats(&file, &format!("{}.values", format.name()));
        let tensor = named(&file, &format!("{}.quantised", format.name()));
        let (blocks, _) = values.as_chunks();
        let found: Vec<u8> = blocks
            .iter()
            .flat_map(|block| match format {
                BlockFormat::Q8_0 => gguf::quantise_q8_0(block).unwrap().to_vec(),
                _ => gguf::quantise_q4_0(block).unwrap().to_vec(),
            })
            .collect();
        assert_eq!(found, file.data(tensor), "{}", format.name());
    }
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let mut block = [0.5; 32];
        block[7] = bad;
        assert_eq!(gguf::quantise_q8_0(&block), None);
        assert_eq!(gguf::quantise_q4_0(&block), None);
    }
}

#[test]
fn metadata_is_found_by_key_and_type() {
    let file = fixture("llama.gguf");
    assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(file.integer("llama.block_count").unwrap(), Some(2));
    assert_eq!(file.float("llama.rope.freq_base").unwrap(), Some(10_000.0));
    assert_eq!(
        file.truth("tokenizer.ggml.add_bos_token").unwrap(),
        Some(false)
    );
    let tokens = file.texts("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens[2], "<|im_end|>");
    let types = file.integers("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!((types.len(), types[0], types[3]), (tokens.len(), 3, 1));
    assert_eq!(file.integer("absent").unwrap(), None);
    let wrong = file
        .integer("general.architecture")
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("general.architecture"), "{wrong}");
    assert!(file.texts("tokenizer.ggml.token_type").is_err());
    assert!(file.integers("tokenizer.ggml.tokens").is_err());
    let scores = fixture("tied.gguf")
        .floats("tokenizer.ggml.scores")
        .unwrap();
    assert_eq!(scores.unwrap().last(), Some(&-59.0));
}
