//! CLIP's text models.

use serde_json::{Value, json};

use super::Shapes;
use crate::error::Result;
use crate::weights::keys::count;
use crate::weights::{ComponentKind, Dialect};

/// Channels of a head in every published CLIP text model.
const HEAD_WIDTH: usize = 64;
/// Channels of OpenAI's ViT-L, which alone has the sigmoid's approximation of GELU.
const VIT_L_WIDTH: usize = 768;

pub(super) fn config(kind: ComponentKind, dialect: Dialect, shapes: &Shapes<'_>) -> Result<Value> {
    let embeddings = "text_model.embeddings";
    let layer = |i| format!("text_model.encoder.layers.{i}.mlp.fc1.weight");
    let tokens = format!("{embeddings}.token_embedding.weight");
    let hidden = shapes.dim(&tokens, 1)?;
    // A file that was named anew does not say whose model it is; its width does.
    let is_open_clip = match dialect {
        Dialect::OpenClip => true,
        _ => kind == ComponentKind::TextEncoder2 || hidden > VIT_L_WIDTH,
    };
    let projection = shapes.optional_dim("text_projection.weight", 0);
    let class = match kind {
        ComponentKind::TextEncoder2 => "CLIPTextModelWithProjection",
        _ => "CLIPTextModel",
    };
    Ok(json!({
        "architectures": [class],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        // As all published configurations have it: the end of text is the largest id of a prompt.
        "eos_token_id": 2,
        "hidden_act": if is_open_clip { "gelu" } else { "quick_gelu" },
        "hidden_size": hidden,
        "intermediate_size": shapes.dim(&layer(0), 0)?,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": shapes.dim(&format!("{embeddings}.position_embedding.weight"), 0)?,
        "model_type": "clip_text_model",
        "num_attention_heads": (hidden / HEAD_WIDTH).max(1),
        "num_hidden_layers": count(|i| shapes.has(&layer(i))),
        "pad_token_id": 1,
        "projection_dim": projection.unwrap_or(hidden),
        "vocab_size": shapes.dim(&tokens, 0)?,
    }))
}
