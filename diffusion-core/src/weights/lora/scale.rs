//! How strongly an adapter works, and where.

use serde::Serialize;

use super::ModelPart;
use super::modules::Module;
use crate::error::{Error, Result};
use crate::nn::innermost;

/// The strength of an adapter: one number, or one for UNet and text encoders each, and factors for single
/// blocks of the UNet.
///
/// ```
/// use diffusion_core::weights::LoraScale;
///
/// let everywhere = LoraScale::from(0.8);
/// let styled = LoraScale::from(0.8).text_encoder(0.0).block("up_blocks.1.attentions.0", 0.5);
/// # assert_ne!(everywhere, styled);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraScale {
    unet: f64,
    text_encoder: f64,
    blocks: Vec<(String, f64)>,
}

impl From<f64> for LoraScale {
    fn from(scale: f64) -> Self {
        Self {
            unet: scale,
            text_encoder: scale,
            blocks: Vec::new(),
        }
    }
}

/// The blocks of a list of 26 block weights.
const BLOCKS_26: [&str; 26] = [
    BASE,
    "input_blocks.0",
    "input_blocks.1",
    "input_blocks.2",
    "input_blocks.3",
    "input_blocks.4",
    "input_blocks.5",
    "input_blocks.6",
    "input_blocks.7",
    "input_blocks.8",
    "input_blocks.9",
    "input_blocks.10",
    "input_blocks.11",
    "middle_block",
    "output_blocks.0",
    "output_blocks.1",
    "output_blocks.2",
    "output_blocks.3",
    "output_blocks.4",
    "output_blocks.5",
    "output_blocks.6",
    "output_blocks.7",
    "output_blocks.8",
    "output_blocks.9",
    "output_blocks.10",
    "output_blocks.11",
];
/// The text encoder's place in a list of block weights.
const BASE: &str = "base";
/// Which of the 26 a list of 17 has: those with attention in Stable Diffusion 1 and 2.
const OF_17: [usize; 17] = [0, 2, 3, 5, 6, 8, 9, 13, 17, 18, 19, 20, 21, 22, 23, 24, 25];
/// The same of 12 for SDXL.
const OF_12: [usize; 12] = [0, 5, 6, 8, 9, 13, 14, 15, 16, 17, 18, 19];
/// The same of 20 for SDXL with the blocks that have no attention.
const OF_20: [usize; 20] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22,
];

impl LoraScale {
    /// Another strength for the text encoders.
    pub fn text_encoder(mut self, scale: f64) -> Self {
        self.text_encoder = scale;
        self
    }

    /// Another strength for the UNet.
    pub fn unet(mut self, scale: f64) -> Self {
        self.unet = scale;
        self
    }

    /// A factor for the modules of the UNet below `block`: a name of diffusers such as `down_blocks`,
    /// `up_blocks.1` or `up_blocks.1.attentions.0`, or of the original layout such as `input_blocks.4`. Of
    /// several that fit a module the longest name counts.
    pub fn block(mut self, block: impl Into<String>, factor: f64) -> Self {
        self.blocks.push((block.into(), factor));
        self
    }

    /// Factors in the order of the user interfaces' block weights: `BASE` for the text encoders, then the
    /// input blocks, the middle and the output blocks. 26 numbers name all blocks, 17 those of Stable
    /// Diffusion 1 and 2 that have attention; 12 and 20 are the same lists for SDXL. Blocks that a list leaves
    /// out get 0.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another count.
    pub fn block_weights(mut self, factors: &[f64]) -> Result<Self> {
        let listed: &[usize] = match factors.len() {
            26 => &std::array::from_fn::<usize, 26, _>(|i| i),
            20 => &OF_20,
            17 => &OF_17,
            12 => &OF_12,
            found => {
                return Err(Error::argument(
                    "block weights",
                    "12, 17, 20 or 26 numbers",
                    found,
                ));
            }
        };
        for (i, block) in BLOCKS_26.iter().enumerate() {
            let factor = listed
                .iter()
                .position(|&at| at == i)
                .map_or(0.0, |at| factors[at]);
            match *block {
                BASE => self.text_encoder *= factor,
                block => self = self.block(block, factor),
            }
        }
        Ok(self)
    }

    /// The strength at a module.
    pub(super) fn at(&self, part: ModelPart, module: &Module) -> f64 {
        if part != ModelPart::UNet {
            return self.text_encoder;
        }
        let path = module.path.as_str();
        let names = [path, module.original.as_deref().unwrap_or(path)];
        self.unet * innermost(&self.blocks, &names).unwrap_or(1.0)
    }

    /// Refuses numbers that would make every weight infinite.
    pub(super) fn check(&self) -> Result<()> {
        let factors = self.blocks.iter().map(|(_, factor)| *factor);
        match factors
            .chain([self.unet, self.text_encoder])
            .find(|number| !number.is_finite())
        {
            Some(number) => Err(Error::argument("lora scale", "finite numbers", number)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, original: &str) -> Module {
        Module {
            path: path.into(),
            original: Some(original.into()),
        }
    }

    #[test]
    fn the_longest_name_counts() {
        let scale = LoraScale::from(0.8)
            .text_encoder(0.3)
            .block("up_blocks.1.attentions.0", 0.25)
            .block("up_blocks.1", 0.5);
        let at = |path| scale.at(ModelPart::UNet, &module(path, "none"));
        assert_eq!(at("up_blocks.1.attentions.0.proj_in"), 0.8 * 0.25);
        assert_eq!(at("up_blocks.1.resnets.0.conv1"), 0.8 * 0.5);
        assert_eq!(at("up_blocks.10.resnets.0.conv1"), 0.8);
        assert_eq!(scale.at(ModelPart::TextEncoder2, &module("x", "none")), 0.3);
    }

    #[test]
    fn lists_of_block_weights() -> Result<()> {
        let mut factors = [1.0; 17];
        factors[0] = 0.5;
        factors[3] = 0.25;
        let scale = LoraScale::from(2.0).block_weights(&factors)?;
        let at = |original| scale.at(ModelPart::UNet, &module("x", original));
        assert_eq!(at("input_blocks.4.1.proj_in"), 2.0 * 0.25);
        assert_eq!(at("input_blocks.3.0.op"), 0.0);
        assert_eq!(at("output_blocks.11.1.proj_in"), 2.0);
        assert_eq!(scale.at(ModelPart::TextEncoder, &module("x", "y")), 1.0);
        assert!(LoraScale::from(1.0).block_weights(&[1.0; 13]).is_err());
        assert!(LoraScale::from(f64::NAN).check().is_err());
        Ok(())
    }
}
