//! Text encoders: OpenAI's CLIP, whose names are those of transformers, and OpenCLIP.

use super::{Form, KeyMap};

/// Modules of a whole OpenCLIP text model.
const OPEN_CLIP: &[(&str, &str, Form)] = &[
    (
        "positional_embedding",
        "text_model.embeddings.position_embedding.weight",
        Form::Same,
    ),
    (
        "token_embedding",
        "text_model.embeddings.token_embedding",
        Form::Same,
    ),
    ("ln_final", "text_model.final_layer_norm", Form::Same),
    // A bare matrix that is multiplied from the right.
    (
        "text_projection",
        "text_projection.weight",
        Form::Transposed,
    ),
];

/// One of its layers.
const OPEN_CLIP_LAYER: &[(&str, &str)] = &[
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
];

/// What queries, keys and values are called, in the order in which OpenCLIP joins them.
const THIRDS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// The parts of transformers' text model.
const CLIP: [&str; 3] = ["embeddings", "encoder", "final_layer_norm"];

impl KeyMap {
    /// transformers' own names, whose first part is `wrapper`: `text_model.`, or nothing in files of
    /// transformers 5 and of some converters.
    pub fn clip(wrapper: &str) -> Self {
        let mut map = Self::default();
        for part in CLIP {
            map.add(
                format_args!("{wrapper}{part}"),
                format_args!("text_model.{part}"),
            );
        }
        map.add("text_projection", "text_projection");
        map
    }

    /// The names that stable-diffusion.cpp gives to either text model: transformers', but for the projection,
    /// which lies as in OpenCLIP's files.
    pub fn stable_diffusion_cpp() -> Self {
        let mut map = Self::default();
        for part in CLIP {
            let name = format!("text_model.{part}");
            map.add(&name, &name);
        }
        map.add_as(
            "text_model.text_projection",
            "text_projection.weight",
            Form::Transposed,
        );
        map
    }

    /// OpenCLIP's text model with `layers` layers.
    pub fn open_clip(layers: usize) -> Self {
        let mut map = Self::default();
        for &(original, diffusers, form) in OPEN_CLIP {
            map.add_as(original, diffusers, form);
        }
        for i in 0..layers {
            let original = format!("transformer.resblocks.{i}");
            let diffusers = format!("text_model.encoder.layers.{i}");
            map.add_table(&original, &diffusers, OPEN_CLIP_LAYER);
            for kind in ["weight", "bias"] {
                for (third, name) in THIRDS.iter().enumerate() {
                    map.add_as(
                        format_args!("{original}.attn.in_proj_{kind}"),
                        format_args!("{diffusers}.self_attn.{name}.{kind}"),
                        Form::Third(third),
                    );
                }
            }
        }
        map
    }
}
