//! TAESD: encoder and decoder are numbered lists, each in a file of its own.

use super::KeyMap;

impl KeyMap {
    /// An encoder of `layers` numbered layers.
    pub fn tiny_encoder(layers: usize) -> Self {
        let mut map = Self::default();
        for i in 0..layers {
            map.add(i, format_args!("encoder.layers.{i}"));
        }
        map
    }

    /// A decoder of `layers` numbered layers, the first of which bounds the latents and is not counted by
    /// diffusers.
    pub fn tiny_decoder(layers: usize) -> Self {
        let mut map = Self::default();
        for i in 1..layers {
            map.add(i, format_args!("decoder.layers.{}", i - 1));
        }
        map
    }
}
