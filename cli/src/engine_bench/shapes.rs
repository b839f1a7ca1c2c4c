//! The weight matrices of a model, by their shapes.

use engine::ModelConfig;

/// Outputs and inputs of one weight matrix.
pub(crate) type Dims = (usize, usize);

/// The matrices of one layer, as a stock Llama multiplies by them: q, k, v, o, gate, up, down.
pub(crate) fn layer(config: &ModelConfig) -> [Dims; 7] {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let queries = config.heads * config.head_dim;
    let keys = config.kv_heads * config.head_dim;
    [
        (queries, hidden),
        (keys, hidden),
        (keys, hidden),
        (hidden, queries),
        (inner, hidden),
        (inner, hidden),
        (hidden, inner),
    ]
}

/// Weights of some matrices.
pub(crate) fn count(dims: &[Dims]) -> usize {
    dims.iter().map(|(outputs, inputs)| outputs * inputs).sum()
}

/// Weights that one row is multiplied by: all layers and the head.
pub(crate) fn weights(config: &ModelConfig) -> usize {
    config.layers * count(&layer(config)) + config.vocab_size * config.hidden
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models;

    #[test]
    fn the_shapes_are_those_of_the_checkpoint() {
        let dir = models::bundled(None).unwrap().join("draft");
        let config = ModelConfig::read(&dir).unwrap();
        let file = std::fs::read(dir.join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let matrices = tensors
            .tensors()
            .into_iter()
            .map(|(_, tensor)| tensor.shape().to_vec());
        let stored: usize = matrices
            .filter(|shape| shape.len() == 2)
            .map(|shape| shape.iter().product::<usize>())
            .sum();
        assert_eq!(
            weights(&config),
            stored,
            "the embedding is the head, so every matrix counts once"
        );
    }
}
