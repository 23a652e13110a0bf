//! The transformer that CLIP's text and vision models share.

use candle_core::Tensor;

use crate::error::Result;
use crate::nn::{Activation, ActivationFunction, LayerNorm, Linear, Mask, Params, attention};

/// The shape of a tower.
#[derive(Debug, Clone, Copy)]
pub(super) struct TowerConfig {
    pub(super) layers: usize,
    /// Channels.
    pub(super) hidden: usize,
    /// Channels inside the feed-forward layers.
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) function: ActivationFunction,
    pub(super) eps: f64,
    /// Text looks back, pictures everywhere.
    pub(super) mask: Mask<'static>,
}

/// Layers one behind the other.
#[derive(Debug, Clone)]
pub(super) struct Tower {
    layers: Vec<Layer>,
    config: TowerConfig,
}

impl Tower {
    /// Reads `layers.N`.
    pub(super) fn new(params: Params<'_>, config: TowerConfig) -> Result<Self> {
        let layer = |i: usize| params.at(format_args!("layers.{i}"), |p| Layer::new(p, &config));
        Ok(Self {
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            config,
        })
    }

    /// What goes in, then what each layer makes of it: `layers + 1` values `(batch, tokens, hidden)`.
    pub(super) fn forward(&self, x: Activation) -> Result<Vec<Tensor>> {
        self.forward_unseen(x, &[])
    }

    /// The same for text in which nothing looks at some tokens.
    pub(super) fn forward_unseen(&self, x: Activation, unseen: &[usize]) -> Result<Vec<Tensor>> {
        let mask = match unseen {
            [] => self.config.mask,
            _ => Mask::CausalBut(unseen),
        };
        let mut x = x;
        let mut hidden_states = vec![x.to_tensor()?];
        for layer in &self.layers {
            x = layer.forward(&x, &self.config, mask)?;
            hidden_states.push(x.to_tensor()?);
        }
        Ok(hidden_states)
    }
}

#[derive(Debug, Clone)]
struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn new(params: Params<'_>, config: &TowerConfig) -> Result<Self> {
        let (hidden, inner) = (config.hidden, config.intermediate);
        let linear =
            |name: &str, input, output| params.at(name, |p| Linear::new(p, input, output, true));
        let norm = |name: &str| params.at(name, |p| LayerNorm::new(p, hidden, config.eps));
        Ok(Self {
            layer_norm1: norm("layer_norm1")?,
            q_proj: linear("self_attn.q_proj", hidden, hidden)?,
            k_proj: linear("self_attn.k_proj", hidden, hidden)?,
            v_proj: linear("self_attn.v_proj", hidden, hidden)?,
            out_proj: linear("self_attn.out_proj", hidden, hidden)?,
            layer_norm2: norm("layer_norm2")?,
            fc1: linear("mlp.fc1", hidden, inner)?,
            fc2: linear("mlp.fc2", inner, hidden)?,
        })
    }

    fn forward(&self, x: &Activation, config: &TowerConfig, mask: Mask<'_>) -> Result<Activation> {
        let normed = self.layer_norm1.forward(x)?;
        let (q, k, v) = (
            self.q_proj.forward(&normed)?,
            self.k_proj.forward(&normed)?,
            self.v_proj.forward(&normed)?,
        );
        let attended = attention(&q, &k, &v, config.heads, mask, false)?;
        let x = x.add(&self.out_proj.forward(&attended)?)?;
        let hidden = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        x.add(&self.fc2.forward(&config.function.apply(&hidden)?)?)
    }
}
